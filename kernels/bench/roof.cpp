// What oneDNN or cuBLAS and the memory do at their best.
#include <omp.h>

#include <algorithm>
#include <dnnl.hpp>

#include "kernels/bench/bench.hpp"

namespace flanmoe::bench {
namespace {

struct Shape {
  std::int64_t m, k, n;
  bool transposed;  // the second operand is stored n x k
};
constexpr Shape kShapes[] = {{2048, 2048, 2048, false}, {2048, 2048, 2048, true}, {4096, 768, 2048, false},
                             {4096, 768, 2048, true},   {1024, 1024, 4096, true}, {512, 768, 2048, true}};

using Descriptor = dnnl::memory::desc;
using Tag = dnnl::memory::format_tag;

/// Operations per second of one large product by all threads; `packed`: weights in the layout that oneDNN prefers.
double product_rate(Workbench& bench, DType dtype, const Shape& shape, bool packed) {
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto type = dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  const Tag weights = packed ? Tag::any : shape.transposed ? Tag::ba : Tag::ab;
  const dnnl::matmul::primitive_desc pd(
      {Descriptor({shape.m, shape.k}, type, Tag::ab), Descriptor({shape.k, shape.n}, type, weights),
       Descriptor({shape.m, shape.n}, type, Tag::ab)},
      engine);
  const dnnl::matmul product(pd);
  const Tensor a = bench.tensor(dtype, shape.m, shape.k);
  const Tensor b = bench.tensor(dtype, shape.n, shape.k);
  const Tensor c = bench.tensor(dtype, shape.m, shape.n);
  FLANMOE_EXPECT(pd.weights_desc().get_size() <= b.bytes(), "packed weights take {} bytes",
                 pd.weights_desc().get_size());
  const dnnl::memory src(pd.src_desc(), engine, a.data);
  const dnnl::memory wei(pd.weights_desc(), engine, b.data);
  const dnnl::memory dst(pd.dst_desc(), engine, c.data);
  const double seconds = bench.seconds([&] {
    product.execute(stream, {{DNNL_ARG_SRC, src}, {DNNL_ARG_WEIGHTS, wei}, {DNNL_ARG_DST, dst}});
    stream.wait();
  });
  const double rate = 2.0 * double(shape.m) * double(shape.k) * double(shape.n) / seconds;
  fmt::print("  {:<5} {} x {} x {}{:<12} {:8.1f} GFLOP/s\n", name_of(dtype), shape.m, shape.k, shape.n,
             packed             ? ", packed"
             : shape.transposed ? ", transposed"
                                : "",
             rate * 1e-9);
  return rate;
}

/// Bytes read and written per second by y += x with all threads, each on a contiguous share.
double host_stream_rate(const Subject& subject, std::int64_t bytes) {
  Workbench bench(subject, 64);
  const std::int64_t count = bytes / std::int64_t(sizeof(float));
  const Tensor from = bench.tensor(DType::f32, 1, count);
  const Tensor to = bench.tensor(DType::f32, 1, count);
  const float* x = from.as<float>();
  float* y = to.as<float>();
  const double seconds = bench.seconds([&] {
#pragma omp parallel for simd schedule(static)
    for (std::int64_t i = 0; i < count; ++i) y[i] += x[i];
  });
  const double rate = 3.0 * double(bytes) / seconds;
  fmt::print("  memory, two operands of {} MiB {:8.1f} GB/s\n", bytes >> 20, rate * 1e-9);
  return rate;
}

double best_host_product(const Subject& subject, DType dtype, bool packed) {
  double best = 0;
  for (const Shape& shape : kShapes) {
    if (packed && shape.transposed) continue;  // packed is packed
    Workbench bench(subject, 64);
    best = std::max(best, product_rate(bench, dtype, shape, packed));
    if (subject.quick) break;
  }
  return best;
}

Roof measure_host(const Subject& subject) {
  fmt::print("Roof: large products by oneDNN, {} threads\n", omp_get_max_threads());
  Roof roof;
  roof.f32_flops = best_host_product(subject, DType::f32, false);
  roof.f32_packed_flops = best_host_product(subject, DType::f32, true);
  roof.bf16_flops = best_host_product(subject, DType::bf16, false);
  roof.bf16_packed_flops = best_host_product(subject, DType::bf16, true);
  // Activations of a microbatch, which caches may hold, and what no cache holds.
  roof.bytes_per_second = std::max(host_stream_rate(subject, std::int64_t{12} << 20),
                                   host_stream_rate(subject, subject.size(std::int64_t{256} << 20, 1 << 20)));
  fmt::print("  fp32 {:.1f} GFLOP/s ({:.1f} packed), bf16 {:.1f} GFLOP/s ({:.1f} packed), memory {:.1f} GB/s\n",
             roof.f32_flops * 1e-9, roof.f32_packed_flops * 1e-9, roof.bf16_flops * 1e-9, roof.bf16_packed_flops * 1e-9,
             roof.bytes_per_second * 1e-9);
  return roof;
}

/// Operations per second of square products by cuBLAS.
double gpu_product_rate(const Subject& subject, DType dtype, bool tf32) {
  double best = 0;
  for (const std::int64_t n : {subject.size(4096, 32), subject.size(8192, 64)}) {
    Workbench bench(subject, subject.k.matmul.scratch_bytes());
    const Tensor a = bench.tensor(dtype, n, n), b = bench.tensor(dtype, n, n), y = bench.tensor(dtype, n, n);
    bench.context().tf32 = tf32;
    const double seconds =
        bench.seconds([&] { subject.k.matmul.product(bench.context(), y, a, Transpose::no, b, Transpose::no, 0.0F); });
    const double rate = 2.0 * double(n) * double(n) * double(n) / seconds;
    fmt::print("  {:<5} {} x {} x {} {:8.1f} TFLOP/s\n", tf32 ? "tf32" : name_of(dtype), n, n, n, rate * 1e-12);
    best = std::max(best, rate);
  }
  return best;
}

/// Bytes read and written per second by y = x and by y += x, beyond what caches hold.
double gpu_stream_rate(const Subject& subject) {
  const std::int64_t count = subject.size(std::int64_t{1} << 28, 1 << 12);
  Workbench bench(subject, 64);
  const Tensor x = bench.tensor(DType::f32, 1, count), y = bench.tensor(DType::f32, 1, count);
  const double bytes = double(x.bytes());
  const double copy = 2 * bytes / bench.seconds([&] { subject.k.elementwise.convert(bench.context(), y, x); });
  const double add = 3 * bytes / bench.seconds([&] { subject.k.elementwise.add(bench.context(), y, x); });
  fmt::print("  memory, copy of {} MiB {:8.1f} GB/s, sum {:8.1f} GB/s\n", x.bytes() >> 20, copy * 1e-9, add * 1e-9);
  return std::max(copy, add);
}

Roof measure_gpu(const Subject& subject) {
  fmt::print("Roof: large products by cuBLAS, copies in the memory of the GPU\n");
  Roof roof;
  roof.f32_flops = gpu_product_rate(subject, DType::f32, false);
  roof.tf32_flops = gpu_product_rate(subject, DType::f32, true);
  roof.bf16_flops = gpu_product_rate(subject, DType::bf16, false);
  roof.bytes_per_second = gpu_stream_rate(subject);
  return roof;
}

}  // namespace

Roof measure_roof(const Subject& subject) { return subject.on_host() ? measure_host(subject) : measure_gpu(subject); }

nlohmann::ordered_json roof_report(const Subject& subject, const Roof& roof) {
  nlohmann::ordered_json report{{"f32_flops_per_second", roof.f32_flops}, {"bf16_flops_per_second", roof.bf16_flops}};
  if (subject.on_host()) {
    report["f32_packed_flops_per_second"] = roof.f32_packed_flops;
    report["bf16_packed_flops_per_second"] = roof.bf16_packed_flops;
  } else {
    report["tf32_flops_per_second"] = roof.tf32_flops;
  }
  report["memory_bytes_per_second"] = roof.bytes_per_second;
  return report;
}

}  // namespace flanmoe::bench
