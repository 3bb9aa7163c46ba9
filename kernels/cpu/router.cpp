#include "kernels/router.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/philox_words.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/router_checks.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kTokens = 32;  // tokens of one piece of work

float largest_of(const float* x, std::int64_t n) {
  constexpr std::int64_t lanes = 16;
  std::array<float, lanes> partial;
  partial.fill(-std::numeric_limits<float>::infinity());
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      partial[std::size_t(l)] = x[i + l] > partial[std::size_t(l)] ? x[i + l] : partial[std::size_t(l)];
    }
  }
  float largest = *std::max_element(partial.begin(), partial.end());
  for (; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

/// p = softmax(logit); returns logsumexp.
float softmax_row(float* p, const float* logit, std::int64_t E) {
  const float largest = largest_of(logit, E);
#pragma omp simd
  for (std::int64_t e = 0; e < E; ++e) p[e] = fast_exp(logit[e] - largest);
  const float sum = lane_sum<float, 16>(E, [=](std::int64_t e) { return p[e]; });
#pragma omp simd
  for (std::int64_t e = 0; e < E; ++e) p[e] /= sum;
  return largest + std::log(sum);
}

void softmax(KernelContext& /*context*/, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& logits_TE) {
  expect_softmax(p_TE, log_z_T, logits_TE);
  const std::int64_t E = logits_TE.cols;
  const auto* logits = logits_TE.as<float>();
  auto* p = p_TE.as<float>();
  auto* log_z = log_z_T.as<float>();
  for_blocks(logits_TE.rows, kTokens, 4 * E, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      log_z[t * log_z_T.stride] = softmax_row(p + t * p_TE.stride, logits + t * logits_TE.stride, E);
    }
  });
}

constexpr std::int64_t kTile = 1024;  // columns whose random words are held at one time

template <class C>
void jitter_tile(float* y, const C* x, const std::uint32_t* word, float low, float span, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = (low + span * float(word[i])) * widen(x[i]);
}

void jitter(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& x_TD, const Jitter& jitter) {
  expect_jitter(y_TD, x_TD, jitter);
  const auto key = jitter.key.philox_key();
  const auto low = float(1 - jitter.size), span = float(2 * jitter.size * 0x1p-32);
  auto* y = y_TD.as<float>();
  with_type<float, bf16>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    const auto* x = x_TD.as<C>();
    for_blocks(x_TD.rows, 16, x_TD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
      std::array<std::uint32_t, kTile + 4 * kPhiloxLanes> words;
      for (std::int64_t t = begin; t < end; ++t) {
        for (std::int64_t first = 0; first < x_TD.cols; first += kTile) {
          const std::int64_t n = std::min(kTile, x_TD.cols - first);
          philox_words(words.data(), key, std::uint64_t(jitter.row_T[std::size_t(t)]),
                       std::uint32_t(jitter.position_T[std::size_t(t)]), std::uint32_t(first / 4), (n + 3) / 4);
          jitter_tile(y + t * y_TD.stride + first, x + t * x_TD.stride + first, words.data(), low, span, n);
        }
      }
    });
  });
}

/// The k largest scores in descending order, ties to the lower expert: an insertion list that most experts never enter.
/// With NaN among the scores the choices are still distinct experts.
template <class F>
void choose(std::int32_t* choice, std::int64_t k, std::int64_t E, const F& score) {
  std::int64_t count = 0;
  float bound = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    const float own = score(e);
    if (count == k && !(own > bound)) continue;
    std::int64_t place = count < k ? count++ : k - 1;
    for (; place > 0 && own > score(choice[place - 1]); --place) choice[place] = choice[place - 1];
    choice[place] = std::int32_t(e);
    bound = score(choice[count - 1]);
  }
}

