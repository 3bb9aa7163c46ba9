#include "kernels/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe::test {
namespace {

const auto devices = devices_of(reference::attention_kernels, cpu::attention_kernels, cuda_attention);
constexpr std::uint64_t kOut = 9;

/// Lists of segments that stay alive.
struct Layout {
  std::vector<std::int32_t> q0, q, k0, k;
  std::vector<std::int32_t> prefix = {};  // of each segment; empty: none
  AttentionSegments segments() const { return {q0, q, k0, k, prefix}; }
  std::int32_t queries() const { return rows(q0, q); }
  std::int32_t keys() const { return rows(k0, k); }
  std::int32_t longest_keys() const { return *std::max_element(k.begin(), k.end()); }

  static std::int32_t rows(const std::vector<std::int32_t>& begin, const std::vector<std::int32_t>& count) {
    std::int32_t end = 0;
    for (std::size_t s = 0; s < begin.size(); ++s) end = std::max(end, begin[s] + count[s]);
    return end;
  }
};

/// Segments of the given lengths after one another, one unused row between them.
Layout layout_of(const std::vector<std::int32_t>& queries, const std::vector<std::int32_t>& keys) {
  Layout layout;
  std::int32_t q = 0, k = 0;
  for (std::size_t s = 0; s < queries.size(); ++s) {
    layout.q0.push_back(q);
    layout.k0.push_back(k);
    q += queries[s] + 1;
    k += keys[s] + 1;
  }
  layout.q = queries;
  layout.k = keys;
  return layout;
}

/// Operands of one forward and backward; outputs start as NaN but dbias, which is added to.
struct Problem {
  Problem(DType type, const Layout& l, AttentionShape s, bool with_bias, std::int64_t padding = 0)
      : layout(l),
        shape(s),
        biased(with_bias),
        q(type, l.queries(), width(), padding),
        k(type, l.keys(), key_width(), padding),
        v(type, l.keys(), key_width(), padding),
        out(type, l.queries(), width(), padding),
        dout(type, l.queries(), width(), padding),
        dq(type, l.queries(), width(), padding),
        dk(type, l.keys(), key_width(), padding),
        dv(type, l.keys(), key_width(), padding),
        bias(accumulate_dtype(type), s.heads, 2 * l.longest_keys() + 1, padding),
        dbias(accumulate_dtype(type), s.heads, 2 * l.longest_keys() + 1, padding),
        logsumexp(accumulate_dtype(type), l.queries(), s.heads, padding) {
    const double spread = 1.5 / std::sqrt(std::sqrt(double(s.head_dim)));
    q.randomize(1, spread);
    k.randomize(2, spread);
    v.randomize(3);
    bias.randomize(4);
    dout.randomize(5);
    dbias.randomize(6);
  }
  std::int64_t width() const { return std::int64_t{shape.heads} * shape.head_dim; }
  std::int64_t key_width() const { return std::int64_t{shape.key_heads()} * shape.head_dim; }
  Tensor bias_or_nothing() const { return biased ? bias.view() : Tensor{}; }
  void forward(const AttentionKernels& kernels, KernelContext& context) {
    kernels.forward(context, out, logsumexp, q, k, v, bias_or_nothing(), layout.segments(), shape);
  }
  void backward(const AttentionKernels& kernels, KernelContext& context) {
    kernels.backward(context, dq, dk, dv, biased ? dbias.view() : Tensor{}, dout, q, k, v, bias_or_nothing(), out,
                     logsumexp, layout.segments(), shape);
  }

