// flanmoe-convert: checkpoints of other programs to flanmoe's, and back.
#include <boost/program_options.hpp>
#include <filesystem>
#include <iostream>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "base/tool.hpp"
#include "data/tokenizer.hpp"
#include "exchange/exchange.hpp"

namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "usage: flanmoe-convert from-hf FOLDER RUN [--vocabulary N] [--tokenizer MODEL]\n"
    "       flanmoe-convert from-t5x FILE RUN [--vocabulary N] [--tokenizer MODEL]\n"
    "       flanmoe-convert to-hf FROM FOLDER [--bf16] [--shard-megabytes N]\n\n"
    "from-hf reads a folder of transformers: config.json with safetensors, in one file or several; T5, Flan-T5 and\n"
    "SwitchTransformers. from-t5x reads a T5X checkpoint in one msgpack file. Both make a run folder RUN with a "
    "checkpoint\n"
    "for run.init_from, and RUN/deck.ini with the model's keys. to-hf writes a new FOLDER for transformers from a\n"
    "checkpoint folder, or from a run folder's newest checkpoint. Weights keep every bit, except with --bf16.\n\n"
    "Options";

struct Options {
  std::string command, from, to, tokenizer;
  std::int64_t vocabulary = 0, shard_megabytes = 5000;
  bool bf16 = false;
};

void refuse_for(const po::variables_map& values, const std::string& command, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (values.contains(name) && !values[name].defaulted())
      flanmoe::usage_fail("--{}: {} has no such option", name, command);
  }
}

void import(const flanmoe::ForeignModel& model, const Options& options) {
  flanmoe::ImportOptions import_options{options.vocabulary, ""};
  if (!options.tokenizer.empty()) {
    const flanmoe::TokenizerIdentity identity = flanmoe::Tokenizer(options.tokenizer).identity();
    import_options.tokenizer_fingerprint = identity.fingerprint;
  }
  const std::string checkpoint = flanmoe::import_model(model, options.to, import_options);
  std::int64_t parameters = 0;
  for (const auto& spec : model.specs()) parameters += spec.global_size();
  fmt::print("{} parameters read from {}; written: {}, {}/deck.ini\n", parameters, options.from, checkpoint,
             options.to);
}

void convert(const Options& options) {
  if (options.command == "from-hf") {
    import(flanmoe::open_hf(options.from), options);
  } else if (options.command == "from-t5x") {
    import(flanmoe::open_t5x(options.from), options);
  } else {
    flanmoe::export_hf(options.from, options.to, {options.bf16, std::uint64_t(options.shard_megabytes) * 1'000'000});
    fmt::print("written: {}\n", options.to);
  }
}

int run(int argc, char** argv) {
  Options options;
  po::options_description shown(kUsage), all;
  shown.add_options()("help", "show this text")("vocabulary", po::value(&options.vocabulary),
                                                "rows of the embedding table here: the last rows are left out, or new "
                                                "ones repeat the row of padding")(
      "tokenizer", po::value(&options.tokenizer),
      "SentencePiece model that the weights were trained with; runs then refuse data of another one")(
      "bf16", po::bool_switch(&options.bf16), "write bf16 (rounded to nearest) instead of fp32")(
      "shard-megabytes", po::value(&options.shard_megabytes)->default_value(options.shard_megabytes),
      "largest file, in 10^6 bytes; a larger tensor has a file of its own");
  all.add(shown).add_options()("command", po::value(&options.command))("from", po::value(&options.from))(
      "to", po::value(&options.to));
  po::positional_options_description positional;
  positional.add("command", 1).add("from", 1).add("to", 1);
  po::variables_map values;
  po::store(po::command_line_parser(argc, argv).options(all).positional(positional).run(), values);
  if (values.contains("help")) {
    std::cout << shown;
    return 0;
  }
  po::notify(values);
  const bool imports = options.command == "from-hf" || options.command == "from-t5x";
  if ((!imports && options.command != "to-hf") || options.to.empty()) {
    flanmoe::usage_fail("expected from-hf, from-t5x or to-hf, and two paths (see --help)");
  }
  if (imports) refuse_for(values, options.command, {"bf16", "shard-megabytes"});
  if (!imports) refuse_for(values, options.command, {"vocabulary", "tokenizer"});
  if (options.shard_megabytes < 1) flanmoe::usage_fail("--shard-megabytes: expected at least 1");
  if (values.contains("vocabulary") && options.vocabulary < 8) flanmoe::usage_fail("--vocabulary: expected at least 8");
  convert(options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  flanmoe::silence_hdf5();
  return flanmoe::run_tool("flanmoe-convert", [&] { return run(argc, argv); });
}