void top_k(KernelContext& /*context*/, const Tensor& choice_Tk, const Tensor& p_TE, const Tensor& bias_E) {
  expect_top_k(choice_Tk, p_TE, bias_E);
  const std::int64_t k = choice_Tk.cols, E = p_TE.cols;
  const auto* all = p_TE.as<float>();
  const auto* bias = bias_E.absent() ? nullptr : bias_E.as<float>();
  auto* choices = choice_Tk.as<std::int32_t>();
  for_blocks(p_TE.rows, kTokens, 4 * E, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* p = all + t * p_TE.stride;
      std::int32_t* choice = choices + t * choice_Tk.stride;
      if (bias == nullptr) {
        choose(choice, k, E, [=](std::int64_t e) { return p[e]; });
      } else {
        choose(choice, k, E, [=](std::int64_t e) { return p[e] + bias[e]; });
      }
    }
  });
}

void spread(KernelContext& /*context*/, const Tensor& choice_Tk, std::int64_t experts,
            std::span<const std::int64_t> row_T, std::span<const std::int32_t> position_T) {
  expect_spread(choice_Tk, experts, row_T, position_T);
  const std::int64_t k = choice_Tk.cols;
  auto* choices = choice_Tk.as<std::int32_t>();
  for_blocks(choice_Tk.rows, kTokens, k, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t place = row_T[std::size_t(t)] + position_T[std::size_t(t)] * k;
      for (std::int64_t j = 0; j < k; ++j) choices[t * choice_Tk.stride + j] = std::int32_t((place + j) % experts);
    }
  });
}

void weigh(KernelContext& /*context*/, const Tensor& weight_Tk, const Tensor& p_TE, const Tensor& choice_Tk,
           bool renormalize) {
  expect_weigh(weight_Tk, p_TE, choice_Tk);
  const std::int64_t k = choice_Tk.cols;
  const auto* p = p_TE.as<float>();
  const auto* choices = choice_Tk.as<std::int32_t>();
  auto* weights = weight_Tk.as<float>();
  for_blocks(p_TE.rows, kTokens, 4 * k, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* weight = weights + t * weight_Tk.stride;
      float sum = 0;
      for (std::int64_t j = 0; j < k; ++j) sum += weight[j] = p[t * p_TE.stride + choices[t * choice_Tk.stride + j]];
      if (!renormalize) continue;
      if (sum < kLeastChosen) std::fill(weight, weight + k, 1 / float(k));
      for (std::int64_t j = 0; !(sum < kLeastChosen) && j < k; ++j) weight[j] /= sum;
    }
  });
}

/// u < w / threshold for the choices after the first one of token t; four choices share a Philox block.
void draw(std::int32_t* kept, const float* weight, std::int64_t k, const SecondChoices& second, std::int64_t t) {
  const auto row = std::uint64_t(second.row_T[std::size_t(t)]);
  const auto position = std::uint32_t(second.position_T[std::size_t(t)]);
  for (std::int64_t first = 0; first < k; first += 4) {
    const auto words = second.key.words(row, position, std::uint32_t(first / 4));
    for (std::int64_t j = std::max<std::int64_t>(first, 1); j < std::min(k, first + 4); ++j) {
      kept[j] = double(words[std::size_t(j - first)]) * 0x1p-32 < double(weight[j]) / second.threshold ? 1 : 0;
    }
  }
}

void admit(KernelContext& /*context*/, const Tensor& kept_Tk, const Tensor& weight_Tk, const SecondChoices& second) {
  expect_admit(kept_Tk, weight_Tk, second);
  const std::int64_t k = kept_Tk.cols;
  const auto* weights = weight_Tk.as<float>();
  auto* all = kept_Tk.as<std::int32_t>();
  for_blocks(kept_Tk.rows, kTokens, 16 * k, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      std::int32_t* kept = all + t * kept_Tk.stride;
      const float* weight = weights + t * weight_Tk.stride;
      std::fill(kept, kept + k, second.policy == SecondPolicy::none ? 0 : 1);
      kept[0] = 1;
      if (second.policy == SecondPolicy::threshold) {
        for (std::int64_t j = 1; j < k; ++j) kept[j] = double(weight[j]) > second.threshold ? 1 : 0;
      } else if (second.policy == SecondPolicy::random) {
        draw(kept, weight, k, second, t);
      }
    }
  });
}

