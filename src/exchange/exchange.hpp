// Checkpoints of other programs to flanmoe's and back. One process, no MPI; one matrix in memory at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "deck/deck.hpp"
#include "exchange/layout.hpp"
#include "exchange/tensor_source.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// A model in files of another program. Made only when every tensor of the deck's model is there, with its shape, and
/// no other: otherwise the constructor throws Error that names file and tensor.
class ForeignModel {
 public:
  ForeignModel(Deck deck, std::vector<TensorPlace> places, std::unique_ptr<TensorSource> source,
               const std::string& path);

  const Deck& deck() const { return deck_; }
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  /// Fills `matrix` (fp32, contiguous) with a matrix of a parameter, exactly.
  void read(int parameter, std::int64_t expert, const Tensor& matrix) const;

 private:
  void check_names(const std::string& path) const;
  void check_aliases() const;
  Deck deck_;
  std::vector<ParameterSpec> specs_;
  std::vector<TensorPlace> places_;
  std::vector<std::size_t> first_place_;  // [parameter]
  std::unique_ptr<TensorSource> source_;
};

/// A folder of transformers: config.json with safetensors. T5 (1.0 and 1.1, Flan-T5) or SwitchTransformers.
ForeignModel open_hf(const std::string& folder);
/// Other tensors of the same names and shapes (gradients), in a safetensors file or folder of their own.
ForeignModel open_hf_tensors(const std::string& config_path, const std::string& path);
/// A T5X checkpoint in one msgpack file.
ForeignModel open_t5x(const std::string& path);

struct ImportOptions {
  std::int64_t vocabulary = 0;        // rows of the embedding table here; 0: as there
  std::string tokenizer_fingerprint;  // of the tokenizer the model was trained with; "" when unknown
};
/// Writes RUN/checkpoints/step-00000000 (weights alone) and RUN/deck.ini (sections [model] and [moe]); the run folder
/// must not have checkpoints. Returns the checkpoint's folder.
/// A larger vocabulary repeats the embedding (and logits) of padding in the new rows, which no training target uses, so
/// that new pieces are as unlikely as padding; a smaller one leaves out the last rows.
std::string import_model(const ForeignModel& model, const std::string& run_dir, const ImportOptions& options);

struct ExportOptions {
  bool bf16 = false;
  std::uint64_t shard_bytes = 5'000'000'000;
};
/// Writes a new folder with config.json and safetensors from a checkpoint folder, or the newest checkpoint of a run
/// folder. It appears by one rename. Throws Error when transformers has no such model.
void export_hf(const std::string& from, const std::string& folder, const ExportOptions& options);

}  // namespace flanmoe
