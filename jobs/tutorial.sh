#!/usr/bin/env bash
# The whole chain on 2 MPI ranks, for a small MoE model (expert-parallel) and its dense twin of equal work per token:
#   pretrain -> instruct -> evaluate, and one task finetuned with and without instruction tuning -> evaluate.
# Leaves runs/tutorial/{moe,dense}/STAGE, runs/tutorial/summary.json and runs/tutorial/report.svg. About 10 minutes on
# 2 cores. Run it again after an interruption: finished stages are skipped, a broken one goes on from its checkpoint.
#
#   jobs/tutorial.sh [--section.key=value ...]        overrides for every stage
#
# From the environment: PRETRAIN_STEPS, INSTRUCT_STEPS, FINETUNE_STEPS, TEST_EXAMPLES (of each task and variant),
# FINETUNE_TEST_EXAMPLES, RANKS, EXPERT_RANKS, BUILD (folder of the programs), DATA, RUNS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PRETRAIN_STEPS=${PRETRAIN_STEPS:-120}
INSTRUCT_STEPS=${INSTRUCT_STEPS:-320}
FINETUNE_STEPS=${FINETUNE_STEPS:-40}
TEST_EXAMPLES=${TEST_EXAMPLES:-40}
FINETUNE_TEST_EXAMPLES=${FINETUNE_TEST_EXAMPLES:-200}
RANKS=${RANKS:-2}
EXPERT_RANKS=${EXPERT_RANKS:-2}
BUILD=${BUILD:-build}
DATA=${DATA:-runs/tutorial/data}
RUNS=${RUNS:-runs/tutorial}

# Three tasks of three categories that no training sees; the finetuned task is one of them.
held_out="antonym package_section translate_french_english"
finetune_task=package_section

stages_of_model=8
total=$((2 + 2 * stages_of_model))
current=0
overrides=("$@")

# Open MPI: root may start ranks only when asked to; ranks may outnumber cores and are not bound to one; no warnings
# about what a small machine lacks (remote shells, the right to read another process's memory).
launch=(mpirun -n "$RANKS" --bind-to none --oversubscribe)
if [[ $(id -u) == 0 ]]; then launch+=(--allow-run-as-root); fi
export OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_plm_rsh_agent=sh
export OMPI_MCA_btl_base_warn_component_unused=0
# Where cores are shared, a rank that waits lets others compute.
export OMPI_MCA_mpi_yield_when_idle=1
# mpirun gives its ranks a terminal even when it writes to a file; say that there is none.
if [[ ! -t 1 ]]; then export TERM=dumb; fi

announce() {
  current=$((current + 1))
  printf '\n[%d/%d] %s\n' "$current" "$total" "$1"
}

# run_stage MODEL STAGE FOLDER overrides...: one call of the program. Exit code 75 means: stopped early with a
# checkpoint; the script ends with it, and running it again goes on.
run_stage() {
  local model=$1 stage=$2 folder=$3
  shift 3
  local twin=()
  if [[ $model == dense ]]; then twin=(--moe.router=none); fi
  local code=0
  "${launch[@]}" "$BUILD/flanmoe" input/tutorial.ini "--run.stage=$stage" "--run.dir=$RUNS/$model/$folder" \
    "--parallel.expert=$EXPERT_RANKS" "--data.tokenizer=$DATA/tokenizer.model" \
    "${twin[@]}" "$@" "${overrides[@]}" || code=$?
  if [[ $code == 75 ]]; then printf 'stopped early; run the same command again to go on\n' >&2; fi
  if [[ $code != 0 ]]; then exit "$code"; fi
}

# Instruction tasks have longer inputs and targets than the pieces of text of pretraining; relative positions allow it.
instruction_rows=(--batch.input_length=192 --batch.target_length=64 --evaluate.max_new_tokens=48
  "--evaluate.shards=$DATA/instruct/*.h5")

finetune() {  # MODEL FOLDER INIT
  run_stage "$1" finetune "$2" "${instruction_rows[@]}" "--run.init_from=$RUNS/$1/$3" \
    "--run.steps=$FINETUNE_STEPS" "--data.train=$DATA/instruct/$finetune_task.h5"
}

evaluate_task() {  # MODEL FOLDER INIT overrides...: the finetuned task only
  local model=$1 folder=$2 init=$3
  shift 3
  run_stage "$model" evaluate "$folder" "${instruction_rows[@]}" "--run.init_from=$RUNS/$model/$init" \
    "--evaluate.tasks=$finetune_task" "--evaluate.limit=$FINETUNE_TEST_EXAMPLES" "$@"
}

chain() {  # MODEL
  local model=$1
  announce "$model: pretrain on raw text (span corruption, $PRETRAIN_STEPS steps)"
  run_stage "$model" pretrain pretrain "--run.steps=$PRETRAIN_STEPS" "--data.train=$DATA/pretrain/*.h5"

  announce "$model: instruction tuning without $held_out ($INSTRUCT_STEPS steps)"
  run_stage "$model" instruct instruct "${instruction_rows[@]}" "--run.init_from=$RUNS/$model/pretrain" \
    "--run.steps=$INSTRUCT_STEPS" "--data.train=$DATA/instruct/*.h5" "--data.exclude_tasks=$held_out"

  announce "$model: baseline, the pretrained model ranks the choices of $finetune_task"
  evaluate_task "$model" evaluate_pretrain pretrain --evaluate.generate=false

  announce "$model: set-up ii, the instruction-tuned model on all tasks, zero- and few-shot"
  run_stage "$model" evaluate evaluate_instruct "${instruction_rows[@]}" "--run.init_from=$RUNS/$model/instruct" \
    "--evaluate.limit=$TEST_EXAMPLES" "--data.exclude_tasks=$held_out"

  announce "$model: set-up i, finetune the pretrained model on $finetune_task ($FINETUNE_STEPS steps)"
  finetune "$model" finetune_direct pretrain
  announce "$model: evaluate it"
  evaluate_task "$model" evaluate_direct finetune_direct

  announce "$model: set-up iii, finetune the instruction-tuned model on $finetune_task ($FINETUNE_STEPS steps)"
  finetune "$model" finetune_instructed instruct
  announce "$model: evaluate it"
  evaluate_task "$model" evaluate_instructed finetune_instructed
}

announce "data: tokenizer, text and instruction tasks from the files of Debian packages"
"$BUILD/flanmoe-tutorial-data" "$DATA"
chain moe
chain dense
announce "report"
"$BUILD/flanmoe-report" "$RUNS"