void count(KernelContext& /*context*/, const Tensor& count_GE, const Tensor& choice_Tk, std::int64_t columns,
           std::span<const std::int64_t> first_token) {
  expect_count(count_GE, choice_Tk, columns, first_token);
  const auto* choices = choice_Tk.as<std::int32_t>();
  for_blocks(count_GE.rows, 1, choice_Tk.rows * columns, [&](std::int64_t g, std::int64_t /*b*/, std::int64_t /*e*/) {
    std::int32_t* times = count_GE.row<std::int32_t>(g);
    std::fill(times, times + count_GE.cols, 0);
    for (std::int64_t t = first_token[std::size_t(g)]; t < first_token[std::size_t(g) + 1]; ++t) {
      for (std::int64_t j = 0; j < columns; ++j) ++times[choices[t * choice_Tk.stride + j]];
    }
  });
}

/// order[0..count) = the tokens first..first+count by descending probability of their first choice, ties in token
/// order. Probabilities are not negative, so their bits sort like their values, and NaN has a place too.
void sort_by_probability(std::int32_t* order, std::int64_t first, std::int64_t count, const Tensor& p_TE,
                         const Tensor& choice_Tk) {
  const auto key = [&](std::int32_t t) {
    return std::bit_cast<std::uint32_t>(p_TE.row<float>(t)[*choice_Tk.row<std::int32_t>(t)]);
  };
  for (std::int64_t i = 0; i < count; ++i) order[i] = std::int32_t(first + i);
  std::sort(order, order + count, [&](std::int32_t a, std::int32_t b) {
    const auto pa = key(a), pb = key(b);
    return pa != pb ? pa > pb : a < b;
  });
}

void assign(KernelContext& context, const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk,
            const Tensor& p_TE, std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity,
            SlotPriority priority) {
  expect_assign(kept_Tk, chosen_GE, choice_Tk, p_TE, first_token, capacity);
  const std::int64_t groups = chosen_GE.rows;
  const std::int64_t k = choice_Tk.cols;
  const bool sorted = priority == SlotPriority::probability;
  ScratchScope scratch(context);
  std::int32_t* order_T = sorted ? scratch.take<std::int32_t>(kept_Tk.rows) : nullptr;
  const auto* choices = choice_Tk.as<std::int32_t>();
  auto* kept = kept_Tk.as<std::int32_t>();
  auto* chosen = chosen_GE.as<std::int32_t>();
  for_blocks(groups, 1, kept_Tk.rows * k, [&](std::int64_t g, std::int64_t /*begin*/, std::int64_t /*end*/) {
    const std::int64_t first = first_token[std::size_t(g)];
    const std::int64_t count = first_token[std::size_t(g) + 1] - first;
    const std::int64_t slots = capacity[std::size_t(g)];
    std::int32_t* claims = chosen + g * chosen_GE.stride;
    std::fill(claims, claims + chosen_GE.cols, 0);
    std::int32_t* order = sorted ? order_T + first : nullptr;
    if (sorted) sort_by_probability(order, first, count, p_TE, choice_Tk);
    for (std::int64_t j = 0; j < k; ++j) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t t = sorted ? order[i] : first + i;
        std::int32_t& claim = kept[t * kept_Tk.stride + j];
        if (claim == 0) continue;
        const std::int32_t earlier = claims[choices[t * choice_Tk.stride + j]]++;
        claim = earlier < slots ? 1 : 0;
      }
    }
  });
}

