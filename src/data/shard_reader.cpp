#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

#include "data/block_table.hpp"
#include "data/shard_format.hpp"

namespace flanmoe {
namespace {

using namespace shard_format;

// What HDF5 keeps of a file's own structures.
constexpr std::size_t kLeastAddressBytes = std::size_t(64) << 10, kMostAddressBytes = std::size_t(2) << 20;

H5File open_file(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail("shard {}: cannot be opened: {}", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("shard {}: is not a regular file", path);
  const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
  H5Eclear2(H5E_DEFAULT);
  if (is_hdf5 <= 0) fail("shard {}: is not an HDF5 file ({} bytes)", path, status.st_size);
  const H5Property access(H5Pcreate(H5P_FILE_ACCESS), path);
  // HDF5 would keep up to 32 MiB of chunk addresses of a large file.
  H5AC_cache_config_t cache{};
  cache.version = H5AC__CURR_CACHE_CONFIG_VERSION;
  h5_check(H5Pget_mdc_config(access.get(), &cache), path);
  cache.set_initial_size = true;
  cache.initial_size = cache.min_size = kLeastAddressBytes;
  cache.max_size = kMostAddressBytes;
  h5_check(H5Pset_mdc_config(access.get(), &cache), path);
  // Readers never write, and some parallel file systems have no locks.
  h5_check(H5Pset_file_locking(access.get(), false, true), path);
  return {H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()),
          fmt::format("shard {}: cannot be opened ({} bytes; truncated or damaged)", path, status.st_size)};
}

/// Changes when another file comes in its place.
std::string identity_of_file(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail("shard {}: cannot be opened: {}", path, std::strerror(errno));
  return fmt::format("{}:{} {} {}.{:09}", std::int64_t(status.st_dev), std::int64_t(status.st_ino),
                     std::int64_t(status.st_size), std::int64_t(status.st_mtim.tv_sec),
                     std::int64_t(status.st_mtim.tv_nsec));
}

std::vector<GroupRecord> read_groups(hid_t file, const std::string& where) {
  const std::string what = where + ": table 'groups'";
  const H5Dataset dataset(H5Dopen2(file, "groups", H5P_DEFAULT), what);
  const H5Space space(H5Dget_space(dataset.get()), what);
  std::vector<GroupRecord> groups(std::size_t(H5Sget_simple_extent_npoints(space.get())));
  const H5Type memory = group_type();
  h5_check(H5Dread(dataset.get(), memory.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, groups.data()), what);
  return groups;
}

void check_groups(const Header& header, const std::string& where) {
  std::int64_t examples = 0;
  for (const GroupRecord& g : header.groups) {
    const bool known = g.task >= 0 && std::size_t(g.task) < header.names_of[task].size() && g.split >= 0 &&
                       std::size_t(g.split) < header.names_of[split].size();
    if (!known || g.examples <= 0 || g.stream_tokens < g.examples) fail("{}: table 'groups' is inconsistent", where);
    examples += g.examples;
  }
  if (examples != header.examples) {
    fail("{}: table 'groups' counts {} examples, the header says {}", where, examples, header.examples);
  }
}

Header read_header(hid_t file, const std::string& where) {
  const htri_t has_format = H5Aexists(file, "format");
  H5Eclear2(H5E_DEFAULT);
  if (has_format <= 0 || read_text_attribute(file, "format", where) != kFormat) {
    fail("{}: is an HDF5 file but not a {}", where, kFormat);
  }
  const std::int64_t version = read_integer_attribute(file, "format_version", where);
  if (version < kOldestVersion || version > kVersion) {
    fail("{}: has format version {}, this program reads versions {} to {}", where, version, kOldestVersion, kVersion);
  }
  const auto integer = [&](const char* name) { return read_integer_attribute(file, name, where); };
  Header header;
  header.version = version;
  header.tokenizer.fingerprint = read_text_attribute(file, "tokenizer_fingerprint", where);
  header.tokenizer.vocabulary = std::int32_t(integer("tokenizer_vocabulary"));
  header.tokenizer.pad = std::int32_t(integer("tokenizer_pad"));
  header.tokenizer.eos = std::int32_t(integer("tokenizer_eos"));
  header.tokenizer.unknown = std::int32_t(integer("tokenizer_unknown"));
  header.tokenizer.sentinels = std::int32_t(integer("tokenizer_sentinels"));
  header.examples = integer("examples");
  header.tokens = integer("tokens");
  header.choices = integer("choices");
  header.choice_tokens = integer("choice_tokens");
  header.answer_bytes = integer("answer_bytes");
  for (std::size_t n = 0; n < names; ++n) header.names_of[n] = read_names(file, kNameTables[n], where);
  const std::size_t tasks = header.names_of[Name::task].size();
  header.task_infos = version >= 2 ? read_task_infos(file, tasks, where) : std::vector<TaskInfo>(tasks);
  header.groups = read_groups(file, where);
  const auto expected = std::uint32_t(integer("header_crc32"));
  if (header.crc32() != expected) {
    fail("{}: the header is damaged: its checksum is {:08x}, the file says {:08x}", where, header.crc32(), expected);
  }
  check_groups(header, where);
  return header;
}

/// [first, first+count) must lie in [0, size).
bool inside(std::int64_t first, std::int64_t count, std::int64_t size) {
  return first >= 0 && count >= 0 && first <= size && count <= size - first;
}

}  // namespace

struct ShardReader::State final : ClosableFile {
  std::string path, where;
  std::shared_ptr<BlockPool> pool;
  std::string identity;
  H5File file;
  Header header;
  std::vector<ShardGroup> groups;
  std::vector<std::int64_t> group_first;  // into the index
  H5Type example_memory = example_type(), choice_memory = choice_type(), index_memory = index_type();
  BlockTable<ExampleRecord> examples;
  BlockTable<std::int32_t> tokens, choice_tokens;
  BlockTable<ChoiceRecord> choices;
  BlockTable<std::uint8_t> answers;
  BlockTable<IndexRecord> index;

