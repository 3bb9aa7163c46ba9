// Operations that move more than they compute, judged by the bytes they must read and write at least once.
#include <array>
#include <numeric>

#include "kernels/bench/bench.hpp"

namespace flanmoe::bench {
namespace {

constexpr std::int64_t kExperts = 8;
constexpr int kTopK = 2;

struct Sizes {
  explicit Sizes(const Subject& s)
      : tokens(s.size(4096, 64)), width(s.size(768, 16)), hidden(s.size(2048, 32)), words(s.size(32128, 200)) {}
  std::int64_t tokens, width, hidden, words;
};

/// Collects measurements of one precision.
class Collector {
 public:
  Collector(const Subject& subject, DType c, std::vector<Measurement>& list)
      : k(subject.k), dtype(c), sizes(subject), bench(subject, scratch()), results_(list) {}

  /// `operands` are those read and those written; name one twice if it is read and written.
  void add(const char* name, const std::vector<Tensor>& operands, const std::function<void()>& run) {
    double bytes = 0;
    for (const Tensor& t : operands) bytes += double(t.bytes());
    const Tensor& first = operands.front();
    results_.push_back(
        {name, name_of(dtype), fmt::format("{} x {}", first.rows, first.cols), bench.seconds(run), 0, bytes, {}});
  }

  const Kernels& k;
  DType dtype;
  Sizes sizes;
  Workbench bench;

