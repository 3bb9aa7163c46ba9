#include "kernels/embedding.hpp"

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

TEST(Embedding, AgreesWithHandNumbers) {
  for (const auto& device :
       test::devices_of(reference::embedding_kernels, cpu::embedding_kernels, test::cuda_embedding)) {
    TestContext context;
    Buffer table(DType::bf16, 3, 2), ids(DType::i32, 4, 1), y(DType::f32, 4, 2), dtable(DType::f32, 3, 2);
    table.assign({1, 2, 3, 4, 5, 6});
    ids.assign({2, 0, 2, 2});
    device.kernels.forward(context, y, table, ids);
    test::expect_close(y, {5, 6, 1, 2, 5, 6, 5, 6}, 0, device.device);
    dtable.fill(100);
    device.kernels.backward(context, dtable, y, ids, {});
    test::expect_close(dtable, {101, 102, 100, 100, 115, 118}, 0, device.device);
  }
}

TEST(Embedding, BackwardIsTheGradientOfTheForward) {
  TestContext context;
  Buffer table(DType::f64, 5, 3), ids(DType::i32, 7, 1), dy(DType::f64, 7, 3), dtable(DType::f64, 5, 3);
  table.randomize(1);
  ids.randomize_below(2, 4);
  dy.randomize(3);
  dtable.fill(0);
  reference::embedding_kernels.backward(context, dtable, dy, ids, {});
  const auto loss = [&] {
    Buffer y(DType::f64, 7, 3);
    reference::embedding_kernels.forward(context, y, table, ids);
    return test::weighted_sum(y, dy);
  };
  test::expect_gradient(dtable, loss, table, "dtable");
}

TEST(Embedding, FastEqualsReferenceBitForBit) {
  for (const DType c : {DType::f32, DType::bf16}) {
    for (const auto& [T, V, D, padding] : {std::tuple{0, 4, 3, 3},
                                           {1, 1, 1, 0},
                                           {50, 7, 65, 3},
                                           {300, 40, 131, 3},
                                           {270, 1, 257, 0},
                                           {60, 9, 1040, 0}}) {
      for (const auto& device : test::fast_devices_of(cpu::embedding_kernels, test::cuda_embedding)) {
        TestContext context;
        Buffer table(c, V, D, padding), ids(DType::i32, T, 1), dy(DType::f32, T, D, 1);
        Buffer y_r(DType::f32, T, D, padding), y_c(DType::f32, T, D, padding);
        Buffer dtable_r(DType::f32, V, D), dtable_c(DType::f32, V, D);
        table.randomize(1);
        ids.randomize_below(2, V);
        dy.randomize(3);
        dtable_r.randomize(4);
        dtable_c.randomize(4);
        reference::embedding_kernels.forward(context, y_r, table, ids);
        device.kernels.forward(context, y_c, table, ids);
        EXPECT_TRUE(same_bits(y_c, y_r)) << device.device;
        reference::embedding_kernels.backward(context, dtable_r, dy, ids, {});
        device.kernels.backward(context, dtable_c, dy, ids, {});
        EXPECT_TRUE(same_bits(dtable_c, dtable_r)) << device.device << ": all add in token order";
      }
    }
  }
}

TEST(Embedding, LeavesAreSumsOfTheirOwnThatOneTreeAdds) {
  const std::vector<std::int64_t> leaves = {0, 90, 91, 91, 300, 310, 400, 490, 500};
  for (const auto* kernels : {&reference::embedding_kernels, &cpu::embedding_kernels}) {
    TestContext context;
    Buffer ids(DType::i32, 500, 1), dy(DType::f32, 500, 300, 1), dtable(DType::f32, 40, 300, 2);
    ids.randomize_below(2, 37);
    dy.randomize(3);
    dtable.fill(0);
    kernels->backward(context, dtable, dy, ids, leaves);
    std::vector<std::vector<double>> sums;
    for (std::size_t leaf = 0; leaf + 1 < leaves.size(); ++leaf) {
      Buffer alone(DType::f32, 40, 300);
      alone.fill(0);
      const std::int64_t count = leaves[leaf + 1] - leaves[leaf];
      kernels->backward(context, alone, dy.view().slice_rows(leaves[leaf], count),
                        ids.view().slice_rows(leaves[leaf], count), {});
      sums.push_back(alone.values());
    }
    for (std::size_t n = sums.size(); n > 1; n /= 2) {
      for (std::size_t i = 0; i < n / 2; ++i) {
        for (std::size_t j = 0; j < sums[i].size(); ++j) {
          sums[i][j] = double(float(sums[2 * i][j]) + float(sums[2 * i + 1][j]));
        }
      }
    }
    EXPECT_TRUE(dtable.values() == sums.front()) << (kernels == &cpu::embedding_kernels ? "cpu" : "reference");
    EXPECT_THROW(kernels->backward(context, dtable, dy, ids, std::vector<std::int64_t>{0, 100, 200, 500}), LogicError)
        << "three leaves";
    EXPECT_THROW(kernels->backward(context, dtable, dy, ids, std::vector<std::int64_t>{0, 400}), LogicError);
  }
}

TEST(Embedding, BitsDoNotDependOnThreads) {
  for (const std::vector<std::int64_t>& leaves : {std::vector<std::int64_t>{}, {0, 100, 250, 300, 500}}) {
    test::expect_same_bits_on_threads([&](std::vector<Buffer>& out) {
      TestContext context;
      Buffer ids(DType::i32, 500, 1), dy(DType::f32, 500, 300), dtable(DType::f32, 9, 300);
      ids.randomize_below(2, 9);
      dy.randomize(3);
      dtable.fill(0);
      cpu::embedding_kernels.backward(context, dtable, dy, ids, leaves);
      out.push_back(std::move(dtable));
    });
  }
}

}  // namespace
}  // namespace flanmoe
