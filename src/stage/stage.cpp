#include "stage/stage.hpp"

#include "evaluate/evaluate.hpp"

namespace flanmoe {
namespace {

/// Raw text becomes (input, target) pairs by span corruption or prefix LM; pairs train as they are.
Outcome pretrain(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                 const KernelContext& context) {
  return train(deck, grid, communicators, context, Examples::text_or_pairs);
}

/// A mixture of instruction tasks, usually from the weights of a pretrained model (run.init_from).
Outcome instruct(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                 const KernelContext& context) {
  return train(deck, grid, communicators, context, Examples::pairs);
}

/// One task, or few, usually from the weights of a pretrained or instruction-tuned model (run.init_from).
Outcome finetune(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                 const KernelContext& context) {
  return train(deck, grid, communicators, context, Examples::pairs);
}

Outcome evaluate(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                 const KernelContext& context) {
  return run_evaluation(deck, grid, communicators, context);
}

}  // namespace

Outcome run_stage(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                  const KernelContext& context) {
  if (deck.run.stage == "pretrain") return pretrain(deck, grid, communicators, context);
  if (deck.run.stage == "instruct") return instruct(deck, grid, communicators, context);
  if (deck.run.stage == "finetune") return finetune(deck, grid, communicators, context);
  FLANMOE_EXPECT(deck.run.stage == "evaluate", "the deck allowed stage {}", deck.run.stage);
  return evaluate(deck, grid, communicators, context);
}

}  // namespace flanmoe