 private:
  std::size_t scratch() const {
    return std::max({k.norm.scratch_bytes(sizes.tokens, sizes.width), k.router.scratch_bytes(sizes.tokens, kExperts),
                     k.optimizer.scratch_bytes(sizes.hidden, sizes.width)}) +
           4096;
  }
  std::vector<Measurement>& results_;
};

void measure_layers(Collector& m) {
  const auto [tokens, width, hidden, words] = m.sizes;
  const Kernels& k = m.k;
  KernelContext& context = m.bench.context();
  const Tensor x = m.bench.tensor(DType::f32, tokens, width), dx = m.bench.tensor(DType::f32, tokens, width);
  const Tensor y = m.bench.tensor(m.dtype, tokens, width);
  const Tensor scale = m.bench.tensor(DType::f32, 1, width), dscale = m.bench.tensor(DType::f32, 1, width);
  const Tensor rstd = m.bench.tensor(DType::f32, tokens, 1);
  m.add("norm forward", {y, x}, [&] { k.norm.forward(context, y, rstd, x, scale, 1e-6F); });
  m.add("norm backward", {dx, dx, y, x}, [&] { k.norm.backward(context, dx, dscale, y, x, rstd, scale); });

  const Tensor gate = m.bench.tensor(m.dtype, tokens, hidden), up = m.bench.tensor(m.dtype, tokens, hidden);
  const Tensor h = m.bench.tensor(m.dtype, tokens, hidden), dh = m.bench.tensor(m.dtype, tokens, hidden);
  m.add("relu forward", {h, gate}, [&] { k.activation.relu_forward(context, h, gate); });
  m.add("relu backward", {dh, up, h}, [&] { k.activation.relu_backward(context, dh, up, h); });
  m.add("gated gelu forward", {h, gate, up}, [&] { k.activation.gated_gelu_forward(context, h, gate, up); });
  m.add("gated gelu backward", {gate, up, h, gate, up},
        [&] { k.activation.gated_gelu_backward(context, dh, h, h, gate, up); });

  std::vector<std::int64_t> row(static_cast<std::size_t>(tokens));
  std::iota(row.begin(), row.end(), 0);
  const std::vector<std::int32_t> position(row.size(), 0);
  DropoutMask mask;
  mask.rate = 0.1F;
  mask.row_T = row;
  mask.position_T = position;
  m.add("dropout", {y, y}, [&] { k.dropout.apply(context, y, y, mask); });
  m.add("dropout onto the residual", {x, x, y}, [&] { k.dropout.add(context, x, y, mask); });
  m.add("convert", {y, x}, [&] { k.elementwise.convert(context, y, x); });
  m.add("add", {x, x, dx}, [&] { k.elementwise.add(context, x, dx); });

  const Tensor table = m.bench.tensor(m.dtype, words, width), dtable = m.bench.tensor(DType::f32, words, width);
  const Tensor ids = m.bench.indices(tokens, 1, words);
  m.add("embedding forward", {x, y}, [&] { k.embedding.forward(context, x, table, ids); });
  m.add("embedding backward", {x, x, x}, [&] { k.embedding.backward(context, dtable, x, ids, {}); });
}

void measure_routing(Collector& m) {
  const auto [tokens, width, hidden, words] = m.sizes;
  const Kernels& k = m.k;
  KernelContext& context = m.bench.context();
  const Tensor logits = m.bench.tensor(DType::f32, tokens, kExperts), p = m.bench.tensor(DType::f32, tokens, kExperts);
  const Tensor log_z = m.bench.tensor(DType::f32, tokens, 1);
  const Tensor choice = m.bench.indices(tokens, kTopK, 1), kept = m.bench.indices(tokens, kTopK, 1),
               slot = m.bench.indices(tokens, kTopK, 1), token = m.bench.indices(tokens * kTopK, 1, 1),
               chosen = m.bench.indices(1, kExperts, 1), count = m.bench.indices(1, kExperts, 1);
  const Tensor weight = m.bench.tensor(DType::f32, tokens, kTopK), dweight = m.bench.tensor(DType::f32, tokens, kTopK);
  const std::vector<std::int64_t> first = {0, tokens}, capacity = {tokens};
  m.add("router top-2", {logits, p, choice, weight}, [&] {
    k.router.softmax(context, p, log_z, logits);
    k.router.top_k(context, choice, p, {});
    k.router.weigh(context, weight, p, choice, true);
  });
  m.add("router slots", {choice, kept, slot, token}, [&] {
    k.router.admit(context, kept, weight, {});
    k.router.assign(context, kept, chosen, choice, p, first, capacity, SlotPriority::token_order);
    k.router.row_map(context, slot, token, count, choice, kept);
  });
  const Tensor kept_TE = m.bench.indices(tokens, kExperts, 1), choice_TE = m.bench.indices(tokens, kExperts, 1);
  const std::vector<std::int64_t> share = {tokens / kExperts};
  m.add("expert choice", {p, kept_TE, choice_TE},
        [&] { k.router.expert_choice(context, kept_TE, chosen, choice_TE, p, first, share); });
  const Tensor x = m.bench.tensor(m.dtype, tokens, width), y = m.bench.tensor(m.dtype, tokens, width);
  const Tensor rows = m.bench.tensor(m.dtype, tokens * kTopK, width);
  m.add("gather to experts", {rows, rows}, [&] { k.permute.gather(context, rows, x, token); });
  m.add("combine forward", {y, rows}, [&] { k.permute.combine_forward(context, y, rows, weight, slot); });
  const Tensor drows = m.bench.tensor(m.dtype, tokens * kTopK, width);
  m.add("combine backward", {y, rows, drows},
        [&] { k.permute.combine_backward(context, drows, dweight, y, rows, weight, slot); });
  m.add("gather backward", {x, y, drows}, [&] { k.permute.gather_sum(context, x, drows, slot, y); });
}

/// Many small matrices, as norms and biases are, in one list.
void measure_lists(Collector& m) {
  constexpr std::int64_t kMatrices = 256;
  const std::int64_t cols = m.sizes.width;
  std::array<Tensor, 4> all;
  for (Tensor& t : all) t = m.bench.constant(kMatrices, cols, 1e-4F);
  std::vector<AdamWMatrix> list;
  std::vector<Tensor> gradients;
  for (std::int64_t i = 0; i < kMatrices; ++i) {
    const auto row = [&](std::size_t t) { return all[t].slice_rows(i, 1); };
    list.push_back({row(0), row(1), row(2), row(3)});
    gradients.push_back(row(3));
  }
  std::vector<double> sums(kMatrices);
  m.add("adamw, 256 small ones", {all[0], all[0], all[1], all[1], all[2], all[2], all[3]},
        [&] { m.k.optimizer.adamw(m.bench.context(), list, {.learning_rate = 1e-6}); });
  m.add("sums of squares, 256 small ones", {all[3]},
        [&] { m.k.optimizer.sums_of_squares(m.bench.context(), sums, gradients); });
}

void measure_optimizers(Collector& m) {
  const std::int64_t rows = m.sizes.hidden, cols = m.sizes.width;
  const auto matrix = [&] { return m.bench.tensor(DType::f32, rows, cols, 1, 0.01); };
  const Tensor p = matrix(), g = matrix(), first = matrix(), second = m.bench.constant(rows, cols, 1e-4F);
  const Tensor row = m.bench.constant(rows, 1, 1e-4F), col = m.bench.constant(1, cols, 1e-4F);
  const Tensor weight = m.bench.tensor(DType::bf16, rows, cols);
  AdafactorStep adafactor;
  adafactor.learning_rate = 1e-6;
  adafactor.decay = 0.9;
  AdamWStep adamw;
  adamw.learning_rate = 1e-6;
  m.add("adafactor", {p, p, g}, [&] {
    m.k.optimizer.adafactor(m.bench.context(), std::array{AdafactorMatrix{p, g, row, col, {}}}, adafactor);
  });
  m.add("adamw", {p, p, first, first, second, second, g}, [&] {
    m.k.optimizer.adamw(m.bench.context(), std::array{AdamWMatrix{p, first, second, g}}, adamw);
  });
  std::array<double, 1> sum{};
  m.add("sum of squares", {g}, [&] { m.k.optimizer.sums_of_squares(m.bench.context(), sum, std::array{g}); });
  const std::array copy{WeightCopy{weight, p}};
  const RandomKey key{1, RandomPurpose::rounding, 0, 0};
  m.add("working weights", {p, weight}, [&] { m.k.optimizer.write_weights(m.bench.context(), copy, nullptr); });
  m.add("working weights, rounded at random", {p, weight},
        [&] { m.k.optimizer.write_weights(m.bench.context(), copy, &key); });
  measure_lists(m);
}

std::vector<Measurement> measure_all(const Subject& subject) {
  std::vector<Measurement> results;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Collector collector(subject, dtype, results);
    measure_layers(collector);
    measure_routing(collector);
  }
  Collector collector(subject, DType::f32, results);
  measure_optimizers(collector);
  return results;
}

const Registration registration({"operations", "streams: operations bound by memory", measure_all});

}  // namespace
}  // namespace flanmoe::bench
