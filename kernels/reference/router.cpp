#include "kernels/router.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/dispatch.hpp"
#include "kernels/router_checks.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::reference {
namespace {

/// Word c of the stream of token t, as a number in [0, 1).
template <class Use>
double uniform(const Use& use, std::int64_t t, std::int64_t c) {
  const auto block = use.key.words(std::uint64_t(use.row_T[std::size_t(t)]),
                                   std::uint32_t(use.position_T[std::size_t(t)]), std::uint32_t(c / 4));
  return double(block[std::size_t(c % 4)]) * 0x1p-32;
}

void jitter(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& x_TD, const Jitter& jitter) {
  expect_jitter(y_TD, x_TD, jitter);
  with_type<float, bf16, double>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    using A = accumulate_t<C>;
    for (std::int64_t t = 0; t < x_TD.rows; ++t) {
      for (std::int64_t c = 0; c < x_TD.cols; ++c) {
        const double factor = 1 - jitter.size + 2 * jitter.size * uniform(jitter, t, c);
        y_TD.row<A>(t)[c] = A(factor) * widen(x_TD.row<C>(t)[c]);
      }
    }
  });
}

template <class A>
void softmax_in(const Tensor& p_TE, const Tensor& log_z_T, const Tensor& logits_TE) {
  const std::int64_t E = p_TE.cols;
  for (std::int64_t t = 0; t < p_TE.rows; ++t) {
    const A* logit = logits_TE.row<A>(t);
    A* p = p_TE.row<A>(t);
    const A largest = *std::max_element(logit, logit + E);
    A sum = 0;
    for (std::int64_t e = 0; e < E; ++e) sum += p[e] = std::exp(logit[e] - largest);
    for (std::int64_t e = 0; e < E; ++e) p[e] /= sum;
    *log_z_T.row<A>(t) = largest + std::log(sum);
  }
}

void softmax(KernelContext& /*context*/, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& logits_TE) {
  expect_softmax(p_TE, log_z_T, logits_TE);
  with_type<float, double>(logits_TE, "logits",
                           [&]<class A>(std::type_identity<A>) { softmax_in<A>(p_TE, log_z_T, logits_TE); });
}

/// Inserts experts in ascending order into a list sorted by descending score; an equal score stays behind the lower
/// expert. NaN never moves ahead, so the choices are distinct experts whatever p holds.
template <class A>
void choose(std::int32_t* choice, std::int64_t k, const A* p, const A* bias, std::int64_t E) {
  const auto score = [&](std::int64_t e) { return bias == nullptr ? p[e] : p[e] + bias[e]; };
  std::int64_t count = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    if (count == k && !(score(e) > score(choice[k - 1]))) continue;
    std::int64_t place = count < k ? count++ : k - 1;
    for (; place > 0 && score(e) > score(choice[place - 1]); --place) choice[place] = choice[place - 1];
    choice[place] = std::int32_t(e);
  }
}

void top_k(KernelContext& /*context*/, const Tensor& choice_Tk, const Tensor& p_TE, const Tensor& bias_E) {
  expect_top_k(choice_Tk, p_TE, bias_E);
  with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
    const A* bias = bias_E.absent() ? nullptr : bias_E.as<A>();
    for (std::int64_t t = 0; t < p_TE.rows; ++t) {
      choose(choice_Tk.row<std::int32_t>(t), choice_Tk.cols, p_TE.row<A>(t), bias, p_TE.cols);
    }
  });
}

void spread(KernelContext& /*context*/, const Tensor& choice_Tk, std::int64_t experts,
            std::span<const std::int64_t> row_T, std::span<const std::int32_t> position_T) {
  expect_spread(choice_Tk, experts, row_T, position_T);
  for (std::int64_t t = 0; t < choice_Tk.rows; ++t) {
    for (std::int64_t j = 0; j < choice_Tk.cols; ++j) {
      const std::int64_t place = row_T[std::size_t(t)] + position_T[std::size_t(t)] * choice_Tk.cols + j;
      choice_Tk.row<std::int32_t>(t)[j] = std::int32_t(place % experts);
    }
  }
}

void weigh(KernelContext& /*context*/, const Tensor& weight_Tk, const Tensor& p_TE, const Tensor& choice_Tk,
           bool renormalize) {
  expect_weigh(weight_Tk, p_TE, choice_Tk);
  with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
    for (std::int64_t t = 0; t < p_TE.rows; ++t) {
      const A* p = p_TE.row<A>(t);
      const std::int32_t* choice = choice_Tk.row<std::int32_t>(t);
      A chosen = 0;
      for (std::int64_t j = 0; j < choice_Tk.cols; ++j) chosen += p[choice[j]];
      for (std::int64_t j = 0; j < choice_Tk.cols; ++j) {
        weight_Tk.row<A>(t)[j] = !renormalize               ? p[choice[j]]
                                 : chosen < A(kLeastChosen) ? A(1) / A(choice_Tk.cols)
                                                            : p[choice[j]] / chosen;
      }
    }
  });
}

