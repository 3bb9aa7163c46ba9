#include "train/plan/calibrate.hpp"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

#include "base/host.hpp"
#include "base/timer.hpp"
#include "kernels/kernels.hpp"
#include "tensor/arena.hpp"
#include "tensor/philox.hpp"
#include "train/resources.hpp"

namespace flanmoe {
namespace {

constexpr std::int64_t kTokens = 2048, kWidth = 768;
constexpr double kPoolBytes = 48e6;  // operands come from memory, as in a step, rather than from the last call
constexpr double kLeastSeconds = 1e-12;

/// Memory of one measurement, and its clock.
class Bench {
 public:
  Bench(const Communicator& world, const Kernels& kernels) : k(kernels), world_(world) { scratch_at_least(1 << 16); }

  Tensor tensor(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch = 1) {
    arenas_.push_back(std::make_unique<Arena>("calibration"));
    Arena& arena = *arenas_.back();
    arena.allocate(dtype, rows, cols, batch);
    arena.commit();
    const Tensor t = arena.allocate(dtype, rows, cols, batch);
    if (dtype != DType::i32) std::memset(t.data, 0x3c, t.bytes());  // 0.0115 in both types; zeros run cooler
    return t;
  }
  /// Enough equal matrices to fill the pool.
  Tensor pool(DType dtype, std::int64_t rows, std::int64_t cols) {
    const double each = double(rows) * double(cols) * double(size_of(dtype));
    return tensor(dtype, rows, cols, std::max<std::int64_t>(1, std::int64_t(kPoolBytes / each)));
  }
  void scratch_at_least(std::size_t bytes) {
    scratch_ = std::make_unique<Arena>("calibration scratch");
    scratch_->allocate(DType::f32, 1, std::int64_t(std::max(bytes, k.matmul.scratch_bytes()) / 4 + 1));
    scratch_->commit();
    context.scratch = scratch_.get();
  }
  /// Seconds of run(i), i counting up, averaged over ranks that all are busy; the fastest of several windows.
  double seconds(const std::function<void(std::int64_t)>& run) const {
    constexpr double kWindow = 0.02;
    constexpr int kWindows = 4;
    run(0);
    double best = 1e30;
    for (int window = 0; window < kWindows; ++window) {
      world_.barrier();
      const double start = seconds_now();
      std::int64_t done = 0;
      double spent = 0;
      do {
        run(done++);
        spent = seconds_now() - start;
      } while (spent < kWindow);
      std::array<double, 1> sum = {spent / double(done)};
      world_.sum_tree(sum);
      best = std::min(best, sum[0] / world_.size());
    }
    return best;
  }

  const Kernels& k;
  KernelContext context;

