#include "kernels/embedding.hpp"

#include <algorithm>
#include <array>

#include "kernels/cpu/partition.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

void forward(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& table_VD, const Tensor& ids_T) {
  expect_matrix(ids_T, DType::i32, y_TD.rows, 1, "ids");
  expect_matrix(y_TD, DType::f32, y_TD.rows, table_VD.cols, "y");
  const auto* ids = ids_T.as<std::int32_t>();
  auto* y = y_TD.as<float>();
  with_type<float, bf16>(table_VD, "table", [&]<class C>(std::type_identity<C>) {
    const auto* table = table_VD.as<C>();
    for_blocks(y_TD.rows, 16, y_TD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const C* from = table + ids[t * ids_T.stride] * table_VD.stride;
        float* to = y + t * y_TD.stride;
        const std::int64_t D = y_TD.cols;
#pragma omp simd
        for (std::int64_t c = 0; c < D; ++c) to[c] = widen(from[c]);
      }
    });
  });
}

constexpr std::int64_t kColumns = 128;  // that one thread sums at a time

/// A token, by id and, for one id, in the order in which its gradients are added.
struct Token {
  std::int32_t id, leaf;
  std::int64_t place;
  bool operator<(const Token& other) const { return id != other.id ? id < other.id : place < other.place; }
};

std::int64_t token_floats(std::int64_t tokens) { return tokens * std::int64_t(sizeof(Token) / sizeof(float)); }

std::span<const Token> sorted_tokens(float* memory, const Tensor& ids_T, std::span<const std::int64_t> leaves) {
  auto* tokens = reinterpret_cast<Token*>(memory);
  for (std::size_t leaf = 0; leaf + 1 < leaves.size(); ++leaf) {
    for (std::int64_t t = leaves[leaf]; t < leaves[leaf + 1]; ++t) {
      tokens[t] = {*ids_T.row<std::int32_t>(t), std::int32_t(leaf), t};
    }
  }
  std::sort(tokens, tokens + ids_T.rows);
  return {tokens, std::size_t(ids_T.rows)};
}

/// sum = columns [begin, begin + cols) of the gradients of tokens of one id, along the tree over leaves [first, first +
/// count). Leaves without such a token would add zeros, which change no sum that began at 0.
void sum_leaves(float* sum, std::span<const Token> tokens, const Tensor& dy_TD, std::int64_t first, std::int64_t count,
                std::int64_t begin, std::int64_t cols) {
  if (tokens.front().leaf == tokens.back().leaf) {
    std::fill_n(sum, cols, 0.0F);
    for (const Token& token : tokens) {
      const float* from = dy_TD.row<float>(token.place) + begin;
#pragma omp simd
      for (std::int64_t c = 0; c < cols; ++c) sum[c] += from[c];
    }
    return;
  }
  const std::int64_t middle = first + count / 2;
  const auto split =
      std::partition_point(tokens.begin(), tokens.end(), [=](const Token& t) { return t.leaf < middle; });
  const std::span<const Token> left(tokens.begin(), split), right(split, tokens.end());
  if (left.empty() || right.empty()) {
    sum_leaves(sum, tokens, dy_TD, left.empty() ? middle : first, count / 2, begin, cols);
    return;
  }
  alignas(64) std::array<float, kColumns> other;
  sum_leaves(sum, left, dy_TD, first, count / 2, begin, cols);
  sum_leaves(other.data(), right, dy_TD, middle, count / 2, begin, cols);
#pragma omp simd
  for (std::int64_t c = 0; c < cols; ++c) sum[c] += other[std::size_t(c)];
}

void add_in_leaves(KernelContext& context, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T,
                   std::span<const std::int64_t> leaves) {
  ScratchScope scratch(context);
  const std::span<const Token> tokens = sorted_tokens(scratch.take<float>(token_floats(ids_T.rows)), ids_T, leaves);
  const std::int64_t count = std::int64_t(leaves.size()) - 1;
  for_blocks(dy_TD.cols, kColumns, dy_TD.rows, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    alignas(64) std::array<float, kColumns> sum;
    std::size_t next = 0;
    for (std::size_t t = 0; t < tokens.size(); t = next) {
      while (next < tokens.size() && tokens[next].id == tokens[t].id) ++next;
      sum_leaves(sum.data(), tokens.subspan(t, next - t), dy_TD, 0, count, begin, end - begin);
      float* to = dtable_VD.row<float>(tokens[t].id) + begin;
#pragma omp simd
      for (std::int64_t c = 0; c < end - begin; ++c) to[c] += sum[std::size_t(c)];
    }
  });
}

/// Without leaves, threads own columns, and each walks all tokens in order: no two threads touch an element, no sorting
/// is needed, and every element is summed in token order.
void backward(KernelContext& context, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T,
              std::span<const std::int64_t> leaves) {
  expect_matrix(ids_T, DType::i32, dy_TD.rows, 1, "ids");
  expect_matrix(dtable_VD, DType::f32, dtable_VD.rows, dy_TD.cols, "dtable");
  expect_matrix(dy_TD, DType::f32, dy_TD.rows, dy_TD.cols, "dy");
  expect_token_leaves(leaves, dy_TD.rows);
  if (leaves.size() > 2) {
    add_in_leaves(context, dtable_VD, dy_TD, ids_T, leaves);
    return;
  }
  const auto* ids = ids_T.as<std::int32_t>();
  const auto* dy = dy_TD.as<float>();
  auto* dtable = dtable_VD.as<float>();
  for_blocks(dy_TD.cols, kColumns, dy_TD.rows, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = 0; t < dy_TD.rows; ++t) {
      float* to = dtable + ids[t * ids_T.stride] * dtable_VD.stride;
      const float* from = dy + t * dy_TD.stride;
#pragma omp simd
      for (std::int64_t c = begin; c < end; ++c) to[c] += from[c];
    }
  });
}

std::size_t scratch_bytes(std::int64_t tokens) { return scratch_size<float>(token_floats(tokens)); }

}  // namespace

const EmbeddingKernels embedding_kernels = {forward, backward, scratch_bytes};

}  // namespace flanmoe::cpu