  State(const std::string& shard_path, std::shared_ptr<BlockPool> blocks);
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() override {
    const std::lock_guard lock(hdf5_mutex());
    pool->files().forget(this);
    answers = {};
    choices = {};
    choice_tokens = {};
    index = {};
    examples = {};
    tokens = {};
    file.reset();
  }

  /// The file, opened again where it was closed; under hdf5_mutex().
  hid_t open() {
    if (!file) {
      H5File opened = open_file(path);
      if (identity_of_file(path) != identity) fail("{}: was changed while it was being read", where);
      file = std::move(opened);
    }
    pool->files().use(this);
    return file.get();
  }
  void close() override {
    answers.close();
    choices.close();
    choice_tokens.close();
    index.close();
    examples.close();
    tokens.close();
    file.reset();
  }
  void check_examples(std::int64_t first, std::span<const ExampleRecord> block) const;
  void check_vocabulary(const char* table, std::int64_t first, std::span<const std::int32_t> block);
  std::int64_t example_of_token(std::int64_t position);
  ExampleRecord example(std::int64_t i) {
    FLANMOE_EXPECT(i >= 0 && i < header.examples, "{}: example {} of {}", where, i, header.examples);
    return examples.at(i);
  }
  const std::string& name(std::int64_t i, Name n) {
    return header.names_of[std::size_t(n)][std::size_t(example(i).name[std::size_t(n)])];
  }
  IndexRecord member(std::int64_t g, std::int64_t k) {
    FLANMOE_EXPECT(g >= 0 && g < std::int64_t(groups.size()) && k >= 0 && k < groups[std::size_t(g)].examples,
                   "{}: member {} of group {}", where, k, g);
    return index.at(group_first[std::size_t(g)] + k);
  }
};

ShardReader::State::State(const std::string& shard_path, std::shared_ptr<BlockPool> blocks)
    : path(shard_path),
      where("shard " + shard_path),
      pool(std::move(blocks)),
      identity(identity_of_file(path)),
      file(open_file(path)) {
  header = read_header(file.get(), where);
  std::int64_t first = 0;
  for (const GroupRecord& g : header.groups) {
    groups.push_back({header.names_of[Name::task][std::size_t(g.task)],
                      header.names_of[Name::split][std::size_t(g.split)], g.has_target != 0, g.examples,
                      g.stream_tokens});
    group_first.push_back(first);
    first += g.examples;
  }
  const hid_t id = file.get();
  const auto open_again = [this] { return open(); };
  examples = {id,
              where,
              "examples",
              example_memory.get(),
              header.examples,
              *pool,
              open_again,
              [this](std::int64_t at, std::span<const ExampleRecord> block) { check_examples(at, block); }};
  tokens = {id,
            where,
            "tokens",
            H5T_NATIVE_INT32,
            header.tokens,
            *pool,
            open_again,
            [this](std::int64_t at, std::span<const std::int32_t> block) { check_vocabulary("tokens", at, block); }};
  index = {id,
           where,
           "index",
           index_memory.get(),
           header.examples,
           *pool,
           open_again,
           [this](std::int64_t at, std::span<const IndexRecord> block) {
             for (const IndexRecord& r : block) {
               if (!inside(r.example, 1, header.examples) || r.stream_first < 0) {
                 fail("{}: table 'index', element {}, is inconsistent", where, at + (&r - block.data()));
               }
             }
           }};
  choices = {id,
             where,
             "choices",
             choice_memory.get(),
             header.choices,
             *pool,
             open_again,
             [this](std::int64_t at, std::span<const ChoiceRecord> block) {
               for (const ChoiceRecord& r : block) {
                 if (!inside(r.token_first, r.length, header.choice_tokens)) {
                   fail("{}: table 'choices', element {}, is inconsistent", where, at + (&r - block.data()));
                 }
               }
             }};
  choice_tokens = {
      id,
      where,
      "choice_tokens",
      H5T_NATIVE_INT32,
      header.choice_tokens,
      *pool,
      open_again,
      [this](std::int64_t at, std::span<const std::int32_t> block) { check_vocabulary("choice_tokens", at, block); }};
  answers = {id, where, "answers", H5T_NATIVE_UINT8, header.answer_bytes, *pool, open_again, nullptr};
  pool->files().use(this);  // last: a shard that is refused leaves nothing there
}

void ShardReader::State::check_examples(std::int64_t first, std::span<const ExampleRecord> block) const {
  for (std::size_t i = 0; i < block.size(); ++i) {
    const ExampleRecord& r = block[i];
    const char* wrong = nullptr;
    if (r.input_length < 0 || r.target_length < 0 ||
        !inside(r.token_first, std::int64_t(r.input_length) + r.target_length, header.tokens)) {
      wrong = "its tokens lie outside the token table";
    } else if (i > 0 &&
               r.token_first != block[i - 1].token_first + block[i - 1].input_length + block[i - 1].target_length) {
      wrong = "its tokens do not follow those of the example before";
    } else if (!inside(r.choice_first, r.choices, header.choices) ||
               (r.choices == 0 ? r.gold != -1 : !inside(r.gold, 1, r.choices))) {
      wrong = "its choices are inconsistent";
    } else if (!inside(r.answer_first, r.answer_bytes, header.answer_bytes)) {
      wrong = "its answer lies outside the answer table";
    }
    for (std::size_t n = 0; n < names; ++n) {
      if (!inside(r.name[n], 1, std::int64_t(header.names_of[n].size()))) wrong = "a name id is outside its table";
    }
    if (wrong != nullptr) fail("{}: table 'examples', example {}: {}", where, first + std::int64_t(i), wrong);
  }
}

/// The example whose tokens cover a position (binary search).
std::int64_t ShardReader::State::example_of_token(std::int64_t position) {
  std::int64_t low = 0, high = header.examples;
  while (high - low > 1) {
    const std::int64_t middle = std::midpoint(low, high);
    (examples.at(middle).token_first <= position ? low : high) = middle;
  }
  return low;
}

void ShardReader::State::check_vocabulary(const char* table, std::int64_t first, std::span<const std::int32_t> block) {
  const auto vocabulary = std::uint32_t(header.tokenizer.vocabulary);
  const auto bad =
      std::find_if(block.begin(), block.end(), [&](std::int32_t id) { return std::uint32_t(id) >= vocabulary; });
  if (bad == block.end()) return;
  const std::int64_t at = first + (bad - block.begin());
  const std::string example =
      std::string_view(table) == "tokens" ? fmt::format(" (example {})", example_of_token(at)) : "";
  fail("{}: table '{}', element {}{}: token {} is outside the vocabulary [0, {})", where, table, at, example, *bad,
       vocabulary);
}

ShardReader::ShardReader(const std::string& path, std::shared_ptr<BlockPool> pool) {
  const std::lock_guard lock(hdf5_mutex());
  state_ = std::make_unique<State>(path, pool ? std::move(pool) : std::make_shared<BlockPool>(kBlockBytes));
}
ShardReader::~ShardReader() = default;
ShardReader::ShardReader(ShardReader&&) noexcept = default;
ShardReader& ShardReader::operator=(ShardReader&&) noexcept = default;

const std::string& ShardReader::path() const { return state_->path; }
const TokenizerIdentity& ShardReader::tokenizer() const { return state_->header.tokenizer; }
std::int64_t ShardReader::size() const { return state_->header.examples; }
std::int64_t ShardReader::input_length(std::int64_t i) const { return state_->example(i).input_length; }
std::int64_t ShardReader::target_length(std::int64_t i) const { return state_->example(i).target_length; }
bool ShardReader::has_target(std::int64_t i) const { return state_->example(i).has_target != 0; }
const std::string& ShardReader::task(std::int64_t i) const { return state_->name(i, Name::task); }
const std::string& ShardReader::split(std::int64_t i) const { return state_->name(i, Name::split); }
const std::string& ShardReader::variant(std::int64_t i) const { return state_->name(i, Name::variant); }
const std::string& ShardReader::category(std::int64_t i) const { return state_->name(i, Name::category); }
const std::string& ShardReader::template_name(std::int64_t i) const { return state_->name(i, Name::template_name); }
const TaskInfo& ShardReader::task_info(std::int64_t i) const {
  return state_->header.task_infos[std::size_t(state_->example(i).name[Name::task])];
}
std::int64_t ShardReader::total_tokens() const { return state_->header.tokens; }
std::int64_t ShardReader::token_offset(std::int64_t i) const { return state_->example(i).token_first; }
const std::vector<ShardGroup>& ShardReader::groups() const { return state_->groups; }
std::int64_t ShardReader::group_example(std::int64_t g, std::int64_t k) const { return state_->member(g, k).example; }
std::int64_t ShardReader::group_stream_first(std::int64_t g, std::int64_t k) const {
  return state_->member(g, k).stream_first;
}

Example ShardReader::read(std::int64_t i) const {
  State& s = *state_;
  const ExampleRecord r = s.example(i);
  Example example;
  example.input.resize(std::size_t(r.input_length));
  example.target.resize(std::size_t(r.target_length));
  s.tokens.copy(r.token_first, example.input);
  s.tokens.copy(r.token_first + r.input_length, example.target);
  example.has_target = r.has_target != 0;
  example.task = s.name(i, Name::task);
  example.category = s.name(i, Name::category);
  example.template_name = s.name(i, Name::template_name);
  example.variant = s.name(i, Name::variant);
  example.split = s.name(i, Name::split);
  for (std::int64_t c = r.choice_first; c < r.choice_first + r.choices; ++c) {
    const ChoiceRecord choice = s.choices.at(c);
    example.choices.emplace_back(std::size_t(choice.length));
    example.choice_bytes.push_back(choice.bytes);
    s.choice_tokens.copy(choice.token_first, example.choices.back());
  }
  example.gold = r.gold;
  std::vector<std::uint8_t> answer(std::size_t(r.answer_bytes));
  s.answers.copy(r.answer_first, answer);
  const auto answer_end = std::find(answer.begin(), answer.end(), 0);
  example.answer.assign(answer.begin(), answer_end);
  for (auto at = answer_end; at != answer.end();) {
    const auto next = std::find(at + 1, answer.end(), 0);
    example.more_answers.emplace_back(at + 1, next);
    at = next;
  }
  return example;
}

void ShardReader::read_tokens(std::int64_t first, std::span<std::int32_t> out) const {
  const auto count = std::int64_t(out.size());
  if (!inside(first, count, state_->header.tokens)) {
    fail("{}: tokens [{}, {}) of {} were asked for", state_->where, first, first + count, state_->header.tokens);
  }
  state_->tokens.copy(first, out);
}

}  // namespace flanmoe
