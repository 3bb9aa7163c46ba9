# Functions that the scripts of this folder share; sourced by them.
# shellcheck shell=bash

fail() {  # message [exit code]
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-2}"
}

# The program answers these without starting ranks.
answer_of_program() {
  env -u OMPI_COMM_WORLD_SIZE -u OMPI_COMM_WORLD_RANK -u PMI_SIZE -u PMI_RANK -u SLURM_STEP_NUM_TASKS -u SLURM_PROCID \
    "$BUILD/flanmoe" "$@"
}

# check_deck RANKS DECK [override...]: quiet when the deck is right for so many ranks (0: any number), else its errors.
check_deck() {
  local ranks=$1 errors
  shift
  if ! errors=$(env -u OMPI_COMM_WORLD_SIZE -u PMI_SIZE SLURM_STEP_NUM_TASKS="$ranks" SLURM_PROCID=0 \
    "$BUILD/flanmoe" "$@" --check 2>&1 >/dev/null); then
    printf '%s\n' "$errors" >&2
    return 2
  fi
}

# expect_deck DECK [override...]: ends when the deck is wrong for the largest number of ranks; a dry run says so and goes on.
expect_deck() {
  check_deck "$max_ranks" "$@" && return
  $dry_run || exit 2
  wrong=2
}
# shellcheck disable=SC2034  # used by those that source this
wrong=0  # exit code of a dry run

