// Operations made of matrix products: projections, attention, the loss.
#include <algorithm>

#include "kernels/bench/bench.hpp"

namespace flanmoe::bench {
namespace {

constexpr int kHeadWidth = 64;

std::int64_t width_of(const Subject& s) { return s.size(768, 64); }

void measure_product(const Subject& subject, DType dtype, std::int64_t rows, std::int64_t inner, std::int64_t cols,
                     std::vector<Measurement>& results) {
  const Kernels& k = subject.k;
  Workbench bench(subject, k.matmul.scratch_bytes());
  const Tensor x = bench.tensor(dtype, rows, inner);
  const Tensor w = bench.tensor(dtype, inner, cols);
  const Tensor y = bench.tensor(dtype, rows, cols);
  const Tensor dw = bench.tensor(DType::f32, inner, cols);
  const double flops = 2.0 * double(rows) * double(inner) * double(cols);
  const std::string shape = fmt::format("{} x {} x {}", rows, inner, cols);
  const auto add = [&](const char* name, const std::function<void()>& run) {
    results.push_back({name, name_of(dtype), shape, bench.seconds(run), flops, 0, {}});
  };
  add("product", [&] { k.matmul.product(bench.context(), y, x, Transpose::no, w, Transpose::no, 0); });
  add("product, input gradient", [&] { k.matmul.product(bench.context(), x, y, Transpose::no, w, Transpose::yes, 0); });
  add("product, weight gradient",
      [&] { k.matmul.product(bench.context(), dw, x, Transpose::yes, y, Transpose::no, 1); });
  for (const std::int64_t leaves : {1, 8}) {
    if (leaves > 1 && !subject.on_host()) continue;  // only the host sums leaf by leaf
    const std::vector<std::int64_t> first = even_cuts(rows, leaves);
    add(leaves == 1 ? "product, weight gradient, written" : "product, weight gradient, written, 8 leaves", [&] {
      k.matmul.grouped_weight_gradient(bench.context(), {&dw, 1}, x, y, first, 0);
    });
  }
}

/// Self-attention of `count` segments of `length` tokens with a bias, or (queries 1) one step of decoding.
void measure_attention(const Subject& subject, DType dtype, std::int32_t count, std::int32_t queries, std::int32_t keys,
                       std::vector<Measurement>& results) {
  const Kernels& k = subject.k;
  const std::int64_t width = width_of(subject);
  const auto heads = int(width / kHeadWidth);
  const AttentionShape shape{heads, kHeadWidth, false, 1.0F};
  Workbench bench(subject, k.attention.scratch_bytes(keys, dtype, shape));
  std::vector<std::int32_t> q0, k0;
  for (std::int32_t s = 0; s < count; ++s) {
    q0.push_back(s * queries);
    k0.push_back(s * keys);
  }
  const std::vector<std::int32_t> query_counts(q0.size(), queries), key_counts(q0.size(), keys);
  const AttentionSegments segments{q0, query_counts, k0, key_counts};
  const auto rows = [&](std::int64_t n) { return bench.tensor(dtype, n, width, 1, 0.3); };
  const std::int64_t tq = std::int64_t{count} * queries, tk = std::int64_t{count} * keys;
  const Tensor q = rows(tq), key = rows(tk), v = rows(tk), out = rows(tq), dout = rows(tq), dq = rows(tq),
               dk = rows(tk), dv = rows(tk);
  const Tensor bias = bench.tensor(DType::f32, heads, 2 * keys - 1);
  const Tensor dbias = bench.tensor(DType::f32, heads, 2 * keys - 1);
  const Tensor lse = bench.tensor(DType::f32, tq, heads);
  const double flops = 4.0 * double(count) * queries * keys * width;
  const std::string text = fmt::format("{} x {} queries, {} keys", count, queries, keys);
  const auto forward = [&] { k.attention.forward(bench.context(), out, lse, q, key, v, bias, segments, shape); };
  results.push_back({"attention forward", name_of(dtype), text, bench.seconds(forward), flops, 0, {}});
  if (queries == 1) {  // bound by reading the keys and values
    results.back().flops = 0;
    results.back().bytes = double(key.bytes() + v.bytes());
    return;
  }
  const auto backward = [&] {
    k.attention.backward(bench.context(), dq, dk, dv, dbias, dout, q, key, v, bias, out, lse, segments, shape);
  };
  results.push_back({"attention backward", name_of(dtype), text, bench.seconds(backward), 2.5 * flops, 0, {}});
}

void measure_cross_entropy(const Subject& subject, DType dtype, std::vector<Measurement>& results) {
  const Kernels& k = subject.k;
  const std::int64_t width = width_of(subject), targets = subject.size(1024, 64), words = subject.size(32128, 200);
  CrossEntropyShape shape;
  shape.chunk_rows = targets;
  shape.z_coefficient = 1e-4;
  Workbench bench(subject, k.cross_entropy.scratch_bytes(targets, words, dtype, shape));
  const Tensor x = bench.tensor(dtype, targets, width);
  const Tensor w = bench.tensor(dtype, width, words);
  const Tensor dx = bench.tensor(dtype, targets, width);
  const Tensor dw = bench.tensor(DType::f32, width, words);
  const Tensor nll = bench.tensor(DType::f32, targets, 1), z = bench.tensor(DType::f32, targets, 1),
               hit = bench.tensor(DType::f32, targets, 1);
  const Tensor target = bench.indices(targets, 1, words);
  const double flops = 2.0 * double(targets * words * width);
  const std::string text = fmt::format("{} tokens, vocabulary {}", targets, words);
  results.push_back({"cross-entropy forward",
                     name_of(dtype),
                     text,
                     bench.seconds([&] {
                       k.cross_entropy.forward_backward(bench.context(), nll, z, hit, {}, {}, x, w, target, shape);
                     }),
                     flops,
                     0,
                     {}});
  results.push_back({"cross-entropy with gradients",
                     name_of(dtype),
                     text,
                     bench.seconds([&] {
                       k.cross_entropy.forward_backward(bench.context(), nll, z, hit, dx, dw, x, w, target, shape);
                     }),
                     3 * flops,
                     0,
                     {}});
}

std::vector<Measurement> measure_all(const Subject& s) {
  std::vector<Measurement> results;
  const std::int64_t tokens = s.size(4096, 64), width = width_of(s), hidden = s.size(2048, 96);
  const auto few = [&](std::int32_t usual, std::int32_t small) { return std::int32_t(s.size(usual, small)); };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    measure_product(s, dtype, tokens, width, width, results);
    measure_product(s, dtype, tokens, width, hidden, results);
    measure_product(s, dtype, 16, width, hidden, results);
    measure_attention(s, dtype, few(8, 2), few(512, 33), few(512, 33), results);
    measure_attention(s, dtype, few(200, 3), 20, 20, results);
    measure_attention(s, dtype, few(64, 2), 1, few(256, 40), results);
    measure_cross_entropy(s, dtype, results);
  }
  return results;
}

const Registration registration({"operations", "products: projections, attention, loss", measure_all});

}  // namespace
}  // namespace flanmoe::bench