/// One expert and one group: kept[i*stride] = 1 for the `taken` most probable tokens. A key holds the bits of p (which
/// are ordered like p, as it is not negative; NaN comes first) and, inverted, the token: keys are distinct.
void take_tokens(std::int32_t* kept, std::int64_t kept_stride, std::uint64_t* key, const float* p,
                 std::int64_t p_stride, std::int64_t tokens, std::int64_t taken) {
  for (std::int64_t i = 0; i < tokens; ++i) {
    key[i] = std::uint64_t{std::bit_cast<std::uint32_t>(p[i * p_stride])} << 32 | (0xffffffffU - std::uint32_t(i));
    kept[i * kept_stride] = 0;
  }
  if (taken < tokens) std::nth_element(key, key + taken, key + tokens, std::greater<>());
  for (std::int64_t i = 0; i < taken; ++i) kept[std::int64_t(0xffffffffU - std::uint32_t(key[i])) * kept_stride] = 1;
}

void expert_choice(KernelContext& context, const Tensor& kept_TE, const Tensor& chosen_GE, const Tensor& choice_TE,
                   const Tensor& p_TE, std::span<const std::int64_t> first_token,
                   std::span<const std::int64_t> capacity) {
  expect_expert_choice(kept_TE, chosen_GE, choice_TE, p_TE, first_token, capacity);
  const std::int64_t T = p_TE.rows, E = p_TE.cols;
  ScratchScope scratch(context);
  auto* keys_ET = reinterpret_cast<std::uint64_t*>(scratch.take<double>(T * E));
  const auto* p = p_TE.as<float>();
  auto* kept = kept_TE.as<std::int32_t>();
  for_blocks(chosen_GE.rows * E, 1, T, [&](std::int64_t i, std::int64_t /*begin*/, std::int64_t /*end*/) {
    const std::int64_t g = i / E, e = i % E;
    const std::int64_t first = first_token[std::size_t(g)];
    const std::int64_t tokens = first_token[std::size_t(g) + 1] - first;
    const std::int64_t taken = std::min(capacity[std::size_t(g)], tokens);
    take_tokens(kept + first * kept_TE.stride + e, kept_TE.stride, keys_ET + e * T + first, p + first * p_TE.stride + e,
                p_TE.stride, tokens, taken);
    chosen_GE.row<std::int32_t>(g)[e] = std::int32_t(taken);
  });
  for_blocks(T, kTokens, E, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      std::iota(choice_TE.row<std::int32_t>(t), choice_TE.row<std::int32_t>(t) + E, 0);
    }
  });
}

void row_map(KernelContext& /*context*/, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
             const Tensor& choice_Tk, const Tensor& kept_Tk) {
  const std::int64_t T = choice_Tk.rows;
  const std::int64_t k = choice_Tk.cols;
  const std::int64_t E = count_E.cols;
  expect_row_map(slot_Tk, token_N, count_E, choice_Tk, kept_Tk);
  const auto* choices = choice_Tk.as<std::int32_t>();
  const auto* kept = kept_Tk.as<std::int32_t>();
  auto* slots = slot_Tk.as<std::int32_t>();
  auto* tokens = token_N.as<std::int32_t>();
  auto* next = count_E.as<std::int32_t>();

  // Histogram.
  std::fill(next, next + E, 0);
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t j = 0; j < k; ++j) next[choices[t * choice_Tk.stride + j]] += kept[t * kept_Tk.stride + j];
  }
  // Exclusive scan: next[e] = first row of expert e.
  std::int32_t rows = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    const std::int32_t count = next[e];
    next[e] = rows;
    rows += count;
  }
  FLANMOE_EXPECT(rows <= token_N.rows, "{} kept copies, room for {}", rows, token_N.rows);
  // Row map; afterwards next[e] is the end of expert e.
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t j = 0; j < k; ++j) {
      std::int32_t& slot = slots[t * slot_Tk.stride + j];
      slot = kept[t * kept_Tk.stride + j] != 0 ? next[choices[t * choice_Tk.stride + j]]++ : -1;
      if (slot >= 0) tokens[slot * token_N.stride] = std::int32_t(t);
    }
  }
  for (std::int64_t n = rows; n < token_N.rows; ++n) tokens[n * token_N.stride] = -1;
  for (std::int64_t e = E - 1; e > 0; --e) next[e] -= next[e - 1];
}

