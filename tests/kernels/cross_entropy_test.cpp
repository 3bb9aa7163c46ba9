#include "kernels/cross_entropy.hpp"

#include <cmath>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe::test {
namespace {

const auto devices = devices_of(reference::cross_entropy_kernels, cpu::cross_entropy_kernels, cuda_cross_entropy);

/// Operands of one call; w is stored as `shape` says.
struct Problem {
  Problem(DType type, std::int64_t tokens, std::int64_t width, std::int64_t vocabulary, CrossEntropyShape s,
          std::int64_t padding = 0)
      : shape(s),
        nll(accumulate_dtype(type), tokens, 1),
        z(accumulate_dtype(type), tokens, 1),
        hit(accumulate_dtype(type), tokens, 1),
        dx(type, tokens, width, padding),
        dw(accumulate_dtype(type), s.transpose_w == Transpose::yes ? vocabulary : width,
           s.transpose_w == Transpose::yes ? width : vocabulary, padding),
        x(type, tokens, width, padding),
        w(type, dw.view().rows, dw.view().cols, padding),
        target(DType::i32, tokens, 1) {
    x.randomize(1);
    w.randomize(2, 0.5);
    target.randomize_below(3, vocabulary);
    dw.randomize(4);
  }
  void run(const CrossEntropyKernels& kernels, KernelContext& context) {
    kernels.forward_backward(context, nll, z, hit, dx, dw, x, w, target, shape);
  }
  void evaluate(const CrossEntropyKernels& kernels, KernelContext& context) {
    kernels.forward_backward(context, nll, z, hit, {}, {}, x, w, target, shape);
  }

  CrossEntropyShape shape;
  Buffer nll, z, hit, dx, dw, x, w, target;
};

TEST(CrossEntropy, ThreeTokensOverThreeWordsAreAsByHand) {
  for (const auto& device : devices) {
    TestContext context;
    CrossEntropyShape shape;
    shape.logit_scale = 2;
    shape.z_coefficient = 0.1;
    Problem p(DType::f32, 3, 1, 3, shape);
    p.x.assign({1, 0, 0});
    p.w.assign({0, std::log(2.0) / 2, std::log(5.0) / 2});  // logits of the first token: ln 1, ln 2, ln 5
    p.target.assign({1, 0, 2});
    p.dw.fill(0);

    p.run(device.kernels, context);

    const double l0 = std::log(8.0), l1 = std::log(3.0);
    expect_close(p.nll, std::vector<double>{std::log(4.0), std::log(3.0), std::log(3.0)}, 1e-6, device.device);
    expect_close(p.z, std::vector<double>{0.1 * l0 * l0, 0.1 * l1 * l1, 0.1 * l1 * l1}, 1e-6, device.device);
    EXPECT_EQ(p.hit.values(), (std::vector<double>{0, 1, 0})) << "of equal logits the first counts, " << device.device;
    const double f0 = 1 + 0.2 * l0;
    const std::vector<double> dlogit = {f0 / 8, f0 * 2 / 8 - 1, f0 * 5 / 8};
    expect_close(p.dw, std::vector<double>{2 * dlogit[0], 2 * dlogit[1], 2 * dlogit[2]}, 1e-6, device.device);
    const double equal = (1 + 0.2 * l1) / 3 * std::log(10.0);
    expect_close(
        p.dx, std::vector<double>{dlogit[1] * std::log(2.0) + dlogit[2] * std::log(5.0), equal, equal - std::log(5.0)},
        1e-6, device.device);
  }
}

TEST(CrossEntropy, WithoutTheGradientOfTheWeightsTheOtherOneIsTheSame) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const Transpose transpose : {Transpose::no, Transpose::yes}) {
      for (const auto& device : devices) {
        TestContext context(1 << 22);
        CrossEntropyShape shape;
        shape.transpose_w = transpose;
        shape.chunk_rows = 7;
        Problem whole(type, 17, 9, 33, shape), part(type, 17, 9, 33, shape);
        whole.run(device.kernels, context);
        device.kernels.forward_backward(context, part.nll, part.z, part.hit, part.dx, {}, part.x, part.w, part.target,
                                        shape);
        EXPECT_EQ(part.dx.values(), whole.dx.values()) << device.device;
        EXPECT_EQ(part.nll.values(), whole.nll.values()) << device.device;
      }
    }
  }
}

