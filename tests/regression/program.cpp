#include "regression/program.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "checkpoint/checkpoint.hpp"
#include "data/shard.hpp"

namespace flanmoe::regression {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

/// Variables of a launcher or batch system around this test must not reach the program.
std::vector<std::string> environment_of_program(const Words& more) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    const auto begins = [&](const char* prefix) { return text.starts_with(prefix); };
    const bool setting = begins("OMPI_MCA_") || begins("OMPI_ALLOW_");  // of Open MPI, by whoever runs the tests
    const bool job = begins("OMPI_") || begins("PMIX_") || begins("PMI_") || begins("SLURM_");
    if (setting || !job) variables.push_back(text);
  }
  variables.insert(variables.end(), more.begin(), more.end());
  return variables;
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

herr_t collect_dataset(hid_t, const char* name, const H5O_info_t* info, void* out) {
  if (info->type == H5O_TYPE_DATASET) static_cast<std::vector<std::string>*>(out)->push_back(name);
  return 0;
}

/// Raw bytes by name of all datasets under weights/ and optimizer/.
std::map<std::string, std::string> tensors_of(const std::string& checkpoint) {
  const std::string path = checkpoint + "/checkpoint.h5";
  const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), path);
  std::vector<std::string> names;
  h5_check(H5Ovisit2(file.get(), H5_INDEX_NAME, H5_ITER_INC, collect_dataset, &names, H5O_INFO_BASIC), path);
  std::map<std::string, std::string> tensors;
  for (const std::string& name : names) {
    if (!name.starts_with("weights/") && !name.starts_with("optimizer/")) continue;
    const H5Dataset dataset(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), name);
    const H5Type type(H5Dget_type(dataset.get()), name);
    const H5Space space(H5Dget_space(dataset.get()), name);
    std::string bytes(std::size_t(H5Sget_simple_extent_npoints(space.get())) * H5Tget_size(type.get()), '\0');
    h5_check(H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()), name);
    tensors[name] = std::move(bytes);
  }
  return tensors;
}

nlohmann::json without_times(nlohmann::json record) {
  for (const char* key : {"tokens_per_second", "step_seconds"}) record.erase(key);
  return record;
}

TokenizerIdentity toy_tokenizer() {
  TokenizerIdentity tokenizer;
  tokenizer.fingerprint = "toy";
  tokenizer.vocabulary = 256;
  return tokenizer;
}

}  // namespace

Program::Program(int ranks, const Words& words, const Words& environment) : ranks_(ranks) {
  output_path_ = (fs::temp_directory_path() / "flanmoe_output_XXXXXX").string();
  const int file = mkstemp(output_path_.data());
  std::vector<std::string> command = ranks > 0 ? words_of(FLANMOE_LAUNCHER) : Words{};
  if (ranks > 0) {  // each rank leaves its process number in a file and then becomes the program
    command.insert(command.end(), {"-n", std::to_string(ranks), "sh", "-c",
                                   "echo $$ >\"$0.$OMPI_COMM_WORLD_RANK\"; exec \"$@\"", output_path_});
  }
  command.emplace_back(FLANMOE_PROGRAM);
  command.insert(command.end(), words.begin(), words.end());
  std::vector<std::string> variables = environment_of_program(environment);
  const std::vector<char*> arguments = pointers_to(command), environment_pointers = pointers_to(variables);
  prctl(PR_SET_CHILD_SUBREAPER, 1);  // ranks that outlive their launcher become children of this process
  process_ = fork();
  if (process_ == 0) {
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execvpe(arguments.front(), arguments.data(), environment_pointers.data());
    _exit(127);
  }
  close(file);
}

Program::~Program() {
  if (running()) kill_all();
  fs::remove(output_path_);
  for (int rank = 0; rank < ranks_; ++rank) fs::remove(fmt::format("{}.{}", output_path_, rank));
}

bool Program::running() {
  if (!ended_) ended_ = waitpid(process_, &status_, WNOHANG) == process_;
  return !ended_;
}

int Program::wait() {
  if (!ended_) ended_ = waitpid(process_, &status_, 0) == process_;
  return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
}

std::string Program::output() const { return text_of(output_path_); }

pid_t Program::process_of_rank(int rank) const {
  pid_t process = 0;
  std::ifstream(fmt::format("{}.{}", output_path_, rank)) >> process;
  return process;
}

void Program::kill_all() {
  kill(process_, SIGKILL);
  for (int rank = 0; rank < ranks_; ++rank) {
    if (const pid_t process = process_of_rank(rank); process > 0) kill(process, SIGKILL);
  }
  wait();
  for (int rank = 0; rank < ranks_; ++rank) {
    if (const pid_t process = process_of_rank(rank); process > 0) waitpid(process, nullptr, 0);
  }
}

