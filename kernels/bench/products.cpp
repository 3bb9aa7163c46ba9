// Operations made of matrix products: projections, attention, the loss.
#include <algorithm>

#include "kernels/bench/bench.hpp"

namespace flanmoe::bench {
namespace {

constexpr std::int64_t kTokens = 4096;
constexpr std::int64_t kWidth = 768;
constexpr int kHeads = 12, kHeadWidth = 64;

void measure_product(const Kernels& k, DType dtype, std::int64_t rows, std::int64_t inner, std::int64_t cols,
                     std::vector<Measurement>& results) {
  Workbench bench(k.matmul.scratch_bytes());
  const Tensor x = bench.tensor(dtype, rows, inner);
  const Tensor w = bench.tensor(dtype, inner, cols);
  const Tensor y = bench.tensor(dtype, rows, cols);
  const Tensor dw = bench.tensor(DType::f32, inner, cols);
  const double flops = 2.0 * double(rows) * double(inner) * double(cols);
  const std::string shape = fmt::format("{} x {} x {}", rows, inner, cols);
  const auto add = [&](const char* name, const std::function<void()>& run) {
    results.push_back({name, name_of(dtype), shape, best_seconds(run), flops, 0, {}});
  };
  add("product", [&] { k.matmul.product(bench.context(), y, x, Transpose::no, w, Transpose::no, 0); });
  add("product, input gradient", [&] { k.matmul.product(bench.context(), x, y, Transpose::no, w, Transpose::yes, 0); });
  add("product, weight gradient",
      [&] { k.matmul.product(bench.context(), dw, x, Transpose::yes, y, Transpose::no, 1); });
}

/// Self-attention of `count` segments of `length` tokens with a bias, or (queries 1) one step of decoding.
void measure_attention(const Kernels& k, DType dtype, std::int32_t count, std::int32_t queries, std::int32_t keys,
                       std::vector<Measurement>& results) {
  const AttentionShape shape{kHeads, kHeadWidth, false, 1.0F};
  Workbench bench(k.attention.scratch_bytes(keys, dtype, shape));
  std::vector<std::int32_t> q0, k0;
  for (std::int32_t s = 0; s < count; ++s) {
    q0.push_back(s * queries);
    k0.push_back(s * keys);
  }
  const std::vector<std::int32_t> query_counts(q0.size(), queries), key_counts(q0.size(), keys);
  const AttentionSegments segments{q0, query_counts, k0, key_counts};
  const auto rows = [&](std::int64_t n) { return bench.tensor(dtype, n, kWidth, 1, 0.3); };
  const std::int64_t tq = std::int64_t{count} * queries, tk = std::int64_t{count} * keys;
  const Tensor q = rows(tq), key = rows(tk), v = rows(tk), out = rows(tq), dout = rows(tq), dq = rows(tq),
               dk = rows(tk), dv = rows(tk);
  const Tensor bias = bench.tensor(DType::f32, kHeads, 2 * keys - 1);
  const Tensor dbias = bench.tensor(DType::f32, kHeads, 2 * keys - 1);
  const Tensor lse = bench.tensor(DType::f32, tq, kHeads);
  const double flops = 4.0 * double(count) * queries * keys * kWidth;
  const std::string text = fmt::format("{} x {} queries, {} keys", count, queries, keys);
  const auto forward = [&] { k.attention.forward(bench.context(), out, lse, q, key, v, bias, segments, shape); };
  results.push_back({"attention forward", name_of(dtype), text, best_seconds(forward), flops, 0, {}});
  if (queries == 1) {  // bound by reading the keys and values
    results.back().flops = 0;
    results.back().bytes = double(key.bytes() + v.bytes());
    return;
  }
  const auto backward = [&] {
    k.attention.backward(bench.context(), dq, dk, dv, dbias, dout, q, key, v, bias, out, lse, segments, shape);
  };
  results.push_back({"attention backward", name_of(dtype), text, best_seconds(backward), 2.5 * flops, 0, {}});
}

void measure_cross_entropy(const Kernels& k, DType dtype, std::vector<Measurement>& results) {
  constexpr std::int64_t kTargets = 1024, kVocabulary = 32128;
  CrossEntropyShape shape;
  shape.chunk_rows = 1024;
  shape.z_coefficient = 1e-4;
  Workbench bench(k.cross_entropy.scratch_bytes(kTargets, kVocabulary, dtype, shape));
  const Tensor x = bench.tensor(dtype, kTargets, kWidth);
  const Tensor w = bench.tensor(dtype, kWidth, kVocabulary);
  const Tensor dx = bench.tensor(dtype, kTargets, kWidth);
  const Tensor dw = bench.tensor(DType::f32, kWidth, kVocabulary);
  const Tensor nll = bench.tensor(DType::f32, kTargets, 1), z = bench.tensor(DType::f32, kTargets, 1),
               hit = bench.tensor(DType::f32, kTargets, 1);
  const Tensor target = bench.indices(kTargets, 1, kVocabulary);
  const double flops = 2.0 * kTargets * kVocabulary * kWidth;
  const std::string text = fmt::format("{} tokens, vocabulary {}", kTargets, kVocabulary);
  results.push_back({"cross-entropy forward",
                     name_of(dtype),
                     text,
                     best_seconds([&] {
                       k.cross_entropy.forward_backward(bench.context(), nll, z, hit, {}, {}, x, w, target, shape);
                     }),
                     flops,
                     0,
                     {}});
  results.push_back({"cross-entropy with gradients",
                     name_of(dtype),
                     text,
                     best_seconds([&] {
                       k.cross_entropy.forward_backward(bench.context(), nll, z, hit, dx, dw, x, w, target, shape);
                     }),
                     3 * flops,
                     0,
                     {}});
}

const Registration registration({"operations", "products: projections, attention, loss", [](const Kernels& k) {
                                   std::vector<Measurement> results;
                                   for (const DType dtype : {DType::f32, DType::bf16}) {
                                     measure_product(k, dtype, kTokens, kWidth, kWidth, results);
                                     measure_product(k, dtype, kTokens, kWidth, 2048, results);
                                     measure_product(k, dtype, 16, kWidth, 2048, results);
                                     measure_attention(k, dtype, 8, 512, 512, results);
                                     measure_attention(k, dtype, 200, 20, 20, results);
                                     measure_attention(k, dtype, 64, 1, 256, results);
                                     measure_cross_entropy(k, dtype, results);
                                   }
                                   return results;
                                 }});

}  // namespace
}  // namespace flanmoe::bench