 private:
  const Communicator& world_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  std::unique_ptr<Arena> scratch_;
};

double memory_speed(const Communicator& world, const Kernels& kernels) {
  Bench bench(world, kernels);
  const Tensor y = bench.tensor(DType::f32, kTokens, 8192), x = bench.tensor(DType::f32, kTokens, 8192);
  return 3.0 * double(x.bytes()) / bench.seconds([&](std::int64_t) { bench.k.elementwise.add(bench.context, y, x); });
}

struct ProductShape {
  std::int64_t rows, in, out;
};
constexpr std::array<ProductShape, 9> kShapes = {{{64, 256, 256},
                                                  {512, 256, 1024},
                                                  {512, 1024, 256},
                                                  {2048, 512, 512},
                                                  {2048, 768, 2048},
                                                  {2048, 2048, 768},
                                                  {128, 768, 2048},
                                                  {1024, 256, 8192},
                                                  {32, 1024, 1024}}};

ProductRate rate_of(const std::vector<std::vector<double>>& rows, const std::vector<double>& times) {
  const std::vector<double> c = fit_times(rows, times);
  return {c[0], 1 / std::max(c[1], 1e-16), 1 / std::max(c[2], 1e-14)};
}

void measure_products(const Communicator& world, const Kernels& kernels, std::size_t p, Machine& machine) {
  const DType type = p == 1 ? DType::bf16 : DType::f32;
  const auto c = double(size_of(type));
  std::vector<std::vector<double>> forward, gradient;
  std::vector<double> forward_seconds, gradient_seconds;
  for (const ProductShape& s : kShapes) {
    Bench bench(world, kernels);
    const Tensor x = bench.tensor(type, s.rows, s.in), y = bench.tensor(type, s.rows, s.out);
    const Tensor w = bench.pool(type, s.in, s.out), dw = bench.pool(DType::f32, s.in, s.out);
    const double operations = 2.0 * double(s.rows * s.in * s.out), weights = double(s.in * s.out);
    const auto activations = double(s.rows * (s.in + s.out));
    const auto weight = [&](std::int64_t i) { return w.matrix(i % w.batch); };
    forward.push_back({1, operations, c * (weights + activations)});
    forward_seconds.push_back(0.5 * bench.seconds([&](std::int64_t i) {
      kernels.matmul.product(bench.context, y, x, Transpose::no, weight(2 * i), Transpose::no, 0.0F);
      kernels.matmul.product(bench.context, x, y, Transpose::no, weight(2 * i + 1), Transpose::yes, 0.0F);
    }));
    gradient.push_back({1, operations, 8 * weights + c * activations});
    gradient_seconds.push_back(bench.seconds([&](std::int64_t i) {
      kernels.matmul.product(bench.context, dw.matrix(i % dw.batch), x, Transpose::yes, y, Transpose::no, 1.0F);
    }));
  }
  machine.product[p] = rate_of(forward, forward_seconds);
  machine.weight_gradient[p] = rate_of(gradient, gradient_seconds);
}

/// One forward and backward over segments of `length` tokens.
double attention_seconds(const Communicator& world, const Kernels& kernels, DType type, std::int64_t length) {
  constexpr std::int64_t kHeads = 8, kHeadWidth = 64;
  const AttentionShape shape{kHeads, kHeadWidth, false, 0.125F, 0};
  Bench bench(world, kernels);
  bench.scratch_at_least(kernels.attention.scratch_bytes(length, type, shape));
  std::array<Tensor, 8> t;
  for (Tensor& x : t) x = bench.tensor(type, kTokens, kHeads * kHeadWidth);
  const Tensor logsumexp = bench.tensor(DType::f32, kTokens, kHeads);
  const Tensor bias = bench.tensor(DType::f32, kHeads, 2 * length - 1);
  const Tensor dbias = bench.tensor(DType::f32, kHeads, 2 * length - 1);
  std::vector<std::int32_t> begin, count(std::size_t(kTokens / length), std::int32_t(length));
  for (std::int64_t s = 0; s < kTokens / length; ++s) begin.push_back(std::int32_t(s * length));
  const AttentionSegments segments{begin, count, begin, count};
  return bench.seconds([&](std::int64_t) {
    kernels.attention.forward(bench.context, t[0], logsumexp, t[1], t[2], t[3], bias, segments, shape);
    kernels.attention.backward(bench.context, t[4], t[5], t[6], dbias, t[7], t[1], t[2], t[3], bias, t[0], logsumexp,
                               segments, shape);
  });
}

void measure_attention(const Communicator& world, const Kernels& kernels, std::size_t p, Machine& machine) {
  constexpr double kQ = 8 * 64;
  std::vector<std::vector<double>> rows;
  std::vector<double> times;
  for (const std::int64_t length : {64, 128, 256, 512}) {
    rows.push_back({14.0 * double(kTokens) * double(length) * kQ, double(kTokens) * kQ});
    times.push_back(attention_seconds(world, kernels, p == 1 ? DType::bf16 : DType::f32, length));
  }
  const std::vector<double> c = fit_times(rows, times);
  machine.attention[p] = {1 / std::max(c[0], 1e-16), c[1]};
}

/// Measures the streams of one precision.
class Streams {
 public:
  Streams(const Communicator& world, const Kernels& kernels, std::size_t p, Machine& machine)
      : world_(world), k_(kernels), p_(p), type_(p == 1 ? DType::bf16 : DType::f32), machine_(machine) {}

  void layers();
  void routing();
  void ends();
  void updates();