  Layout layout;
  AttentionShape shape;
  bool biased;
  Buffer q, k, v, out, dout, dq, dk, dv, bias, dbias, logsumexp;
};

/// The rows of `rows` that belong to a segment, as a dense buffer.
Buffer rows_of(const Buffer& x, const std::vector<std::int32_t>& begin, const std::vector<std::int32_t>& count) {
  std::vector<double> values;
  std::int64_t rows = 0;
  for (std::size_t s = 0; s < begin.size(); ++s) {
    for (std::int64_t r = begin[s]; r < begin[s] + count[s]; ++r, ++rows) {
      for (std::int64_t c = 0; c < x.view().cols; ++c) values.push_back(x.get(r * x.view().cols + c));
    }
  }
  Buffer out(x.view().dtype, rows, x.view().cols);
  out.assign(values);
  return out;
}

/// One device against what the reference gave.
void compare(const Implementation<AttentionKernels>& device, const Problem& expected, std::int64_t padding,
             KernelContext& context) {
  const Layout& layout = expected.layout;
  const AttentionShape& shape = expected.shape;
  const DType type = expected.q.view().dtype;
  Problem got(type, layout, shape, expected.biased, padding);
  got.forward(device.kernels, context);
  const auto what = fmt::format("{}: {} {} ({}) heads of {}, causal {}, prefix {}, bias {}, {} queries, {} keys",
                                device.device, name_of(type), shape.heads, shape.kv_heads, shape.head_dim, shape.causal,
                                !layout.prefix.empty(), expected.biased, layout.queries(), layout.keys());
  // In bf16 probabilities and dscore are rounded before they are multiplied.
  const double extra = type == DType::bf16 ? 2 * roundoff(DType::bf16) : 1e-5;
  const auto queries = [&](const Buffer& x) { return rows_of(x, layout.q0, layout.q); };
  const auto keys = [&](const Buffer& x) { return rows_of(x, layout.k0, layout.k); };
  expect_close(queries(got.out), queries(expected.out), extra, what + " out");
  expect_close(queries(got.logsumexp), queries(expected.logsumexp), 1e-6, what + " logsumexp");
  // The backward is compared on the same saved values, so that it alone is judged.
  got.out.copy_from(expected.out);
  got.logsumexp.copy_from(expected.logsumexp);
  got.backward(device.kernels, context);
  expect_close(queries(got.dq), queries(expected.dq), extra, what + " dq");
  expect_close(keys(got.dk), keys(expected.dk), extra, what + " dk");
  expect_close(keys(got.dv), keys(expected.dv), extra, what + " dv");
  if (expected.biased) expect_close(got.dbias, expected.dbias, extra, what + " dbias");
}

void compare(DType type, const Layout& layout, AttentionShape shape, bool with_bias, std::int64_t padding,
             KernelContext& context) {
  Problem expected(type, layout, shape, with_bias, padding);
  expected.forward(reference::attention_kernels, context);
  expected.backward(reference::attention_kernels, context);
  for (const auto& device : fast_devices_of(cpu::attention_kernels, cuda_attention)) {
    compare(device, expected, padding, context);
  }
}

TEST(Attention, OneQueryOverTwoKeysIsAsByHand) {
  for (const auto& device : devices) {
    TestContext context;
    AttentionShape shape;
    shape.heads = 1;
    shape.head_dim = 2;
    shape.scale = 0.5F;
    const Layout layout = layout_of({1}, {2});
    Problem p(DType::f32, layout, shape, true);
    p.q.assign({2, 0});
    p.k.assign({1, 5, 0, 7});
    p.v.assign({1, 2, 3, 4});
    // Five offsets -2..2; the query is at position 1: key 0 has offset 1, key 1 offset 0. Scores: 1 + 0.5, 0 + 0.1.
    p.bias.assign({9, 9, 0.1, 0.5, 9});
    p.dout.assign({1, 0});
    p.dbias.fill(0);

    p.forward(device.kernels, context);
    p.backward(device.kernels, context);

    const double p0 = std::exp(1.5) / (std::exp(1.5) + std::exp(0.1)), p1 = 1 - p0;
    const auto near = [&](const Buffer& x, std::int64_t i, double e) {
      EXPECT_NEAR(x.get(i), e, 1e-6) << device.device << " element " << i;
    };
    near(p.out, 0, p0 + 3 * p1);
    near(p.out, 1, 2 * p0 + 4 * p1);
    near(p.logsumexp, 0, std::log(std::exp(1.5) + std::exp(0.1)));
    const double d0 = p0 * (1 - (p0 + 3 * p1)), d1 = p1 * (3 - (p0 + 3 * p1));  // dscore
    near(p.dv, 0, p0);
    near(p.dv, 2, p1);
    near(p.dv, 1, 0);
    near(p.dk, 0, 0.5 * d0 * 2);
    near(p.dk, 2, 0.5 * d1 * 2);
    near(p.dq, 0, 0.5 * d0);
    near(p.dq, 1, 0.5 * (5 * d0 + 7 * d1));
    expect_close(p.dbias, std::vector<double>{0, 0, d1, d0, 0}, 1e-5, device.device);
  }
}

TEST(Attention, FastEqualsReferenceOnOddSizes) {
  TestContext context;
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const bool causal : {false, true}) {
      for (const bool bias : {false, true}) {
        AttentionShape shape;
        shape.heads = 3;
        shape.head_dim = 5;
        shape.causal = causal;
        shape.scale = 0.7F;
        compare(type, layout_of({1, 7, 0, 70, 17, 4}, {1, 7, 0, 70, 33, 90}), shape, bias, 3, context);
        shape.heads = 2;
        shape.head_dim = 64;
        compare(type, layout_of({20, 8, 130}, {20, 30, 130}), shape, bias, 0, context);
      }
    }
  }
}

