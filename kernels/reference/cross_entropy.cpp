#include "kernels/cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/cross_entropy_checks.hpp"
#include "kernels/reference/scalar.hpp"

namespace flanmoe::reference {
namespace {

struct Operands {
  const Tensor &nll_T, &z_T, &hit_T, &dx_TD, &dw, &x_TD, &w, &target_T;
};

/// The gradient of a weight, leaf by leaf: each is rounded, then neighbours are added, then pairs of neighbours.
template <class A>
class LeafSums {
 public:
  explicit LeafSums(std::size_t size) : sum_(size) {}
  std::vector<double>& sum() { return sum_; }  // of the leaf that is being summed
  void end_leaf(double scale) {
    auto& leaf = waiting_.emplace_back();
    for (double& x : sum_) {
      leaf.push_back(A(scale * x));
      x = 0;
    }
    for (std::size_t n = ++leaves_; n % 2 == 0; n /= 2) {
      const auto right = std::move(waiting_.back());
      waiting_.pop_back();
      for (std::size_t i = 0; i < right.size(); ++i) waiting_.back()[i] += right[i];
    }
  }
  const std::vector<A>& all() const { return waiting_.front(); }

 private:
  std::size_t leaves_ = 0;
  std::vector<double> sum_;
  std::vector<std::vector<A>> waiting_;
};

template <class C, class A>
void forward_backward_in(const Operands& o, const CrossEntropyShape& shape) {
  const bool tied = shape.transpose_w == Transpose::yes;
  const std::int64_t V = vocabulary_of(o.w, shape);
  const std::int64_t D = o.x_TD.cols;
  const Matrix<C> x(o.x_TD), w(o.w), dx(o.dx_TD);
  const Matrix<A> nll(o.nll_T), z(o.z_T), hit(o.hit_T), dw(o.dw);
  const auto w_at = [&](std::int64_t d, std::int64_t v) { return tied ? w(v, d) : w(d, v); };
  std::vector<double> logit(static_cast<std::size_t>(V)), dlogit(logit.size());
  LeafSums<A> dw_sums(static_cast<std::size_t>(o.dx_TD.absent() || o.dw.absent() ? 0 : V * D));
  std::vector<double>& dw_sum = dw_sums.sum();
  std::size_t leaf = 1;  // the next boundary

  for (std::int64_t t = 0; t < o.x_TD.rows; ++t) {
    for (; leaf + 1 < shape.leaves.size() && shape.leaves[leaf] == t; ++leaf) dw_sums.end_leaf(shape.logit_scale);
    for (std::int64_t v = 0; v < V; ++v) {
      double sum = 0;
      for (std::int64_t d = 0; d < D; ++d) sum += x(t, d) * w_at(d, v);
      logit[std::size_t(v)] = shape.logit_scale * sum;
    }
    const auto largest = std::max_element(logit.begin(), logit.end());  // the first of equals
    double sum = 0;
    for (const double l : logit) sum += std::exp(l - *largest);
    const double log_z = *largest + std::log(sum);
    const std::int64_t target = *o.target_T.row<std::int32_t>(t);
    nll.set(t, 0, log_z - logit[std::size_t(target)]);
    z.set(t, 0, shape.z_coefficient * log_z * log_z);
    hit.set(t, 0, largest - logit.begin() == target ? 1 : 0);
    if (o.dx_TD.absent()) continue;

    for (std::int64_t v = 0; v < V; ++v) {
      const double softmax = std::exp(logit[std::size_t(v)] - log_z);
      const double gradient = (1 + 2 * shape.z_coefficient * log_z) * softmax - (v == target ? 1 : 0);
      dlogit[std::size_t(v)] = to_double(from_double<C>(shape.gradient_scale * gradient));
    }
    for (std::int64_t d = 0; d < D; ++d) {
      double dx_sum = 0;
      for (std::int64_t v = 0; v < V; ++v) {
        dx_sum += dlogit[std::size_t(v)] * w_at(d, v);
        if (dw_sum.empty()) continue;
        dw_sum[std::size_t(tied ? v * D + d : d * V + v)] += x(t, d) * dlogit[std::size_t(v)];
      }
      dx.set(t, d, shape.logit_scale * dx_sum);
    }
  }
  // The last leaf, and those without tokens at the end; one where there are no boundaries.
  for (; leaf < std::max<std::size_t>(2, shape.leaves.size()); ++leaf) dw_sums.end_leaf(shape.logit_scale);
  for (std::size_t i = 0; i < dw_sum.size(); ++i) {
    const std::int64_t row = std::int64_t(i) / o.dw.cols, col = std::int64_t(i) % o.dw.cols;
    const double before = shape.beta == 0.0F ? 0.0 : dw(row, col);
    dw.set(row, col, before + double(dw_sums.all()[i]));
  }
}

void forward_backward(KernelContext& /*context*/, const Tensor& nll_T, const Tensor& z_T, const Tensor& hit_T,
                      const Tensor& dx_TD, const Tensor& dw, const Tensor& x_TD, const Tensor& w,
                      const Tensor& target_T, const CrossEntropyShape& shape) {
  check_cross_entropy(nll_T, z_T, hit_T, dx_TD, dw, x_TD, w, target_T, shape);
  expect_targets(target_T, vocabulary_of(w, shape));
  with_type(x_TD.dtype, [&]<class C>(C) {
    forward_backward_in<C, Accumulate<C>>({nll_T, z_T, hit_T, dx_TD, dw, x_TD, w, target_T}, shape);
  });
}

std::size_t scratch_bytes(std::int64_t /*tokens*/, std::int64_t /*vocabulary*/, DType /*compute*/,
                          const CrossEntropyShape& /*shape*/) {
  return 0;
}

}  // namespace

const CrossEntropyKernels cross_entropy_kernels{forward_backward, scratch_bytes};

}  // namespace flanmoe::reference