# value_of SECTION KEY <resolved deck
value_of() {
  awk -v section="[$1]" -v key="$2" '
    /^\[/ { inside = $0 == section }
    inside && $1 == key && $2 == "=" { sub(/^[^=]*= ?/, ""); print; exit }'
}

# seconds_of TIME: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s, as Slurm reads them; fails on anything else.
seconds_of() {
  local time=$1 days=0 fields
  [[ $time =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] || return 1
  if [[ $time == *-* ]]; then
    days=${time%%-*}
    time=${time#*-}
    [[ $time == *:* ]] || time+=:0
    [[ $time == *:*:* ]] || time+=:0
  elif [[ $time != *:* ]]; then
    time=0:$time:0
  elif [[ $time != *:*:* ]]; then
    time=0:$time
  fi
  IFS=: read -ra fields <<<"$time"
  echo $((10#$days * 86400 + 10#${fields[0]} * 3600 + 10#${fields[1]} * 60 + 10#${fields[2]}))
}

# progress_of RUN STAGE: steps of the newest checkpoint; of an evaluation, examples measured so far.
progress_of() {
  if [[ $2 == evaluate ]]; then
    wc -l 2>/dev/null <"$1/predictions.unfinished" || echo 0
    return
  fi
  local newest
  newest=$(find "$1/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f\n' 2>/dev/null | sort | tail -n 1)
  echo $((10#0${newest#step-}))
}

# record RUN word...: one line in RUN/jobs.log, with the time in front; fails where it cannot be written.
record() {
  local run=$1
  shift
  [[ -d $run ]] && printf '%s %s\n' "$(date +%FT%T)" "$*" >>"$run/jobs.log"
}

# Settings of a job, for every script that submits: sets the variables below and leaves other words in `words`.
# shellcheck disable=SC2034  # used by those that source this
job_options_text="  --nodes N or MIN-MAX     nodes; of a range as many as are free (default 1)
  --ranks-per-node N       MPI ranks of a node, which share its cores (default 1)
  --time TIME              time limit of a job, as Slurm reads it (default 1:00:00); what is left goes on in the next
  --stop-before SECONDS    when to write the last checkpoint: so long before the limit (default 300, at most a quarter
                           of the limit)
  --retries N              how often in a row a job that fails without a new checkpoint is tried again (default 2)
  --account NAME           account that pays (default: SBATCH_ACCOUNT, or the centre's default)
  --partition NAME         partition (default: SBATCH_PARTITION, or the centre's default)
  --after ID[:ID...]       start when these jobs have ended well, and not at all when one failed
  --mpi TYPE               how srun starts ranks (default pmix; \`srun --mpi=list\` shows what there is)
  --sbatch OPTION          one more option as in a line #SBATCH, such as --sbatch --constraint=gpu; may be repeated
  --dry-run                print the script, submit nothing, write nothing; of a wrong deck too"

read_job_options() {
  nodes=1 ranks_per_node=1 time=1:00:00 stop_before='' retries=2 account='' partition='' after='' mpi=pmix
  sbatch_options=() dry_run=false words=()
  local option value
  while [[ $# -gt 0 ]]; do
    option=$1
    shift
    case $option in
      --dry-run) dry_run=true && continue ;;
      --nodes=* | --ranks-per-node=* | --time=* | --stop-before=* | --retries=* | --account=* | --partition=* | \
        --after=* | --mpi=* | --sbatch=*)
        value=${option#*=}
        option=${option%%=*}
        ;;
      --nodes | --ranks-per-node | --time | --stop-before | --retries | --account | --partition | --after | --mpi | \
        --sbatch)
        [[ $# -gt 0 ]] || fail "$option: expected a value behind it"
        value=$1
        shift
        ;;
      *) words+=("$option") && continue ;;
    esac
    case $option in
      --nodes) nodes=$value ;;
      --ranks-per-node) ranks_per_node=$value ;;
      --time) time=$value ;;
      --stop-before) stop_before=$value ;;
      --retries) retries=$value ;;
      --account) account=$value ;;
      --partition) partition=$value ;;
      --after) after=$value ;;
      --mpi) mpi=$value ;;
      --sbatch) sbatch_options+=("$value") ;;
    esac
  done
  check_job_options
}

check_job_options() {
  local limit
  [[ $nodes =~ ^[1-9][0-9]*(-[1-9][0-9]*)?$ ]] || fail "--nodes: expected a number or MIN-MAX, found $nodes"
  [[ ${nodes%-*} -le ${nodes#*-} ]] || fail "--nodes: expected MIN-MAX with MIN at most MAX, found $nodes"
  [[ $ranks_per_node =~ ^[1-9][0-9]*$ ]] || fail "--ranks-per-node: expected a number, found $ranks_per_node"
  [[ $retries =~ ^[0-9]+$ ]] || fail "--retries: expected a number, found $retries"
  [[ $after =~ ^([0-9_]+(:[0-9_]+)*)?$ ]] || fail "--after: expected numbers of jobs with : between them, found $after"
  limit=$(seconds_of "$time") || fail "--time: expected minutes, h:m:s, d-h or d-h:m:s, found $time"
  [[ $limit -ge 60 ]] || fail "--time: expected at least a minute, found $time"
  stop_before=${stop_before:-$((limit / 4 < 300 ? limit / 4 : 300))}
  [[ $stop_before =~ ^[0-9]+$ && $stop_before -lt $limit ]] ||
    fail "--stop-before: expected less than the $limit seconds of --time, found $stop_before"
  # shellcheck disable=SC2034  # used by those that source this
  max_ranks=$((${nodes#*-} * ranks_per_node))
}

# job_header NAME FOLDER FILE: the first lines of a job's script. What it prints goes to FILE, which may hold Slurm's %j.
job_header() {
  local option folder=$2
  [[ $folder != *[\"\\]* ]] || fail "the folder of a job: expected no quote and no backslash, found $folder"
  [[ $folder == /* ]] || folder=$PWD/$folder
  echo "#!/bin/bash"
  printf '#SBATCH %s\n' "--job-name=\"$1\"" "--output=\"${folder//%/%%}/$3\"" --open-mode=append \
    "--nodes=$nodes" "--time=$time" "--signal=USR1@$stop_before" --requeue --exclusive --mem=0
  [[ -z $account ]] || echo "#SBATCH --account=$account"
  [[ -z $partition ]] || echo "#SBATCH --partition=$partition"
  [[ -z $after ]] || printf '#SBATCH %s\n' "--dependency=afterok:$after" --kill-on-invalid-dep=yes
  for option in "${sbatch_options[@]}"; do echo "#SBATCH $option"; done
}

# The call of jobs/stage in a job's script; --run RUN, DECK and overrides follow it.
stage_command() {
  printf '%q ' exec "$here/stage" --ranks-per-node "$ranks_per_node" --retries "$retries" --mpi "$mpi"
}

# submit_script SCRIPT: prints the number of the job. Its options stand on the command line too, where no SBATCH_ variable
# of the environment replaces them.
submit_script() {
  command -v sbatch >/dev/null || fail "there is no sbatch here: this is not a Slurm machine (--dry-run prints the script)" 1
  sed -n 's/^#SBATCH //p' "$1" | xargs sh -c 'exec sbatch --parsable "$@" "$0"' "$1" | cut -d ';' -f 1 || return 1
}

# submit_stage DECK [override...]: a checked deck as a job; prints its number, or with --dry-run its script.
submit_stage() {
  local deck run script job
  deck=$(answer_of_program "$@" --print) || exit 2
  run=$(value_of run dir <<<"$deck")
  script=$(
    job_header "$(value_of run stage <<<"$deck")-$(basename "$run")" "$run" slurm-%j.out || exit
    printf '\n# Made by jobs/%s: in the folder of submission, the stage and what follows from how it ends.\n' "${0##*/}"
    printf 'cd %q\nexport BUILD=%q\n' "$PWD" "$BUILD"
    stage_command
    printf '%q ' --run "$run" "$@"
  ) || exit
  if $dry_run; then printf '%s\n' "$script" && return; fi
  mkdir -p "$run"
  printf '%s\n' "$script" >"$run/job.sbatch"
  job=$(submit_script "$run/job.sbatch") || exit 1
  record "$run" "job=$job submitted"
  echo "$job"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BUILD=${BUILD:-$(dirname "$here")/build}
export BUILD
[[ -x $BUILD/flanmoe ]] || fail "$BUILD/flanmoe is not there: build it with make build, or set BUILD to its folder"