bool admitted(const SecondChoices& second, double weight, std::int64_t t, std::int64_t j) {
  switch (second.policy) {
    case SecondPolicy::all: return true;
    case SecondPolicy::none: return false;
    case SecondPolicy::threshold: return weight > second.threshold;
    case SecondPolicy::random: return uniform(second, t, j) < weight / second.threshold;
  }
  return true;
}

void admit(KernelContext& /*context*/, const Tensor& kept_Tk, const Tensor& weight_Tk, const SecondChoices& second) {
  expect_admit(kept_Tk, weight_Tk, second);
  with_type<float, double>(weight_Tk, "weight", [&]<class A>(std::type_identity<A>) {
    for (std::int64_t t = 0; t < kept_Tk.rows; ++t) {
      for (std::int64_t j = 0; j < kept_Tk.cols; ++j) {
        kept_Tk.row<std::int32_t>(t)[j] = j == 0 || admitted(second, double(weight_Tk.row<A>(t)[j]), t, j) ? 1 : 0;
      }
    }
  });
}

void count(KernelContext& /*context*/, const Tensor& count_GE, const Tensor& choice_Tk, std::int64_t columns,
           std::span<const std::int64_t> first_token) {
  expect_count(count_GE, choice_Tk, columns, first_token);
  for (std::int64_t g = 0; g < count_GE.rows; ++g) {
    std::int32_t* times = count_GE.row<std::int32_t>(g);
    std::fill(times, times + count_GE.cols, 0);
    for (std::int64_t t = first_token[std::size_t(g)]; t < first_token[std::size_t(g) + 1]; ++t) {
      for (std::int64_t j = 0; j < columns; ++j) ++times[choice_Tk.row<std::int32_t>(t)[j]];
    }
  }
}

/// Order of probabilities with NaN before everything else.
template <class A>
bool more_probable(A a, A b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && !std::isnan(b);
  return a > b;
}

/// order[0..count) = the tokens first..first+count by descending probability of their first choice, ties in token
/// order.
template <class A>
void sort_by_probability(std::int32_t* order, std::int64_t first, std::int64_t count, const Tensor& p_TE,
                         const Tensor& choice_Tk) {
  const auto key = [&](std::int32_t t) { return p_TE.row<A>(t)[*choice_Tk.row<std::int32_t>(t)]; };
  std::iota(order, order + count, std::int32_t(first));
  std::stable_sort(order, order + count, [&](std::int32_t a, std::int32_t b) { return more_probable(key(a), key(b)); });
}

void assign(KernelContext& context, const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk,
            const Tensor& p_TE, std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity,
            SlotPriority priority) {
  expect_assign(kept_Tk, chosen_GE, choice_Tk, p_TE, first_token, capacity);
  ScratchScope scratch(context);
  std::int32_t* order = scratch.take<std::int32_t>(kept_Tk.rows);
  for (std::int64_t g = 0; g < chosen_GE.rows; ++g) {
    const std::int64_t first = first_token[std::size_t(g)];
    const std::int64_t tokens = first_token[std::size_t(g) + 1] - first;
    if (priority == SlotPriority::probability) {
      with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
        sort_by_probability<A>(order, first, tokens, p_TE, choice_Tk);
      });
    } else {
      std::iota(order, order + tokens, std::int32_t(first));
    }
    std::int32_t* claims = chosen_GE.row<std::int32_t>(g);
    std::fill(claims, claims + chosen_GE.cols, 0);
    for (std::int64_t j = 0; j < kept_Tk.cols; ++j) {
      for (std::int64_t i = 0; i < tokens; ++i) {
        std::int32_t& kept = kept_Tk.row<std::int32_t>(order[i])[j];
        if (kept == 0) continue;
        const std::int32_t earlier = claims[choice_Tk.row<std::int32_t>(order[i])[j]]++;
        kept = earlier < capacity[std::size_t(g)] ? 1 : 0;
      }
    }
  }
}

