#include "kernels/cpu/tile_kernel.hpp"

#include <omp.h>

#include <array>
#include <deque>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.hpp"

namespace flanmoe::cpu {

struct TileKernel::Primitive {
  dnnl::matmul matmul;
  dnnl::memory::desc a, b, c, scratchpad;
  std::size_t scratchpad_bytes = 0;
};

namespace {

using Descriptor = dnnl::memory::desc;
using Tag = dnnl::memory::format_tag;

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::memory::data_type dnnl_type(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

/// A primitive made in this scope runs in the calling thread alone.
class SingleThreadScope {
 public:
  SingleThreadScope() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThreadScope() { omp_set_num_threads(threads_); }
  SingleThreadScope(const SingleThreadScope&) = delete;
  SingleThreadScope& operator=(const SingleThreadScope&) = delete;

 private:
  int threads_;
};

using PrimitiveDescriptor = dnnl::matmul::primitive_desc;

PrimitiveDescriptor describe(DType dtype, std::int64_t rows, std::int64_t depth, std::int64_t cols, Tag weights) {
  const SingleThreadScope alone;
  const auto type = dnnl_type(dtype);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return {{Descriptor({rows, depth}, type, Tag::ab), Descriptor({depth, cols}, type, weights),
           Descriptor({rows, cols}, dnnl::memory::data_type::f32, Tag::ab)},
          attributes,
          cpu_engine()};
}

/// oneDNN's memory objects of one kernel in one thread; only the pointers change from call to call.
struct Arguments {
  explicit Arguments(const Descriptor& a_desc, const Descriptor& b_desc, const Descriptor& c_desc,
                     const Descriptor& scratchpad_desc)
      : a(a_desc, cpu_engine(), nullptr),
        b(b_desc, cpu_engine(), nullptr),
        c(c_desc, cpu_engine(), nullptr),
        scratchpad(scratchpad_desc, cpu_engine(), nullptr) {}
  dnnl::memory a, b, c, scratchpad;
};

/// Memory for the scratchpad of whatever kernel the thread runs; grows to the largest one asked for.
void* thread_scratchpad(std::size_t bytes) {
  constexpr std::size_t kAlignment = 64;
  static thread_local std::vector<char> memory;
  if (memory.size() < bytes + kAlignment) memory.resize(bytes + kAlignment);
  void* aligned = memory.data();
  std::size_t space = memory.size();
  return std::align(kAlignment, bytes, aligned, space);
}

std::string shape_text(DType dtype, std::int64_t rows, std::int64_t depth, std::int64_t cols) {
  return fmt::format("{} x {} x {} in {}", rows, depth, cols, name_of(dtype));
}

/// The layout that oneDNN's own AVX-512 and AMX kernels read.
Tag blocked_tag(DType dtype) { return dtype == DType::bf16 ? Tag::BA16a64b2a : Tag::BA16a64b; }

bool prefers_blocks(DType dtype) {
  try {
    return describe(dtype, kTileRows, kTileCols, kTileCols, Tag::any).weights_desc() ==
           Descriptor({kTileCols, kTileCols}, dnnl_type(dtype), blocked_tag(dtype));
  } catch (const dnnl::error&) {
    return false;
  }
}

bool has_bf16() {
  try {
    describe(DType::bf16, kTileRows, kTileCols, kTileCols, Tag::any);
    return true;
  } catch (const dnnl::error&) {
    return false;
  }
}

}  // namespace

DType tile_dtype(DType operands) {
  FLANMOE_EXPECT(operands == DType::f32 || operands == DType::bf16, "the cpu device multiplies f32 and bf16, not {}",
                 name_of(operands));
  static const bool bf16_tiles = has_bf16();
  return operands == DType::bf16 && !bf16_tiles ? DType::f32 : operands;
}

bool TileKernel::reads_blocks(DType dtype) {
  static const bool f32_blocks = prefers_blocks(DType::f32);
  static const bool bf16_blocks = prefers_blocks(DType::bf16);
  return dtype == DType::bf16 ? bf16_blocks : f32_blocks;
}

const TileKernel& TileKernel::get(DType dtype, std::int64_t rows, std::int64_t depth, std::int64_t cols) {
  // What this thread asked for before is found without a lock.
  struct Remembered {
    std::uint64_t key = 0;
    const TileKernel* kernel = nullptr;
  };
  constexpr int kBits = 8;
  static thread_local std::array<Remembered, 1 << kBits> remembered;
  const std::uint64_t key = ((std::uint64_t(depth) << 32 | std::uint64_t(cols)) << 8 | std::uint64_t(rows)) << 2 |
                            std::uint64_t(dtype == DType::bf16) << 1 | 1U;
  Remembered& slot = remembered[(key * 0x9e3779b97f4a7c15U) >> (64 - kBits)];
  if (slot.key != key) slot = {key, &find_or_make(dtype, rows, depth, cols)};
  return *slot.kernel;
}

const TileKernel& TileKernel::find_or_make(DType dtype, std::int64_t rows, std::int64_t depth, std::int64_t cols) {
  using Key = std::tuple<DType, std::int64_t, std::int64_t, std::int64_t>;
  static std::mutex mutex;
  static std::map<Key, const TileKernel*> known;
  static std::deque<TileKernel> kernels;
  static std::deque<Primitive> primitives;

  const std::lock_guard lock(mutex);
  const Key key{dtype, rows, depth, cols};
  const auto found = known.find(key);
  if (found != known.end()) return *found->second;
  try {
    TileKernel kernel;
    const bool blocked = reads_blocks(dtype);
    kernel.layout_ = blocked ? blocks_of(dtype) : PackedLayout{cols, 1};
    const PrimitiveDescriptor pd = describe(dtype, rows, depth, cols, blocked ? blocked_tag(dtype) : Tag::ab);
    const SingleThreadScope alone;
    primitives.push_back({dnnl::matmul(pd), pd.src_desc(), pd.weights_desc(), pd.dst_desc(), pd.scratchpad_desc(),
                          pd.scratchpad_desc().get_size()});
    kernel.primitive_ = &primitives.back();
    kernel.index_ = kernels.size();
    kernels.push_back(kernel);
  } catch (const dnnl::error& error) {
    fail("oneDNN offers no matrix product of {} on this processor: {}", shape_text(dtype, rows, depth, cols),
         error.what());
  }
  known[key] = &kernels.back();
  return kernels.back();
}

void TileKernel::operator()(float* c, const void* a, const void* packed_b) const {
  static thread_local dnnl::stream stream(cpu_engine());
  static thread_local std::vector<std::unique_ptr<Arguments>> arguments;
  if (arguments.size() <= index_) arguments.resize(index_ + 1);
  auto& slot = arguments[index_];
  if (!slot) slot = std::make_unique<Arguments>(primitive_->a, primitive_->b, primitive_->c, primitive_->scratchpad);
  dnnl_memory_set_data_handle(slot->a.get(), const_cast<void*>(a));
  dnnl_memory_set_data_handle(slot->b.get(), const_cast<void*>(packed_b));
  dnnl_memory_set_data_handle(slot->c.get(), c);
  dnnl_memory_set_data_handle(slot->scratchpad.get(), thread_scratchpad(primitive_->scratchpad_bytes));
  const dnnl_exec_arg_t list[] = {{DNNL_ARG_SRC, slot->a.get()},
                                  {DNNL_ARG_WEIGHTS, slot->b.get()},
                                  {DNNL_ARG_DST, slot->c.get()},
                                  {DNNL_ARG_SCRATCHPAD, slot->scratchpad.get()}};
  const dnnl_status_t status = dnnl_primitive_execute(primitive_->matmul.get(), stream.get(), 4, list);
  FLANMOE_EXPECT(status == dnnl_success, "oneDNN status {}", int(status));
}

}  // namespace flanmoe::cpu