TEST(CrossEntropy, WithBetaZeroTheGradientOfTheWeightsIsWrittenWhateverItWas) {
  for (const Transpose transpose : {Transpose::no, Transpose::yes}) {
    for (const std::int64_t tokens : {0, 17}) {
      for (const auto& device : devices) {
        TestContext context(1 << 22);
        CrossEntropyShape shape;
        shape.transpose_w = transpose;
        shape.chunk_rows = 7;
        Problem added(DType::f32, tokens, 9, 33, shape, 3);
        added.dw.fill(0);
        added.run(device.kernels, context);
        shape.beta = 0.0F;
        Problem written(DType::f32, tokens, 9, 33, shape, 3);
        written.dw.fill(std::nan(""));
        written.run(device.kernels, context);
        EXPECT_EQ(written.dw.values(), added.dw.values()) << device.device << ", " << tokens << " tokens";
      }
    }
  }
}

TEST(CrossEntropy, LeavesAreSumsOfTheirOwnThatOneTreeAdds) {
  const std::vector<std::int64_t> leaves = {0, 5, 17, 17, 30};
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const Transpose transpose : {Transpose::no, Transpose::yes}) {
      for (const auto& device : {devices[0], devices[1]}) {  // reference and cpu
        TestContext context(1 << 22);
        CrossEntropyShape shape;
        shape.transpose_w = transpose;
        shape.logit_scale = 0.3;
        shape.beta = 0;
        Problem one_by_one(type, 30, 9, 33, shape), together(type, 30, 9, 33, shape);
        const auto call = [&](Problem& p, std::int64_t first, std::int64_t last, const std::vector<std::int64_t>& cut) {
          const auto rows = [=](const Buffer& b) { return b.view().slice_rows(first, last - first); };
          shape.leaves = cut;
          device.kernels.forward_backward(context, rows(p.nll), rows(p.z), rows(p.hit), rows(p.dx), p.dw, rows(p.x),
                                          p.w, rows(p.target), shape);
        };
        call(together, 0, 30, leaves);
        std::vector<std::vector<double>> sums;
        for (std::size_t leaf = 0; leaf + 1 < leaves.size(); ++leaf) {
          call(one_by_one, leaves[leaf], leaves[leaf + 1], {});
          sums.push_back(one_by_one.dw.values());
        }
        for (std::size_t i = 0; i < sums[0].size(); ++i) {
          sums[0][i] = double((float(sums[0][i]) + float(sums[1][i])) + (float(sums[2][i]) + float(sums[3][i])));
        }
        EXPECT_TRUE(together.dw.values() == sums[0]) << device.device << " in " << name_of(type);
        EXPECT_TRUE(same_bits(together.dx, one_by_one.dx) && same_bits(together.nll, one_by_one.nll)) << device.device;
        shape.chunk_rows = 29;
        EXPECT_THROW(call(together, 0, 30, leaves), LogicError) << "more than one chunk";
      }
    }
  }
}

void compare(const Implementation<CrossEntropyKernels>& device, DType type, std::int64_t tokens, std::int64_t width,
             std::int64_t vocabulary, CrossEntropyShape shape, std::int64_t padding) {
  TestContext context(1 << 22);
  Problem expected(type, tokens, width, vocabulary, shape, padding),
      got(type, tokens, width, vocabulary, shape, padding);
  expected.run(reference::cross_entropy_kernels, context);
  got.run(device.kernels, context);
  const auto what = fmt::format("{} {} {} x {} x {}, chunks of {}", device.device, name_of(type), tokens, width,
                                vocabulary, shape.chunk_rows);
  const double fp32 = 1e-5;
  expect_close(got.nll, expected.nll, fp32, what + " nll");
  expect_close(got.z, expected.z, fp32, what + " z");
  EXPECT_EQ(got.hit.values(), expected.hit.values()) << what;
  // In bf16 dlogit may round to the other neighbour where fp32 arithmetic moved it across a tie.
  const double rounding = type == DType::bf16 ? 2 * roundoff(DType::bf16) : fp32;
  expect_close(got.dx, expected.dx, rounding, what + " dx");
  expect_close(got.dw, expected.dw, rounding, what + " dw");

  Problem eval(type, tokens, width, vocabulary, shape, padding);
  eval.evaluate(device.kernels, context);
  EXPECT_TRUE(same_bits(eval.nll, got.nll) && same_bits(eval.hit, got.hit)) << what << " without gradients";
}