template <class A>
void expert_choice_in(std::int32_t* order, const Tensor& kept_TE, const Tensor& chosen_GE, const Tensor& choice_TE,
                      const Tensor& p_TE, std::span<const std::int64_t> first_token,
                      std::span<const std::int64_t> capacity) {
  for (std::int64_t g = 0; g < chosen_GE.rows; ++g) {
    const std::int64_t first = first_token[std::size_t(g)];
    const std::int64_t tokens = first_token[std::size_t(g) + 1] - first;
    const std::int64_t taken = std::min(capacity[std::size_t(g)], tokens);
    for (std::int64_t e = 0; e < p_TE.cols; ++e) {
      std::iota(order, order + tokens, std::int32_t(first));
      std::sort(order, order + tokens, [&](std::int32_t a, std::int32_t b) {
        const A pa = p_TE.row<A>(a)[e], pb = p_TE.row<A>(b)[e];
        return more_probable(pa, pb) || (!more_probable(pb, pa) && a < b);
      });
      for (std::int64_t i = 0; i < tokens; ++i) {
        kept_TE.row<std::int32_t>(order[i])[e] = i < taken ? 1 : 0;
        choice_TE.row<std::int32_t>(order[i])[e] = std::int32_t(e);
      }
      chosen_GE.row<std::int32_t>(g)[e] = std::int32_t(taken);
    }
  }
}

void expert_choice(KernelContext& context, const Tensor& kept_TE, const Tensor& chosen_GE, const Tensor& choice_TE,
                   const Tensor& p_TE, std::span<const std::int64_t> first_token,
                   std::span<const std::int64_t> capacity) {
  expect_expert_choice(kept_TE, chosen_GE, choice_TE, p_TE, first_token, capacity);
  ScratchScope scratch(context);
  std::int32_t* order = scratch.take<std::int32_t>(p_TE.rows);
  with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
    expert_choice_in<A>(order, kept_TE, chosen_GE, choice_TE, p_TE, first_token, capacity);
  });
}

void row_map(KernelContext& /*context*/, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
             const Tensor& choice_Tk, const Tensor& kept_Tk) {
  const std::int64_t T = choice_Tk.rows;
  const std::int64_t k = choice_Tk.cols;
  expect_row_map(slot_Tk, token_N, count_E, choice_Tk, kept_Tk);
  std::int64_t row = 0;
  for (std::int64_t n = 0; n < token_N.rows; ++n) *token_N.row<std::int32_t>(n) = -1;
  for (std::int64_t e = 0; e < count_E.cols; ++e) {
    const std::int64_t first_row = row;
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t j = 0; j < k; ++j) {
        std::int32_t& slot = slot_Tk.row<std::int32_t>(t)[j];
        const bool kept = kept_Tk.row<std::int32_t>(t)[j] != 0;
        if (!kept) slot = -1;
        if (!kept || choice_Tk.row<std::int32_t>(t)[j] != e) continue;
        FLANMOE_EXPECT(row < token_N.rows, "more than {} kept copies", token_N.rows);
        *token_N.row<std::int32_t>(row) = std::int32_t(t);
        slot = std::int32_t(row++);
      }
    }
    count_E.as<std::int32_t>()[e] = std::int32_t(row - first_row);
  }
}

template <class A>
void measure_tokens(double* measure, const Tensor& logits_TE, const Tensor& p_TE, const Tensor& log_z_T,
                    const Tensor& kept_Tk) {
  for (std::int64_t t = 0; t < p_TE.rows; ++t) {
    const double log_z = double(*log_z_T.row<A>(t));
    double mean_logit = 0;
    for (std::int64_t e = 0; e < p_TE.cols; ++e)
      mean_logit += double(p_TE.row<A>(t)[e]) * double(logits_TE.row<A>(t)[e]);
    measure[RouterMeasures::entropy] += log_z - mean_logit;
    measure[RouterMeasures::log_z2] += log_z * log_z;
    bool kept = false;
    for (std::int64_t j = 0; j < kept_Tk.cols; ++j) kept = kept || kept_Tk.row<std::int32_t>(t)[j] != 0;
    if (!kept) measure[RouterMeasures::unrouted] += 1;
  }
}

/// sum_e balance_ge * (sum over the tokens of group g of p_te) / tokens^2.
template <class A>
double balance_of_group(const Tensor& p_TE, const std::int32_t* balance, std::int64_t first, std::int64_t last) {
  if (first == last) return 0;
  double product = 0;
  for (std::int64_t e = 0; e < p_TE.cols; ++e) {
    double mass = 0;
    for (std::int64_t t = first; t < last; ++t) mass += double(p_TE.row<A>(t)[e]);
    product += double(balance[e]) * mass;
  }
  const double tokens = double(last - first);
  return product / (tokens * tokens);
}

