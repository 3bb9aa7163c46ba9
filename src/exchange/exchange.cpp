#include "exchange/exchange.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/error.hpp"
#include "checkpoint/checkpoint.hpp"
#include "data/shard.hpp"
#include "evaluate/files.hpp"
#include "exchange/hf_config.hpp"
#include "exchange/safetensors.hpp"
#include "model/model.hpp"
#include "model/tensors.hpp"

namespace flanmoe {

namespace fs = std::filesystem;

namespace {

/// The sections of the resolved deck that say what the model is.
std::string model_sections(const Deck& deck) {
  const std::string all = print_deck(deck);
  std::string text;
  for (const char* section : {"[model]\n", "[moe]\n"}) {
    const std::size_t begin = all.find(section);
    const std::size_t end = all.find("\n[", begin);
    text += all.substr(begin, end == std::string::npos ? end : end + 1 - begin);
  }
  return text;
}

/// Columns (or rows) [0, count) of `from` to `to`; those that `from` does not have repeat the one of padding.
void copy_pieces(const Tensor& to, const Tensor& from, bool by_row) {
  for (std::int64_t i = 0; i < to.rows; ++i) {
    const std::int64_t row = by_row && i >= from.rows ? kPad : i;
    for (std::int64_t j = 0; j < to.cols; ++j) {
      to.row<float>(i)[j] = from.row<float>(row)[!by_row && j >= from.cols ? kPad : j];
    }
  }
}

/// Reads matrices of the model, with another number of pieces than there.
class Resized {
 public:
  Resized(const ForeignModel& model, const Deck& deck) : model_(model) {
    const ModelTensors<int> tensors = model_tensors(deck.model, deck.moe);
    embedding_ = tensors.embedding_VD;
    logits_ = deck.model.tied_logits ? -1 : tensors.logits_DV;
  }
  void read(int parameter, std::int64_t expert, const Tensor& matrix) {
    const ParameterSpec& there = model_.specs()[std::size_t(parameter)];
    if (there.rows == matrix.rows && there.cols == matrix.cols) return model_.read(parameter, expert, matrix);
    FLANMOE_EXPECT(parameter == embedding_ || parameter == logits_, "{} changes its size", there.name);
    values_.resize(std::size_t(there.matrix_size()));
    const Tensor stored = make_tensor(values_.data(), there.rows, there.cols);
    model_.read(parameter, expert, stored);
    copy_pieces(matrix, stored, parameter == embedding_);
  }

 private:
  const ForeignModel& model_;
  int embedding_ = -1, logits_ = -1;
  std::vector<float> values_;
};

/// A new folder that appears when it is complete.
class NewFolder {
 public:
  explicit NewFolder(std::string path) : path_(std::move(path)), aside_(path_ + ".writing") {
    while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
    aside_ = path_ + ".writing";
    if (fs::exists(path_)) fail("{}: exists already; expected the name of a new folder", path_);
    fs::remove_all(aside_);
    fs::create_directories(aside_);
  }
  ~NewFolder() {
    std::error_code ignored;
    fs::remove_all(aside_, ignored);
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  std::string file(const std::string& name) const { return (fs::path(aside_) / name).string(); }
  void publish() const { fs::rename(aside_, path_); }

 private:
  std::string path_, aside_;
};

std::string checkpoint_of(const std::string& from) {
  if (fs::exists(fs::path(from) / "checkpoint.h5")) return from;
  if (const auto newest = newest_checkpoint(from)) return *newest;
  fail("{}: expected a checkpoint folder or a run folder that has one", from);
}

}  // namespace

std::string import_model(const ForeignModel& model, const std::string& run_dir, const ImportOptions& options) {
  Deck deck = model.deck();
  if (options.vocabulary > 0) deck.model.vocabulary = options.vocabulary;
  const std::vector<ParameterSpec> specs = model_parameters(deck.model, deck.moe);
  Resized source(model, deck);
  const CheckpointInfo info{0, 0, print_deck(deck), options.tokenizer_fingerprint};
  const std::string folder = write_weights(
      run_dir, info, specs,
      [&](int parameter, std::int64_t expert, const Tensor& matrix) { source.read(parameter, expert, matrix); });
  publish_text_file((fs::path(run_dir) / "deck.ini").string(), model_sections(deck));
  return folder;
}

void export_hf(const std::string& from, const std::string& folder, const ExportOptions& options) {
  const std::string checkpoint = checkpoint_of(from);
  const Deck deck = parse_deck_text(checkpoint + ": its deck", read_checkpoint_info(checkpoint).deck, {});
  const nlohmann::json config = config_of_deck(deck, options.bf16);
  const ElementType type = options.bf16 ? ElementType::bf16 : ElementType::f32;
  const std::vector<TensorPlace> places = hf_layout(deck);
  std::vector<SafetensorsWriter::Entry> entries;
  for (const TensorPlace& place : places) entries.push_back({place.name, place.shape});
  const std::vector<ShardPlan> shards = plan_shards(entries, type, options.shard_bytes);

  const NewFolder aside(folder);
  publish_text_file(aside.file("config.json"), config.dump(2) + "\n");
  std::optional<SafetensorsWriter> writer;
  std::size_t shard = 0, in_shard = 0, next = 0;
  std::vector<float> turned;
  visit_weights(checkpoint, model_parameters(deck.model, deck.moe),
                [&](int parameter, std::int64_t expert, const Tensor& matrix) {
                  const TensorPlace& place = places[next++];
                  FLANMOE_EXPECT(place.parameter == parameter && place.expert == expert, "{} is out of order",
                                 place.name);
                  if (!writer) writer.emplace(aside.file(shards[shard].file), shards[shard].entries, type);
                  std::span<const float> values = matrix.flat<float>();
                  if (place.transposed) {
                    turned.resize(values.size());
                    transpose(turned, values, matrix.rows, matrix.cols);
                    values = turned;
                  }
                  writer->add(place.name, values);
                  if (++in_shard < shards[shard].entries.size()) return;
                  writer->close();
                  writer.reset();
                  ++shard;
                  in_shard = 0;
                });
  if (shards.size() > 1) publish_text_file(aside.file("model.safetensors.index.json"), index_text(shards, type));
  aside.publish();
}

}  // namespace flanmoe
