// The feed-forward of the experts of one MoE layer, forward and backward, with the row counts of a fresh router.
#include <algorithm>

#include "kernels/bench/bench.hpp"

namespace flanmoe::bench {
namespace {

/// Of one layer.
struct Sizes {
  explicit Sizes(const Subject& s) : tokens(s.size(2048, 64)), width(s.size(768, 16)), hidden(s.size(2048, 32)) {}
  std::int64_t tokens, width, hidden;
};

/// Rows of each expert: random tokens that share a mean, as embedded text does, through a random router. Computed by
/// the host, so that every device gets the same.
std::vector<std::int64_t> routed_boundaries(const Sizes& sizes, std::int64_t experts, int top_k) {
  const Subject host{kernels_for("cpu"), {}};
  const Kernels& k = host.k;
  Workbench bench(host, k.matmul.scratch_bytes());
  const Tensor x = bench.tensor(DType::f32, sizes.tokens, sizes.width, 1, 1.0);
  const Tensor mean = bench.tensor(DType::f32, 1, sizes.width, 1, 0.5);
  for (std::int64_t t = 0; t < sizes.tokens; ++t) {
    for (std::int64_t d = 0; d < sizes.width; ++d) x.row<float>(t)[d] += mean.row<float>(0)[d];
  }
  const Tensor router = bench.tensor(DType::f32, sizes.width, experts, 1, 0.036);
  const Tensor logits = bench.tensor(DType::f32, sizes.tokens, experts);
  const Tensor p = bench.tensor(DType::f32, sizes.tokens, experts);
  const Tensor log_z = bench.tensor(DType::f32, sizes.tokens, 1);
  const Tensor choice = bench.indices(sizes.tokens, top_k, 1);
  k.matmul.product(bench.context(), logits, x, Transpose::no, router, Transpose::no, 0);
  k.router.softmax(bench.context(), p, log_z, logits);
  k.router.top_k(bench.context(), choice, p, {});
  std::vector<std::int64_t> first(std::size_t(experts) + 1, 0);
  for (const std::int32_t e : choice.flat<std::int32_t>()) ++first[std::size_t(e) + 1];
  for (std::size_t e = 0; e < std::size_t(experts); ++e) first[e + 1] += first[e];
  return first;
}

/// Weights, gradients and activations of E experts with ReLU, and one forward and backward.
struct Experts {
  Experts(const Subject& subject, Workbench& bench, DType dtype, const std::vector<std::int64_t>& boundaries)
      : k(subject.k),
        context(bench.context()),
        sizes(subject),
        first(boundaries),
        w_in_eDF(bench.tensor(dtype, sizes.width, sizes.hidden, count())),
        w_out_eFD(bench.tensor(dtype, sizes.hidden, sizes.width, count())),
        dw_in_eDF(bench.tensor(DType::f32, sizes.width, sizes.hidden, count())),
        dw_out_eFD(bench.tensor(DType::f32, sizes.hidden, sizes.width, count())),
        x_RD(bench.tensor(dtype, rows(), sizes.width)),
        y_RD(bench.tensor(dtype, rows(), sizes.width)),
        h_RF(bench.tensor(dtype, rows(), sizes.hidden)),
        dx_RD(bench.tensor(dtype, rows(), sizes.width)),
        dy_RD(bench.tensor(dtype, rows(), sizes.width)),
        dh_RF(bench.tensor(dtype, rows(), sizes.hidden)) {
    if (k.matmul.packed != nullptr) {
      const std::int64_t in = k.matmul.packed->size(dtype, sizes.width, sizes.hidden);
      const std::int64_t out = k.matmul.packed->size(dtype, sizes.hidden, sizes.width);
      packed_in_eP = bench.tensor(dtype, 1, in, count());
      packed_out_eP = bench.tensor(dtype, 1, out, count());
      turned_in_eP = bench.tensor(dtype, 1, out, count());
      turned_out_eP = bench.tensor(dtype, 1, in, count());
      pack();
    }
    for (std::int64_t e = 0; e < count(); ++e) {
      dw_in.push_back(dw_in_eDF.matrix(e));
      dw_out.push_back(dw_out_eFD.matrix(e));
    }
  }
  std::int64_t count() const { return std::int64_t(first.size()) - 1; }
  std::int64_t rows() const { return first.back(); }
  double flops_of_one_product() const { return 2.0 * double(rows() * sizes.width * sizes.hidden); }