Ended run(int ranks, const Words& words, const Words& environment) {
  Program program(ranks, words, environment);
  const int code = program.wait();
  return {code, program.output()};
}

std::string write_pairs(const Workplace& workplace) {
  const std::string path = workplace.path("pairs.h5");
  ShardWriter writer(path, toy_tokenizer());
  for (int i = 0; i < 600; ++i) {
    Example example;
    const int key = i % 16;
    example.task = key % 2 == 0 ? "even" : "odd";
    example.split = "train";
    example.variant = "zero_shot";
    example.input = {10 + key};
    for (int j = 0; j < 3 + i % 9; ++j) example.input.push_back(100 + (i * 31 + j * 17) % 50);
    for (int j = 0; j < 2 + key % 5; ++j) example.target.push_back(30 + (key * 7 + j * 5) % 64);
    writer.add(example);
  }
  writer.finish();
  return path;
}

std::string write_text(const Workplace& workplace) {
  const std::string path = workplace.path("text.h5");
  ShardWriter writer(path, toy_tokenizer());
  for (int i = 0; i < 200; ++i) {
    Example example;
    example.task = "text";
    example.split = "train";
    example.variant = "text";
    example.has_target = false;
    for (int j = 0; j < 40 + (i * 7) % 90; ++j) example.input.push_back(3 + (i * 13 + j) % 120);
    writer.add(example);
  }
  writer.finish();
  return path;
}

Words with(Words words, const Words& more) {
  for (const std::string& word : more) {
    const std::string key = word.substr(0, word.find('=') + 1);
    std::erase_if(words, [&](const std::string& earlier) { return !key.empty() && earlier.starts_with(key); });
    words.push_back(word);
  }
  return words;
}

Words smoke(const std::string& shard, const std::string& run_dir, const Words& more) {
  return with({FLANMOE_SMOKE_DECK, "--data.train=" + shard, "--run.dir=" + run_dir, "--run.watchdog_seconds=60",
               "--run.threads=1"},
              more);
}

Words smoke_palm(const std::string& shard, const std::string& run_dir, const Words& more) {
  Words words = smoke(shard, run_dir, more);
  words.front() = FLANMOE_PALM_DECK;
  return words;
}

std::vector<nlohmann::json> metrics_of(const std::string& run_dir) {
  std::vector<nlohmann::json> records;
  std::ifstream in(run_dir + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) records.push_back(nlohmann::json::parse(line));
  return records;
}

std::int64_t count_lines(const std::string& path) {
  const std::string text = text_of(path);
  return std::count(text.begin(), text.end(), '\n');
}

nlohmann::json summary_of(const std::string& run_dir) {
  return nlohmann::json::parse(text_of(run_dir + "/summary.json"));
}

std::string newest_of(const std::string& run_dir) { return newest_checkpoint(run_dir).value_or(""); }

std::string difference_of_checkpoints(const std::string& a, const std::string& b) {
  const auto tensors_a = tensors_of(a), tensors_b = tensors_of(b);
  if (tensors_a.empty()) return a + " has no tensors";
  for (const auto& [name, bytes] : tensors_a) {
    const auto other = tensors_b.find(name);
    if (other == tensors_b.end()) return fmt::format("{} has no {}", b, name);
    if (other->second != bytes) return fmt::format("{} differs", name);
  }
  return tensors_a.size() == tensors_b.size() ? "" : b + " has more tensors than " + a;
}

std::vector<std::string> different_tensors(const std::string& a, const std::string& b, const std::string& prefix) {
  const auto tensors_a = tensors_of(a), tensors_b = tensors_of(b);
  std::vector<std::string> names;
  for (const auto& [name, bytes] : tensors_a) {
    const auto other = tensors_b.find(name);
    if (name.starts_with(prefix) && (other == tensors_b.end() || other->second != bytes)) names.push_back(name);
  }
  return names;
}

std::string difference_of_metrics(const std::string& run_a, const std::string& run_b) {
  const auto a = metrics_of(run_a), b = metrics_of(run_b);
  if (a.empty()) return run_a + " has no metrics";
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (without_times(a[i]) != without_times(b[i])) {
      return fmt::format("line {}:\n  {}\n  {}", i + 1, a[i].dump(), b[i].dump());
    }
  }
  return a.size() == b.size() ? "" : fmt::format("{} and {} lines", a.size(), b.size());
}

}  // namespace flanmoe::regression