TEST(Attention, FastEqualsReferenceOverSeveralBlocksOfQueriesAndKeys) {
  TestContext context;
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const bool causal : {false, true}) {
      AttentionShape shape;
      shape.heads = 1;
      shape.head_dim = 33;
      shape.causal = causal;
      compare(type, layout_of({300}, {600}), shape, true, 0, context);
      compare(type, layout_of({3}, {600}), shape, true, 0, context);  // decoding: few queries take another path
    }
  }
}

TEST(Attention, CrossAttentionMayHaveMoreQueriesThanKeysAndSegmentsWithoutKeys) {
  TestContext context;
  for (const DType type : {DType::f32, DType::bf16}) {
    AttentionShape shape;
    shape.heads = 2;
    shape.head_dim = 16;
    compare(type, layout_of({9, 40, 5, 0, 3}, {2, 7, 300, 6, 1}), shape, false, 0, context);
    for (const auto& device : devices) {
      Problem p(type, layout_of({2, 6, 3}, {0, 0, 4}), shape, false);
      p.forward(device.kernels, context);
      p.backward(device.kernels, context);
      for (const std::int64_t row : {0, 1, 3, 8}) {
        EXPECT_EQ(p.out.get(row * 32), 0) << device.device << " row " << row;
        EXPECT_EQ(p.dq.get(row * 32 + 31), 0) << device.device << " row " << row;
        EXPECT_EQ(p.logsumexp.get(row * 2), -std::numeric_limits<double>::infinity()) << device.device;
      }
    }
  }
}

TEST(Attention, SharedKeysAndAPrefixAreAsByHand) {
  for (const auto& device : devices) {
    TestContext context;
    AttentionShape shape;
    shape.heads = 2;
    shape.head_dim = 1;
    shape.causal = true;
    shape.kv_heads = 1;
    Layout layout = layout_of({3}, {3});
    layout.prefix = {2};
    Problem p(DType::f32, layout, shape, false);
    p.q.assign({1, 0, 2, 0, 0, 1});  // three queries of two heads
    p.k.assign({0, std::log(3.0), 5});
    p.v.assign({1, 2, 4});
    p.dout.assign({1, 0, 0, 0, 0, 1});

    p.forward(device.kernels, context);
    p.backward(device.kernels, context);

    // Queries 0 and 1 see the prefix, keys 0 and 1; query 2 sees all. Weights of head 0: 1:3, 1:9, 1:1:1.
    const double third = (1 + 2 + 4) / 3.0, e5 = std::exp(5.0), all = 1 + 3 + e5;
    const double last = (1 + 2 * 3 + 4 * e5) / all;  // query 2, head 1: 1 : 3 : e^5
    expect_close(p.out, std::vector<double>{1.75, 1.5, 1.9, 1.5, third, last}, 1e-6, device.device);
    expect_close(
        p.logsumexp,
        std::vector<double>{std::log(4.0), std::log(2.0), std::log(10.0), std::log(2.0), std::log(3.0), std::log(all)},
        1e-6, device.device);
    // Query 0 of head 0 and query 2 of head 1 have a gradient; both reach the one key/value head.
    expect_close(p.dv, std::vector<double>{0.25 + 1 / all, 0.75 + 3 / all, e5 / all}, 1e-6, device.device);
    const double d0 = 0.25 * (1 - 1.75), d1 = 0.75 * (2 - 1.75);  // dscore of query 0, whose q is 1
    const std::vector<double> dk{d0 + (1 - last) / all, d1 + 3 * (2 - last) / all, e5 * (4 - last) / all};
    expect_close(p.dk, dk, 1e-5, device.device);
    expect_close(p.dq,
                 std::vector<double>{d1 * std::log(3.0), 0, 0, 0, 0,
                                     (3 * (2 - last) * std::log(3.0) + e5 * (4 - last) * 5) / all},
                 1e-5, device.device);
  }
}