  bool packs() const { return packed_in_eP.size() > 0 && packed_out_eP.size() > 0; }
  /// As after every change of the weights.
  void pack() {
    if (!packs()) return;
    k.matmul.packed->pack(context, packed_in_eP, w_in_eDF, Transpose::no);
    k.matmul.packed->pack(context, packed_out_eP, w_out_eFD, Transpose::no);
    k.matmul.packed->pack(context, turned_in_eP, w_in_eDF, Transpose::yes);
    k.matmul.packed->pack(context, turned_out_eP, w_out_eFD, Transpose::yes);
  }
  double bytes_packed() const { return 4.0 * double(packed_in_eP.bytes() + packed_out_eP.bytes()); }
  void product(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& packed, Transpose transpose) {
    if (packed_before) {
      k.matmul.packed->grouped(context, y, x, packed, first);
    } else {
      k.matmul.grouped(context, y, x, w, transpose, first);
    }
  }
  void forward() {
    product(h_RF, x_RD, w_in_eDF, packed_in_eP, Transpose::no);
    k.activation.relu_forward(context, h_RF, h_RF);
    product(y_RD, h_RF, w_out_eFD, packed_out_eP, Transpose::no);
  }
  void backward_inputs() {
    product(dh_RF, dy_RD, w_out_eFD, turned_out_eP, Transpose::yes);
    k.activation.relu_backward(context, dh_RF, dh_RF, h_RF);
    product(dx_RD, dh_RF, w_in_eDF, turned_in_eP, Transpose::yes);
  }
  void backward_weights(const std::vector<std::int64_t>& cut) {
    k.matmul.grouped_weight_gradient(context, dw_out, h_RF, dy_RD, cut, 0.0F);
    k.matmul.grouped_weight_gradient(context, dw_in, x_RD, dh_RF, cut, 0.0F);
  }
  /// The rows of each expert in so many leaves.
  std::vector<std::int64_t> in_leaves(std::int64_t leaves) const {
    std::vector<std::int64_t> cut(1, 0);
    for (std::size_t e = 0; e + 1 < first.size(); ++e) {
      const std::vector<std::int64_t> parts = even_cuts(first[e + 1] - first[e], leaves);
      for (std::size_t leaf = 1; leaf < parts.size(); ++leaf) cut.push_back(first[e] + parts[leaf]);
    }
    return cut;
  }

  const Kernels& k;
  KernelContext& context;
  Sizes sizes;
  std::vector<std::int64_t> first;
  bool packed_before = false;  // weights were packed before the forward
  Tensor w_in_eDF, w_out_eFD, packed_in_eP, packed_out_eP, turned_in_eP, turned_out_eP, dw_in_eDF, dw_out_eFD, x_RD,
      y_RD, h_RF, dx_RD, dy_RD, dh_RF;
  std::vector<Tensor> dw_in, dw_out;
};

void measure(const Subject& subject, DType dtype, std::int64_t count, int top_k, std::vector<Measurement>& results) {
  const std::vector<std::int64_t> first = routed_boundaries(Sizes(subject), count, top_k);
  std::int64_t largest = 0, smallest = first.back();
  for (std::size_t e = 0; e + 1 < first.size(); ++e) {
    largest = std::max(largest, first[e + 1] - first[e]);
    smallest = std::min(smallest, first[e + 1] - first[e]);
  }
  const std::string shape = fmt::format("E={} top-{}, {} to {} rows each", count, top_k, smallest, largest);
  Workbench bench(subject, subject.k.matmul.scratch_bytes());
  Experts experts(subject, bench, dtype, first);
  const double product = experts.flops_of_one_product();
  const auto add = [&](const std::string& name, double products, const std::function<void()>& run) {
    Measurement m{name, name_of(dtype), shape, bench.seconds(run), products * product, 0, {}};
    m.more["experts"] = count;
    m.more["top_k"] = top_k;
    results.push_back(m);
  };
  add("expert FFN backward, weights", 2, [&] { experts.backward_weights(first); });
  if (subject.on_host()) {  // the only device that sums leaf by leaf
    const std::vector<std::int64_t> cut = experts.in_leaves(8);
    add("expert FFN backward, weights, 8 leaves", 2, [&] { experts.backward_weights(cut); });
  }
  // Weights that serve one microbatch are packed in each product, those of several (or of an evaluation) once.
  for (const char* packed : {"", ", weights packed before"}) {
    experts.packed_before = *packed != 0;
    if (experts.packed_before && !experts.packs()) break;
    add(std::string("expert FFN forward") + packed, 2, [&] { experts.forward(); });
    add(std::string("expert FFN backward, inputs") + packed, 2, [&] { experts.backward_inputs(); });
    add(std::string("expert FFN forward + backward") + packed, 6, [&] {
      experts.forward();
      experts.backward_inputs();
      experts.backward_weights(first);
    });
  }
  if (!experts.packs() || top_k > 1) return;
  Measurement m{"expert weights packed",
                name_of(dtype),
                fmt::format("E={}", count),
                bench.seconds([&] { experts.pack(); }),
                0,
                experts.bytes_packed(),
                {}};
  m.more["experts"] = count;
  results.push_back(m);
}

const Registration registration({"operations", "experts: feed-forward of width 768, hidden 2048, 2048 tokens",
                                 [](const Subject& subject) {
                                   std::vector<Measurement> results;
                                   for (const DType dtype : {DType::f32, DType::bf16}) {
                                     for (const std::int64_t count : {8, 32}) {
                                       for (const int top_k : {1, 2}) measure(subject, dtype, count, top_k, results);
                                     }
                                   }
                                   return results;
                                 }});

}  // namespace
}  // namespace flanmoe::bench