TEST(CrossEntropy, FastEqualsReferenceOnOddSizesAndChunks) {
  for (const auto& device : fast_devices_of(cpu::cross_entropy_kernels, cuda_cross_entropy)) {
    for (const DType type : {DType::f32, DType::bf16}) {
      for (const Transpose transpose : {Transpose::no, Transpose::yes}) {
        CrossEntropyShape shape;
        shape.transpose_w = transpose;
        shape.logit_scale = 0.3;
        shape.z_coefficient = 1e-2;
        shape.gradient_scale = 1.0 / 7;
        for (const std::int64_t chunk : {1, 5, 64, 1000}) {
          shape.chunk_rows = chunk;
          compare(device, type, 13, 37, 101, shape, 3);
        }
        compare(device, type, 70, 64, 1024, shape, 0);
        compare(device, type, 0, 16, 32, shape, 0);
        compare(device, type, 3, 16, 9000, shape, 0);  // deeper than one tile on the way back to dx
        compare(device, type, 5, 8, 1, shape, 0);
      }
    }
  }
}

TEST(CrossEntropy, LargeLogitsNeitherOverflowNorLoseTheLoss) {
  for (const auto& device : devices) {
    TestContext context;
    Problem p(DType::f32, 2, 1, 3, {});
    p.x.assign({1, -1});
    p.w.assign({500, -500, 499});
    p.target.assign({0, 0});
    p.run(device.kernels, context);
    expect_close(p.nll, std::vector<double>{std::log1p(std::exp(-1.0)), 1000}, 1e-6, device.device);
  }
}

TEST(CrossEntropy, GradientsAgreeWithCentralDifferences) {
  for (const Transpose transpose : {Transpose::no, Transpose::yes}) {
    TestContext context;
    CrossEntropyShape shape;
    shape.transpose_w = transpose;
    shape.logit_scale = 0.7;
    shape.z_coefficient = 0.03;
    shape.gradient_scale = 0.25;
    Problem p(DType::f64, 4, 3, 5, shape), probe(DType::f64, 4, 3, 5, shape);
    p.dw.fill(0);
    p.run(reference::cross_entropy_kernels, context);
    const auto loss = [&] {
      probe.evaluate(reference::cross_entropy_kernels, context);
      double sum = 0;
      for (std::int64_t t = 0; t < 4; ++t) sum += probe.nll.get(t) + probe.z.get(t);
      return 0.25 * sum;
    };
    expect_gradient(p.dx, loss, probe.x, "dx");
    expect_gradient(p.dw, loss, probe.w, "dw");
  }
}

TEST(CrossEntropy, ResultsDoNotDependOnTheNumberOfThreads) {
  for (const DType type : {DType::f32, DType::bf16}) {
    CrossEntropyShape shape;
    shape.chunk_rows = 40;
    expect_same_bits_on_threads([&](std::vector<Buffer>& out) {
      TestContext context;
      Problem p(type, 100, 48, 700, shape);
      p.run(cpu::cross_entropy_kernels, context);
      for (Buffer* x : {&p.nll, &p.z, &p.hit, &p.dx, &p.dw}) out.push_back(std::move(*x));
    });
  }
}

TEST(CrossEntropy, ScratchIsWhatIsAnnounced) {
  CrossEntropyShape shape;
  shape.chunk_rows = 50;
  for (const DType type : {DType::f32, DType::bf16}) {
    Problem p(type, 120, 20, 5000, shape);
    Arena arena("announced");
    arena.allocate(DType::bf16, 1, std::int64_t(cpu::cross_entropy_kernels.scratch_bytes(120, 5000, type, shape)) / 2);
    arena.commit();
    KernelContext context{&arena, nullptr};
    p.run(cpu::cross_entropy_kernels, context);  // the arena throws when it is asked for more
    EXPECT_EQ(arena.used(), 0U);
  }
}

TEST(CrossEntropy, TargetsOutsideOfTheVocabularyAreRefused) {
  for (const auto& device : devices) {
    TestContext context;
    Problem p(DType::f32, 2, 4, 3, {});
    p.target.assign({0, 3});
    if (device.device == "cuda") {  // where the host does not see them
      p.run(device.kernels, context);
      EXPECT_TRUE(std::isfinite(p.nll.get(0)) && std::isnan(p.nll.get(1)));
      continue;
    }
    EXPECT_THROW(p.run(device.kernels, context), LogicError) << device.device;
  }
}

}  // namespace
}  // namespace flanmoe::test
