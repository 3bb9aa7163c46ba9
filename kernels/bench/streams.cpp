// Operations that move more than they compute, judged by the bytes they must read and write at least once.
#include <numeric>

#include "kernels/bench/bench.hpp"

namespace flanmoe::bench {
namespace {

constexpr std::int64_t kTokens = 4096;
constexpr std::int64_t kWidth = 768;
constexpr std::int64_t kHidden = 2048;
constexpr std::int64_t kExperts = 8;
constexpr int kTopK = 2;

/// Collects measurements of one precision.
class Collector {
 public:
  Collector(const Kernels& kernels, DType c, std::vector<Measurement>& list)
      : k(kernels), dtype(c), bench(scratch(kernels)), results_(list) {}

  static std::size_t scratch(const Kernels& k) {
    return std::max({k.norm.scratch_bytes(kTokens, kWidth), k.router.scratch_bytes(kTokens, kExperts),
                     k.optimizer.scratch_bytes(kHidden, kWidth)}) +
           4096;
  }
  /// `operands` are those read and those written; name one twice if it is read and written.
  void add(const char* name, const std::vector<Tensor>& operands, const std::function<void()>& run) {
    double bytes = 0;
    for (const Tensor& t : operands) bytes += double(t.bytes());
    const Tensor& first = operands.front();
    results_.push_back(
        {name, name_of(dtype), fmt::format("{} x {}", first.rows, first.cols), best_seconds(run), 0, bytes, {}});
  }

  const Kernels& k;
  DType dtype;
  Workbench bench;

 private:
  std::vector<Measurement>& results_;
};

void measure_layers(Collector& m) {
  const Kernels& k = m.k;
  KernelContext& context = m.bench.context();
  const Tensor x = m.bench.tensor(DType::f32, kTokens, kWidth), dx = m.bench.tensor(DType::f32, kTokens, kWidth);
  const Tensor y = m.bench.tensor(m.dtype, kTokens, kWidth);
  const Tensor scale = m.bench.tensor(DType::f32, 1, kWidth), dscale = m.bench.tensor(DType::f32, 1, kWidth);
  const Tensor rstd = m.bench.tensor(DType::f32, kTokens, 1);
  m.add("norm forward", {y, x}, [&] { k.norm.forward(context, y, rstd, x, scale, 1e-6F); });
  m.add("norm backward", {dx, dx, y, x}, [&] { k.norm.backward(context, dx, dscale, y, x, rstd, scale); });

  const Tensor gate = m.bench.tensor(m.dtype, kTokens, kHidden), up = m.bench.tensor(m.dtype, kTokens, kHidden);
  const Tensor h = m.bench.tensor(m.dtype, kTokens, kHidden), dh = m.bench.tensor(m.dtype, kTokens, kHidden);
  m.add("relu forward", {h, gate}, [&] { k.activation.relu_forward(context, h, gate); });
  m.add("relu backward", {dh, up, h}, [&] { k.activation.relu_backward(context, dh, up, h); });
  m.add("gated gelu forward", {h, gate, up}, [&] { k.activation.gated_gelu_forward(context, h, gate, up); });
  m.add("gated gelu backward", {gate, up, h, gate, up},
        [&] { k.activation.gated_gelu_backward(context, dh, h, h, gate, up); });

  std::vector<std::int64_t> row(kTokens);
  std::iota(row.begin(), row.end(), 0);
  const std::vector<std::int32_t> position(kTokens, 0);
  DropoutMask mask;
  mask.rate = 0.1F;
  mask.row_T = row;
  mask.position_T = position;
  m.add("dropout", {y, y}, [&] { k.dropout.apply(context, y, y, mask); });
  m.add("dropout onto the residual", {x, x, y}, [&] { k.dropout.add(context, x, y, mask); });
  m.add("convert", {y, x}, [&] { k.elementwise.convert(context, y, x); });
  m.add("add", {x, x, dx}, [&] { k.elementwise.add(context, x, dx); });

  const Tensor table = m.bench.tensor(m.dtype, 32128, kWidth), dtable = m.bench.tensor(DType::f32, 32128, kWidth);
  const Tensor ids = m.bench.indices(kTokens, 1, 32128);
  m.add("embedding forward", {x, y}, [&] { k.embedding.forward(context, x, table, ids); });
  m.add("embedding backward", {x, x, x}, [&] { k.embedding.backward(context, dtable, x, ids); });
}

void measure_routing(Collector& m) {
  const Kernels& k = m.k;
  KernelContext& context = m.bench.context();
  const Tensor logits = m.bench.tensor(DType::f32, kTokens, kExperts),
               p = m.bench.tensor(DType::f32, kTokens, kExperts);
  const Tensor log_z = m.bench.tensor(DType::f32, kTokens, 1);
  const Tensor choice = m.bench.indices(kTokens, kTopK, 1), kept = m.bench.indices(kTokens, kTopK, 1),
               slot = m.bench.indices(kTokens, kTopK, 1), token = m.bench.indices(kTokens * kTopK, 1, 1),
               chosen = m.bench.indices(1, kExperts, 1), count = m.bench.indices(1, kExperts, 1);
  const Tensor weight = m.bench.tensor(DType::f32, kTokens, kTopK),
               dweight = m.bench.tensor(DType::f32, kTokens, kTopK);
  const std::vector<std::int64_t> first = {0, kTokens}, capacity = {kTokens};
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
  const Tensor kept_TE = m.bench.indices(kTokens, kExperts, 1), choice_TE = m.bench.indices(kTokens, kExperts, 1);
  const std::vector<std::int64_t> share = {kTokens / kExperts};
  m.add("expert choice", {p, kept_TE, choice_TE},
        [&] { k.router.expert_choice(context, kept_TE, chosen, choice_TE, p, first, share); });
  const Tensor x = m.bench.tensor(m.dtype, kTokens, kWidth), y = m.bench.tensor(m.dtype, kTokens, kWidth);
  const Tensor rows = m.bench.tensor(m.dtype, kTokens * kTopK, kWidth);
  m.add("gather to experts", {rows, rows}, [&] { k.permute.gather(context, rows, x, token); });
  m.add("combine forward", {y, rows}, [&] { k.permute.combine_forward(context, y, rows, weight, slot); });
  const Tensor drows = m.bench.tensor(m.dtype, kTokens * kTopK, kWidth);
  m.add("combine backward", {y, rows, drows},
        [&] { k.permute.combine_backward(context, drows, dweight, y, rows, weight, slot); });
  m.add("gather backward", {x, y, drows}, [&] { k.permute.gather_sum(context, x, drows, slot, y); });
}

void measure_optimizers(Collector& m) {
  const auto matrix = [&] { return m.bench.tensor(DType::f32, kHidden, kWidth, 1, 0.01); };
  const Tensor p = matrix(), g = matrix(), first = matrix(), second = matrix();
  const Tensor row = m.bench.tensor(DType::f32, kHidden, 1), col = m.bench.tensor(DType::f32, 1, kWidth);
  for (const Tensor& t : {row, col, second}) {
    for (float& v : t.flat<float>()) v = 1e-4F;
  }
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
}

const Registration registration({"operations", "streams: operations bound by memory", [](const Kernels& k) {
                                   std::vector<Measurement> results;
                                   for (const DType dtype : {DType::f32, DType::bf16}) {
                                     Collector collector(k, dtype, results);
                                     measure_layers(collector);
                                     measure_routing(collector);
                                   }
                                   Collector collector(k, DType::f32, results);
                                   measure_optimizers(collector);
                                   return results;
                                 }});

}  // namespace
}  // namespace flanmoe::bench
