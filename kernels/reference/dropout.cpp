#include "kernels/dropout.hpp"

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

bool keeps(const DropoutMask& mask, std::int64_t t, std::int64_t column) {
  const std::int64_t word = column / mask.columns_per_mask;
  const auto block = mask.key.words(std::uint64_t(mask.row_T[std::size_t(t)]),
                                    std::uint32_t(mask.position_T[std::size_t(t)]), std::uint32_t(word / 4));
  return double(block[std::size_t(word % 4)]) * 0x1p-32 >= double(mask.rate);
}

void expect_mask(const DropoutMask& mask, std::int64_t tokens) {
  FLANMOE_EXPECT(mask.rate >= 0 && mask.rate < 1, "dropout rate {}", mask.rate);
  FLANMOE_EXPECT(mask.columns_per_mask > 0, "{} columns per mask", mask.columns_per_mask);
  FLANMOE_EXPECT(
      mask.rate == 0 || (std::int64_t(mask.row_T.size()) == tokens && std::int64_t(mask.position_T.size()) == tokens),
      "{} rows and {} positions for {} tokens", mask.row_T.size(), mask.position_T.size(), tokens);
}

/// Calls f(t, c, factor) with the factor 1/(1-rate), or 0 where the element is dropped.
template <class A, class F>
void for_each_element(const Tensor& shape, const DropoutMask& mask, F&& f) {
  const A factor = 1 / (1 - A(mask.rate));
  for (std::int64_t t = 0; t < shape.rows; ++t) {
    for (std::int64_t c = 0; c < shape.cols; ++c) f(t, c, mask.rate == 0 || keeps(mask, t, c) ? factor : A(0));
  }
}

void apply(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& x_TD, const DropoutMask& mask) {
  expect_like(y_TD, x_TD, "y");
  expect_mask(mask, x_TD.rows);
  with_type<float, bf16, double>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    using A = accumulate_t<C>;
    for_each_element<A>(x_TD, mask, [&](std::int64_t t, std::int64_t c, A factor) {
      y_TD.row<C>(t)[c] = factor == 0 ? C(0) : C(widen(x_TD.row<C>(t)[c]) * factor);
    });
  });
}

void add(KernelContext& /*context*/, const Tensor& residual_TD, const Tensor& x_TD, const DropoutMask& mask) {
  expect_matrix(residual_TD, accumulate_dtype(x_TD.dtype), x_TD.rows, x_TD.cols, "residual");
  expect_mask(mask, x_TD.rows);
  with_type<float, bf16, double>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    using A = accumulate_t<C>;
    for_each_element<A>(x_TD, mask, [&](std::int64_t t, std::int64_t c, A factor) {
      if (factor != 0) residual_TD.row<A>(t)[c] += widen(x_TD.row<C>(t)[c]) * factor;
    });
  });
}

}  // namespace

const DropoutKernels dropout_kernels = {apply, add};

}  // namespace flanmoe::reference