/// A piece of tokens: entropy, log_z^2, tokens that no expert keeps, and for the balance loss the same as
/// sum_e balance_ge * (sum_t p_te), token by token.
std::array<double, 4> measure_tokens(const Tensor& logits_TE, const Tensor& p_TE, const Tensor& log_z_T,
                                     const Tensor& kept_Tk, const Tensor& balance_GE,
                                     std::span<const std::int64_t> first_token, std::int64_t begin, std::int64_t end) {
  const std::int64_t E = p_TE.cols;
  std::int64_t g = std::upper_bound(first_token.begin(), first_token.end(), begin) - first_token.begin() - 1;
  std::array<double, 4> sum{};
  for (std::int64_t t = begin; t < end; ++t) {
    while (t >= first_token[std::size_t(g) + 1]) ++g;
    const auto* p = p_TE.row<float>(t);
    const auto* logit = logits_TE.row<float>(t);
    const auto* kept = kept_Tk.row<std::int32_t>(t);
    const double log_z = double(*log_z_T.row<float>(t));
    sum[0] += log_z - lane_sum<double>(E, [=](std::int64_t e) { return double(p[e]) * double(logit[e]); });
    sum[1] += log_z * log_z;
    sum[2] += std::find(kept, kept + kept_Tk.cols, 1) == kept + kept_Tk.cols ? 1 : 0;
    if (balance_GE.absent()) continue;
    const auto* balance = balance_GE.row<std::int32_t>(g);
    const double tokens = double(first_token[std::size_t(g) + 1] - first_token[std::size_t(g)]);
    sum[3] +=
        lane_sum<double>(E, [=](std::int64_t e) { return double(balance[e]) * double(p[e]); }) / (tokens * tokens);
  }
  return sum;
}

void measure(KernelContext& /*context*/, const Tensor& measure_S, const Tensor& logits_TE, const Tensor& p_TE,
             const Tensor& log_z_T, const Tensor& kept_Tk, const Tensor& count_E, const Tensor& chosen_GE,
             const Tensor& balance_GE, std::span<const std::int64_t> first_token) {
  expect_measure(measure_S, logits_TE, p_TE, log_z_T, kept_Tk, count_E, chosen_GE, balance_GE, first_token);
  const std::int64_t T = p_TE.rows, E = p_TE.cols;
  auto* measure = measure_S.as<double>();
  const auto sums = parallel_tree_sum<4>((T + kTokens - 1) / kTokens, kTokens * E, [&](std::int64_t b) {
    return measure_tokens(logits_TE, p_TE, log_z_T, kept_Tk, balance_GE, first_token, b * kTokens,
                          std::min(T, (b + 1) * kTokens));
  });
  measure[RouterMeasures::entropy] = sums[0];
  measure[RouterMeasures::log_z2] = sums[1];
  measure[RouterMeasures::unrouted] = sums[2];
  measure[RouterMeasures::balance] = sums[3];
  double *claims = measure + RouterMeasures::per_expert, *kept = claims + E;
  std::fill(claims, kept, 0.0);
  for (std::int64_t g = 0; g < chosen_GE.rows; ++g) {
    for (std::int64_t e = 0; e < E; ++e) claims[e] += chosen_GE.row<std::int32_t>(g)[e];
  }
  for (std::int64_t e = 0; e < E; ++e) kept[e] = count_E.as<std::int32_t>()[e];
}