 private:
  void set(Stream stream, double seconds, double elements) {
    machine_.stream_seconds[std::size_t(stream)][p_] = std::max(seconds / elements, kLeastSeconds);
  }
  const Communicator& world_;
  const Kernels& k_;
  std::size_t p_;
  DType type_;
  Machine& machine_;
};

void Streams::layers() {
  Bench b(world_, k_);
  b.scratch_at_least(k_.norm.scratch_bytes(kTokens, kWidth));
  const auto elements = double(kTokens * kWidth);
  const Tensor x = b.tensor(DType::f32, kTokens, kWidth), dx = b.tensor(DType::f32, kTokens, kWidth);
  const Tensor y = b.tensor(type_, kTokens, kWidth), z = b.tensor(type_, kTokens, kWidth);
  const Tensor u = b.tensor(type_, kTokens, kWidth), v = b.tensor(type_, kTokens, kWidth);
  const Tensor rstd = b.tensor(DType::f32, kTokens, 1), w = b.tensor(DType::f32, 1, kWidth);
  const Tensor dw = b.tensor(DType::f32, 1, kWidth);
  set(Stream::norm, b.seconds([&](std::int64_t) {
    k_.norm.forward(b.context, y, rstd, x, w, 1e-6F);
    k_.norm.backward(b.context, dx, dw, y, x, rstd, w);
  }),
      elements);
  set(Stream::residual, b.seconds([&](std::int64_t) {
    k_.elementwise.convert(b.context, dx, x);
    k_.dropout.add(b.context, dx, y, {});
    if (p_ == 1) k_.elementwise.convert(b.context, z, dx);
  }),
      elements);
  std::vector<std::int64_t> row_T(kTokens, 3);
  std::vector<std::int32_t> position_T(kTokens, 0);
  std::iota(position_T.begin(), position_T.end(), 0);
  const DropoutMask mask{0.1F, {1, RandomPurpose::test, 0, 0}, row_T, position_T, 1};
  set(Stream::dropout, 2 * b.seconds([&](std::int64_t) { k_.dropout.apply(b.context, y, z, mask); }), elements);
  set(Stream::relu, b.seconds([&](std::int64_t) {
    k_.activation.relu_forward(b.context, y, y);
    k_.activation.relu_backward(b.context, z, z, y);
  }),
      elements);
  set(Stream::gated, b.seconds([&](std::int64_t) {
    k_.activation.gated_gelu_forward(b.context, y, z, u);
    k_.activation.gated_gelu_backward(b.context, v, y, y, z, u);
  }),
      elements);
}

void Streams::routing() {
  constexpr std::int64_t kExperts = 16, kGroups = 8;
  Bench b(world_, k_);
  b.scratch_at_least(k_.router.scratch_bytes(kTokens, kExperts));
  const Tensor p = b.tensor(DType::f32, kTokens, kExperts), logits = b.tensor(DType::f32, kTokens, kExperts);
  const Tensor column = b.tensor(DType::f32, kTokens, 1), dweight = b.tensor(DType::f32, kTokens, 1);
  const Tensor weight = b.tensor(DType::f32, kTokens, 1), dp = b.tensor(DType::f32, kGroups, kExperts);
  const Tensor choice = b.tensor(DType::i32, kTokens, 1), kept = b.tensor(DType::i32, kTokens, 1);
  const Tensor slot = b.tensor(DType::i32, kTokens, 1), token = b.tensor(DType::i32, kTokens, 1);
  const Tensor chosen = b.tensor(DType::i32, kGroups, kExperts), count = b.tensor(DType::i32, 1, kExperts);
  for (std::int64_t t = 0; t < kTokens; ++t) {  // evenly spread choices
    for (std::int64_t e = 0; e < kExperts; ++e) logits.row<float>(t)[e] = float((t * 7 + e * 5) % kExperts);
  }
  std::vector<std::int64_t> first(kGroups + 1), capacity(kGroups, kTokens);
  for (std::int64_t g = 0; g <= kGroups; ++g) first[std::size_t(g)] = g * kTokens / kGroups;
  set(Stream::router, b.seconds([&](std::int64_t) {
    k_.router.softmax(b.context, p, column, logits);
    k_.router.top_k(b.context, choice, p, {});
    k_.router.weigh(b.context, weight, p, choice, false);
    k_.router.count(b.context, chosen, choice, 1, first);
    k_.router.admit(b.context, kept, weight, {});
    k_.router.assign(b.context, kept, chosen, choice, p, first, capacity, SlotPriority::token_order);
    k_.router.row_map(b.context, slot, token, count, choice, kept);
    k_.router.backward(b.context, p, dweight, dp, 1e-3, p, column, choice, first, false);
    k_.router.softmax(b.context, p, column, logits);  // about what the losses read and add up
  }),
      double(kTokens * kExperts));
  const Tensor x = b.tensor(type_, kTokens, kWidth), row = b.tensor(type_, kTokens, kWidth);
  const Tensor y = b.tensor(type_, kTokens, kWidth);
  set(Stream::permute, b.seconds([&](std::int64_t) {
    k_.permute.gather(b.context, row, x, token);
    k_.permute.combine_forward(b.context, y, row, weight, slot);
    k_.permute.combine_backward(b.context, row, dweight, y, x, weight, slot);
    k_.permute.gather_sum(b.context, y, row, slot, y);
  }),
      double(kTokens * kWidth));
}

/// What the loss costs beside its products, and looking up tokens.
void Streams::ends() {
  constexpr std::int64_t kVocabulary = 8192, kTargets = 512, kNarrow = 64;
  Bench b(world_, k_);
  const CrossEntropyShape shape{.gradient_scale = 1e-3};
  b.scratch_at_least(k_.cross_entropy.scratch_bytes(kTargets, kVocabulary, type_, shape));
  const Tensor x = b.tensor(type_, kTargets, kNarrow), dx = b.tensor(type_, kTargets, kNarrow);
  const Tensor w = b.tensor(type_, kNarrow, kVocabulary), dw = b.tensor(DType::f32, kNarrow, kVocabulary);
  std::array<Tensor, 3> loss;
  for (Tensor& t : loss) t = b.tensor(DType::f32, kTargets, 1);
  const Tensor target = b.tensor(DType::i32, kTargets, 1);
  const double seconds = b.seconds([&](std::int64_t) {
    k_.cross_entropy.forward_backward(b.context, loss[0], loss[1], loss[2], dx, dw, x, w, target, shape);
  });
  const double chunks = double(kTargets) / double(shape.chunk_rows), c = p_ == 1 ? 2 : 4;
  const double operations = 2.0 * kTargets * kNarrow * kVocabulary;
  const double weights = chunks * kNarrow * kVocabulary, activations = kTargets * (kNarrow + kVocabulary);
  const double products = 2 * machine_.product[p_].seconds(chunks, operations, c * (weights + activations)) +
                          machine_.weight_gradient[p_].seconds(chunks, operations, 8 * weights + c * activations);
  set(Stream::softmax, std::max(0.1 * seconds, seconds - products), double(kTargets * kVocabulary));

  const Tensor table = b.tensor(type_, kVocabulary, kWidth), dtable = b.tensor(DType::f32, kVocabulary, kWidth);
  const Tensor embedded = b.tensor(DType::f32, kTokens, kWidth), ids = b.tensor(DType::i32, kTokens, 1);
  for (std::int64_t t = 0; t < kTokens; ++t) *ids.row<std::int32_t>(t) = std::int32_t(t * 31 % kVocabulary);
  set(Stream::embedding, b.seconds([&](std::int64_t) {
    k_.embedding.forward(b.context, embedded, table, ids);
    k_.embedding.backward(b.context, dtable, embedded, ids, {});
  }),
      double(kTokens * kWidth));
}

void Streams::updates() {
  Bench b(world_, k_);
  b.scratch_at_least(k_.optimizer.scratch_bytes(kTokens, kWidth));
  const auto elements = double(kTokens * kWidth);
  std::array<Tensor, 4> t;
  for (Tensor& x : t) x = b.pool(DType::f32, kTokens, kWidth);
  const Tensor row = b.tensor(DType::f32, kTokens, 1), col = b.tensor(DType::f32, 1, kWidth);
  const Tensor weights = b.tensor(type_, kTokens, kWidth);
  const auto of = [&](std::size_t i, std::int64_t n) { return t[i].matrix(n % t[i].batch); };
  const auto norm = [&](std::int64_t n) {
    std::array<double, 1> sum{};
    k_.optimizer.sums_of_squares(b.context, sum, std::array{of(3, n)});
  };
  set(Stream::adamw, b.seconds([&](std::int64_t n) {
    norm(n);
    const std::array matrices{AdamWMatrix{.p = of(0, n), .m = of(1, n), .v = of(2, n), .g = of(3, n)}};
    k_.optimizer.adamw(b.context, matrices, {.learning_rate = 1e-6});
    k_.elementwise.convert(b.context, of(3, n), of(0, n));
  }),
      elements);
  const AdafactorStep step{.learning_rate = 1e-6, .decay = 0.5};
  set(Stream::factored, b.seconds([&](std::int64_t n) {
    norm(n);
    const std::array matrices{
        AdafactorMatrix{.p = of(0, n), .g = of(3, n), .row_factor = row, .col_factor = col, .v = {}}};
    k_.optimizer.adafactor(b.context, matrices, step);
    k_.elementwise.convert(b.context, of(3, n), of(0, n));
  }),
      elements);
  set(Stream::unfactored, b.seconds([&](std::int64_t n) {
    norm(n);
    const std::array matrices{
        AdafactorMatrix{.p = of(0, n), .g = of(3, n), .row_factor = {}, .col_factor = {}, .v = of(1, n)}};
    k_.optimizer.adafactor(b.context, matrices, step);
    k_.elementwise.convert(b.context, of(3, n), of(0, n));
  }),
      elements);
  set(Stream::publish, b.seconds([&](std::int64_t n) { k_.elementwise.convert(b.context, weights, of(3, n)); }),
      elements);
}

/// Rows of a message to every rank of `group`, all at once.
LinkRate measure_link(const Communicator& group, const Kernels& kernels) {
  std::vector<std::vector<double>> rows;
  std::vector<double> times;
  for (const std::int64_t count : {1, 16, 256, 2048, 16384}) {
    Bench bench(group, kernels);
    const std::int64_t ranks = group.size();
    const Tensor send = bench.tensor(DType::f32, count * ranks, 256);
    const Tensor receive = bench.tensor(DType::f32, count * ranks, 256);
    const std::vector<std::int64_t> to(std::size_t(ranks), count);
    double best = 1e30;
    for (int window = 0; window < 4; ++window) {
      const int calls = count > 1000 ? 3 : 10;
      group.barrier();
      const double start = seconds_now();
      for (int i = 0; i < calls; ++i) group.all_to_all_rows(receive, to, send, to);
      best = std::min(best, group.all_reduce((seconds_now() - start) / calls, ReduceOp::max));
    }
    rows.push_back({double(ranks - 1), double((ranks - 1) * count * 256 * 4)});
    times.push_back(best);
  }
  const std::vector<double> c = fit_times(rows, times);
  return {c[0], 1 / std::max(c[1], 1e-14)};
}

/// All groups at once; the slowest of them, on every rank.
LinkRate slowest_link(const Communicator& world, const Communicator& group, const Kernels& kernels) {
  constexpr double kNone = 1e30;  // of a rank that has nobody to talk to
  LinkRate link{0, kNone};
  world.barrier();
  if (group.size() > 1) link = measure_link(group, kernels);
  return {world.all_reduce(link.latency_seconds, ReduceOp::max),
          world.all_reduce(link.bytes_per_second, ReduceOp::min)};
}

void measure_links(const Communicator& world, const Kernels& kernels, Machine& machine) {
  const Neighbours neighbours = neighbours_of(world, hash_name(host_name()));
  machine.ranks_per_node = neighbours.most_per_node;
  machine.nodes = (world.size() + machine.ranks_per_node - 1) / machine.ranks_per_node;
  machine.in_node = machine.ranks_per_node > 1 ? slowest_link(world, neighbours.node, kernels)
                                               : link_through_memory(machine.bytes_per_second);
  machine.between_nodes = machine.nodes > 1 ? slowest_link(world, neighbours.across, kernels) : machine.in_node;
}

double memory_of_node() { return double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE)); }

}  // namespace