TEST(Attention, FastEqualsReferenceWithFewerKeyHeadsAndPrefixes) {
  TestContext context;
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const int kv_heads : {1, 2, 3}) {
      for (const bool prefix : {false, true}) {
        AttentionShape shape;
        shape.heads = 6;
        shape.head_dim = 7;
        shape.causal = true;
        shape.kv_heads = kv_heads;
        shape.scale = 0.5F;
        Layout layout = layout_of({1, 7, 0, 70, 17, 4}, {1, 7, 0, 70, 33, 90});
        if (prefix) layout.prefix = {1, 3, 0, 70, 20, 0};
        compare(type, layout, shape, prefix, 3, context);
      }
    }
    AttentionShape shape;
    shape.heads = 2;
    shape.head_dim = 33;
    shape.causal = true;
    shape.kv_heads = 1;
    for (const std::int32_t prefix : {0, 5, 64, 257, 300, 599}) {  // around the edges of strips and blocks
      Layout layout = layout_of({300, 3}, {600, 600});
      layout.prefix = {prefix, prefix};
      compare(type, layout, shape, false, 0, context);
    }
  }
}

TEST(Attention, APrefixOfAllKeysIsAttentionInBothDirections) {
  for (const auto& device : devices) {
    TestContext context;
    AttentionShape shape;
    shape.heads = 2;
    shape.head_dim = 8;
    Problem open(DType::f32, layout_of({90, 30}, {90, 30}), shape, false);
    shape.causal = true;
    Layout layout = layout_of({90, 30}, {90, 30});
    layout.prefix = {90, 30};
    Problem prefix(DType::f32, layout, shape, false);
    for (Problem* p : {&open, &prefix}) {
      for (Buffer* x : {&p->out, &p->dq, &p->dk, &p->dv}) x->fill(0);
      p->forward(device.kernels, context);
      p->backward(device.kernels, context);
    }
    EXPECT_TRUE(same_bits(open.out, prefix.out)) << device.device;
    EXPECT_TRUE(same_bits(open.dq, prefix.dq)) << device.device;
    EXPECT_TRUE(same_bits(open.dk, prefix.dk)) << device.device;
    EXPECT_TRUE(same_bits(open.dv, prefix.dv)) << device.device;
  }
}

TEST(Attention, RowsOutsideOfSegmentsAreNotTouched) {
  for (const auto& device : devices) {
    TestContext context;
    AttentionShape shape;
    shape.heads = 1;
    shape.head_dim = 4;
    Problem p(DType::f32, layout_of({5, 6}, {5, 6}), shape, false);
    for (Buffer* x : {&p.out, &p.dq, &p.dk, &p.dv}) x->fill(77);
    p.logsumexp.fill(77);
    p.forward(device.kernels, context);
    p.backward(device.kernels, context);
    for (Buffer* x : {&p.out, &p.dq, &p.dk, &p.dv}) {
      for (std::int64_t c = 0; c < 4; ++c) EXPECT_EQ(x->get(5 * 4 + c), 77) << device.device;
    }
    EXPECT_EQ(p.logsumexp.get(5), 77);
  }
}

TEST(Attention, ASegmentIsBlindToTheOthers) {
  for (const auto& device : devices) {
    TestContext context;
    AttentionShape shape;
    shape.heads = 2;
    shape.head_dim = 8;
    Problem together(DType::f32, layout_of({30, 40}, {30, 40}), shape, true);
    Problem alone(DType::f32, layout_of({30}, {30}), shape, true);
    alone.bias.assign(std::vector<double>(alone.bias.size(), 0.0));
    together.bias.assign(std::vector<double>(together.bias.size(), 0.0));
    const auto head_of = [](const Buffer& from, Buffer& to) {
      for (std::int64_t i = 0; i < to.size(); ++i) to.set(i, from.get(i));
    };
    head_of(together.q, alone.q);
    head_of(together.k, alone.k);
    head_of(together.v, alone.v);
    together.forward(device.kernels, context);
    alone.forward(device.kernels, context);
    for (std::int64_t i = 0; i < alone.out.size(); ++i) EXPECT_EQ(alone.out.get(i), together.out.get(i));
  }
}

TEST(Attention, HugeScoresStayFinite) {
  for (const auto& device : devices) {
    TestContext context;
    AttentionShape shape;
    shape.heads = 1;
    shape.head_dim = 1;
    shape.causal = true;
    Problem p(DType::f32, layout_of({300}, {300}), shape, false);
    for (std::int64_t i = 0; i < p.q.size(); ++i) {
      p.q.set(i, 100);
      p.k.set(i, i % 2 == 0 ? 100 : -100);
    }
    p.forward(device.kernels, context);
    p.backward(device.kernels, context);
    for (const Buffer* x : {&p.out, &p.dq, &p.dk, &p.dv}) {
      for (std::int64_t i = 0; i < 300; ++i) ASSERT_TRUE(std::isfinite(x->get(i))) << device.device << " row " << i;
    }
  }
}