void balance_gradient(KernelContext& /*context*/, const Tensor& dp_GE, const Tensor& balance_GE,
                      std::span<const std::int64_t> first_token, double weight, std::int64_t step_groups) {
  expect_balance_gradient(dp_GE, balance_GE, first_token);
  for (std::int64_t g = 0; g < dp_GE.rows; ++g) {
    const double tokens = double(first_token[std::size_t(g) + 1] - first_token[std::size_t(g)]);
    auto* dp = dp_GE.row<float>(g);
    const bool none = balance_GE.absent() || tokens == 0;
    const auto* balance = none ? nullptr : balance_GE.row<std::int32_t>(g);
    for (std::int64_t e = 0; e < dp_GE.cols; ++e) {
      const double f = none ? 0.0 : balance[e] / tokens;
      dp[e] = f > 0 ? float(weight * f / (double(step_groups) * tokens)) : 0.0F;
    }
  }
}

void add_claims(KernelContext& /*context*/, const Tensor& claims_E, const Tensor& chosen_GE) {
  expect_claims(claims_E, chosen_GE);
  auto* claims = claims_E.as<float>();
  for (std::int64_t g = 0; g < chosen_GE.rows; ++g) {
    for (std::int64_t e = 0; e < claims_E.cols; ++e) claims[e] += float(chosen_GE.row<std::int32_t>(g)[e]);
  }
}

/// dlogit = p (g - <p, g> + z), where dlogit holds the part of g that comes from the balance loss on entry.
void backward_token(float* dlogit, const float* dweight, const float* p, const std::int32_t* choice, float z,
                    std::int64_t E, std::int64_t k, bool renormalize) {
  float sum = 1;
  float shared = 0;
  if (renormalize) {
    sum = 0;
    for (std::int64_t j = 0; j < k; ++j) sum += p[choice[j]];
    for (std::int64_t j = 0; j < k; ++j) shared += dweight[j] * p[choice[j]] / sum;
  }
  const bool equal = renormalize && sum < kLeastChosen;
  for (std::int64_t j = 0; !equal && j < k; ++j) dlogit[choice[j]] += (dweight[j] - shared) / sum;
  const float mean = lane_sum<float, 16>(E, [=](std::int64_t e) { return p[e] * dlogit[e]; });
#pragma omp simd
  for (std::int64_t e = 0; e < E; ++e) dlogit[e] = p[e] * (dlogit[e] - mean + z);
}

void backward(KernelContext& /*context*/, const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE,
              double z_scale, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
              std::span<const std::int64_t> first_token, bool renormalize) {
  const std::int64_t E = p_TE.cols;
  const std::int64_t k = choice_Tk.cols;
  expect_backward(dlogits_TE, dweight_Tk, dp_GE, p_TE, log_z_T, choice_Tk, first_token);
  const auto* p = p_TE.as<float>();
  const auto* log_z = log_z_T.as<float>();
  const auto* choice = choice_Tk.as<std::int32_t>();
  const auto* dweight = dweight_Tk.as<float>();
  const auto* dp = dp_GE.as<float>();
  auto* dlogits = dlogits_TE.as<float>();
  for_blocks(p_TE.rows, kTokens, 4 * E, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    std::int64_t g = std::upper_bound(first_token.begin(), first_token.end(), begin) - first_token.begin() - 1;
    for (std::int64_t t = begin; t < end; ++t) {
      while (t >= first_token[std::size_t(g) + 1]) ++g;
      float* dlogit = dlogits + t * dlogits_TE.stride;
      std::copy(dp + g * dp_GE.stride, dp + g * dp_GE.stride + E, dlogit);
      backward_token(dlogit, dweight + t * dweight_Tk.stride, p + t * p_TE.stride, choice + t * choice_Tk.stride,
                     float(2 * z_scale) * log_z[t * log_z_T.stride], E, k, renormalize);
    }
  });
}

std::size_t scratch_bytes(std::int64_t tokens, std::int64_t experts) { return scratch_size<double>(tokens * experts); }

}  // namespace

const RouterKernels router_kernels = {jitter,     softmax,  top_k,         spread,  weigh,   admit,
                                      count,      assign,   expert_choice, row_map, measure, balance_gradient,
                                      add_claims, backward, scratch_bytes};

}  // namespace flanmoe::cpu