void measure(KernelContext& /*context*/, const Tensor& measure_S, const Tensor& logits_TE, const Tensor& p_TE,
             const Tensor& log_z_T, const Tensor& kept_Tk, const Tensor& count_E, const Tensor& chosen_GE,
             const Tensor& balance_GE, std::span<const std::int64_t> first_token) {
  expect_measure(measure_S, logits_TE, p_TE, log_z_T, kept_Tk, count_E, chosen_GE, balance_GE, first_token);
  auto* measure = measure_S.as<double>();
  std::fill(measure, measure + measure_S.cols, 0.0);
  for (std::int64_t e = 0; e < p_TE.cols; ++e) {
    double* of_expert = measure + RouterMeasures::per_expert + e;
    for (std::int64_t g = 0; g < chosen_GE.rows; ++g) *of_expert += chosen_GE.row<std::int32_t>(g)[e];
    of_expert[p_TE.cols] = count_E.as<std::int32_t>()[e];
  }
  with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
    measure_tokens<A>(measure, logits_TE, p_TE, log_z_T, kept_Tk);
    for (std::int64_t g = 0; g < chosen_GE.rows && !balance_GE.absent(); ++g) {
      measure[RouterMeasures::balance] += balance_of_group<A>(
          p_TE, balance_GE.row<std::int32_t>(g), first_token[std::size_t(g)], first_token[std::size_t(g) + 1]);
    }
  });
}

void balance_gradient(KernelContext& /*context*/, const Tensor& dp_GE, const Tensor& balance_GE,
                      std::span<const std::int64_t> first_token, double weight, std::int64_t step_groups) {
  expect_balance_gradient(dp_GE, balance_GE, first_token);
  with_type<float, double>(dp_GE, "dp", [&]<class A>(std::type_identity<A>) {
    for (std::int64_t g = 0; g < dp_GE.rows; ++g) {
      const double tokens = double(first_token[std::size_t(g) + 1] - first_token[std::size_t(g)]);
      for (std::int64_t e = 0; e < dp_GE.cols; ++e) {
        const bool none = balance_GE.absent() || tokens == 0;
        const double f = none ? 0.0 : balance_GE.row<std::int32_t>(g)[e] / tokens;
        dp_GE.row<A>(g)[e] = f > 0 ? A(weight * f / (double(step_groups) * tokens)) : A(0);
      }
    }
  });
}

void add_claims(KernelContext& /*context*/, const Tensor& claims_E, const Tensor& chosen_GE) {
  expect_claims(claims_E, chosen_GE);
  with_type<float, double>(claims_E, "claims", [&]<class A>(std::type_identity<A>) {
    for (std::int64_t g = 0; g < chosen_GE.rows; ++g) {
      for (std::int64_t e = 0; e < claims_E.cols; ++e) claims_E.as<A>()[e] += A(chosen_GE.row<std::int32_t>(g)[e]);
    }
  });
}

template <class A>
void backward_in(const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE, double z_scale,
                 const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
                 std::span<const std::int64_t> first_token, bool renormalize) {
  const std::int64_t E = p_TE.cols;
  const std::int64_t k = choice_Tk.cols;
  for (std::int64_t g = 0; g < dp_GE.rows; ++g) {
    for (std::int64_t t = first_token[std::size_t(g)]; t < first_token[std::size_t(g) + 1]; ++t) {
      const A* p = p_TE.row<A>(t);
      const A* dweight = dweight_Tk.row<A>(t);
      const std::int32_t* choice = choice_Tk.row<std::int32_t>(t);
      A* dp = dlogits_TE.row<A>(t);
      std::copy(dp_GE.row<A>(g), dp_GE.row<A>(g) + E, dp);
      // weight_j = p_j / s with s = sum of the chosen p: dp_j = (dweight_j - sum_i dweight_i weight_i) / s.
      A s = 1;
      A shared = 0;
      if (renormalize) {
        s = 0;
        for (std::int64_t j = 0; j < k; ++j) s += p[choice[j]];
        for (std::int64_t j = 0; j < k; ++j) shared += dweight[j] * p[choice[j]] / s;
      }
      const bool equal = renormalize && s < A(kLeastChosen);
      for (std::int64_t j = 0; !equal && j < k; ++j) dp[choice[j]] += (dweight[j] - shared) / s;

      A mean = 0;
      for (std::int64_t e = 0; e < E; ++e) mean += p[e] * dp[e];
      const A z = A(2 * z_scale) * *log_z_T.row<A>(t);
      for (std::int64_t e = 0; e < E; ++e) dp[e] = p[e] * (dp[e] - mean + z);
    }
  }
}

void backward(KernelContext& /*context*/, const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE,
              double z_scale, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
              std::span<const std::int64_t> first_token, bool renormalize) {
  expect_backward(dlogits_TE, dweight_Tk, dp_GE, p_TE, log_z_T, choice_Tk, first_token);
  with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
    backward_in<A>(dlogits_TE, dweight_Tk, dp_GE, z_scale, p_TE, log_z_T, choice_Tk, first_token, renormalize);
  });
}

std::size_t scratch_bytes(std::int64_t tokens, std::int64_t /*experts*/) { return scratch_size<std::int32_t>(tokens); }

}  // namespace

const RouterKernels router_kernels = {jitter,     softmax,  top_k,         spread,  weigh,   admit,
                                      count,      assign,   expert_choice, row_map, measure, balance_gradient,
                                      add_claims, backward, scratch_bytes};

}  // namespace flanmoe::reference