Neighbours neighbours_of(const Communicator& world, std::uint64_t host) {
  const std::vector<std::uint64_t> hosts = world.all_gather(host);
  const auto first = std::find(hosts.begin(), hosts.end(), host) - hosts.begin();
  Communicator node = world.split(int(first), world.rank(), "node");
  Communicator across = world.split(node.rank(), world.rank(), "across nodes");
  const auto most = world.all_reduce(std::int64_t(node.size()), ReduceOp::max);
  return {std::move(node), std::move(across), most};
}

Machine calibrate(const Communicator& world) {
  const Kernels& kernels = kernels_for("cpu");
  Machine machine;
  machine.name = fmt::format("{}, {} ranks", host_name(), world.size());
  machine.threads_per_rank = omp_get_max_threads();
  machine.memory_bytes_per_node = memory_of_node();
  machine.bytes_per_second = memory_speed(world, kernels);
  for (std::size_t p = 0; p < kPrecisions; ++p) {
    measure_products(world, kernels, p, machine);
    measure_attention(world, kernels, p, machine);
    Streams streams(world, kernels, p, machine);
    streams.layers();
    streams.routing();
    streams.ends();
    streams.updates();
  }
  measure_links(world, kernels, machine);
  // With the kernels that are made by now, as after the first steps of a training.
  machine.program_bytes_per_rank = world.all_reduce(double(resident_bytes()), ReduceOp::max);
  return machine;
}

}  // namespace flanmoe