TEST(Attention, GradientsAgreeWithCentralDifferences) {
  for (const auto& [kv_heads, bias] : {std::pair{0, false}, {0, true}, {1, false}, {2, true}}) {
    for (const bool causal : {false, true}) {
      TestContext context;
      AttentionShape shape;
      shape.heads = kv_heads == 2 ? 4 : 2;
      shape.head_dim = 3;
      shape.causal = causal;
      shape.scale = 0.6F;
      shape.kv_heads = kv_heads;
      Layout layout = layout_of({4, 2}, {4, 5});
      if (kv_heads > 0) layout.prefix = {2, 5};
      Problem p(DType::f64, layout, shape, bias), probe(DType::f64, layout, shape, bias);
      for (Buffer* x : {&p.dq, &p.dk, &p.dv, &p.dbias, &p.out, &p.dout}) x->fill(0);
      for (std::size_t s = 0; s < layout.q.size(); ++s) {  // rows outside of segments stay 0
        for (std::int64_t i = layout.q0[s] * p.width(); i < (layout.q0[s] + layout.q[s]) * p.width(); ++i) {
          p.dout.set(i, std::sin(double(i) + double(kOut)));
        }
      }
      p.forward(reference::attention_kernels, context);
      p.backward(reference::attention_kernels, context);
      probe.out.fill(0);
      const auto loss = [&] {
        probe.forward(reference::attention_kernels, context);
        return weighted_sum(probe.out, p.dout);
      };
      expect_gradient(p.dq, loss, probe.q, "dq");
      expect_gradient(p.dk, loss, probe.k, "dk");
      expect_gradient(p.dv, loss, probe.v, "dv");
      if (bias) expect_gradient(p.dbias, loss, probe.bias, "dbias");
    }
  }
}

TEST(Attention, ResultsDoNotDependOnTheNumberOfThreads) {
  for (const DType type : {DType::f32, DType::bf16}) {
    AttentionShape shape;
    shape.heads = 3;
    shape.head_dim = 16;
    std::vector<std::int32_t> counts;
    for (std::int32_t s = 0; s < 40; ++s) counts.push_back(5 + s * 7 % 90);
    shape.causal = true;
    shape.kv_heads = 1;
    expect_same_bits_on_threads([&](std::vector<Buffer>& out) {
      TestContext context;
      Problem p(type, layout_of(counts, counts), shape, true);
      p.forward(cpu::attention_kernels, context);
      p.backward(cpu::attention_kernels, context);
      for (Buffer* x : {&p.out, &p.logsumexp, &p.dq, &p.dk, &p.dv, &p.dbias}) out.push_back(std::move(*x));
    });
  }
}

TEST(Attention, ScratchIsWhatIsAnnounced) {
  for (const DType type : {DType::f32, DType::bf16}) {
    AttentionShape shape;
    shape.heads = 2;
    shape.head_dim = 40;
    Problem p(type, layout_of({20, 310}, {20, 310}), shape, true);
    Arena arena("announced");
    arena.allocate(DType::bf16, 1, std::int64_t(cpu::attention_kernels.scratch_bytes(310, type, shape)) / 2);
    arena.commit();
    KernelContext context{&arena, nullptr};
    p.forward(cpu::attention_kernels, context);  // the arena throws when it is asked for more
    p.backward(cpu::attention_kernels, context);
    EXPECT_EQ(arena.used(), 0U);
  }
}

TEST(Attention, OperandsThatDoNotFitAreRefused) {
  for (const auto& device : devices) {
    TestContext context;
    AttentionShape shape;
    shape.heads = 1;
    shape.head_dim = 4;
    Problem past_the_end(DType::f32, layout_of({5}, {5}), shape, false);
    past_the_end.layout.k[0] = 7;
    EXPECT_THROW(past_the_end.forward(device.kernels, context), LogicError) << device.device;
    Problem wrong_prefix(DType::f32, layout_of({5}, {5}), shape, false);
    wrong_prefix.layout.prefix = {6};
    EXPECT_THROW(wrong_prefix.forward(device.kernels, context), LogicError) << device.device;
    wrong_prefix.layout.prefix = {1, 1};
    EXPECT_THROW(wrong_prefix.forward(device.kernels, context), LogicError) << device.device;
    Problem more_queries_than_keys(DType::f32, layout_of({5}, {4}), shape, true);
    EXPECT_THROW(more_queries_than_keys.forward(device.kernels, context), LogicError) << device.device;
  }
}

}  // namespace
}  // namespace flanmoe::test
