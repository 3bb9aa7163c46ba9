#include "kernels/cpu/packing.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace flanmoe::cpu {
namespace {

// Everything moves in 32-bit words: one fp32, or two bf16 that follow each other along the depth.
using Word = std::uint32_t;
constexpr std::int64_t kSide = 16;  // words of a 64-byte line; blocks are 16 x 16 words
typedef Word Line __attribute__((vector_size(64)));

Line load_line(const void* from) {
  Line line;
  std::memcpy(&line, from, sizeof line);
  return line;
}
void store_line(Word* to, Line line) { std::memcpy(to, &line, sizeof line); }

/// Swaps the off-diagonal quarters of every 2*Half x 2*Half block; four such steps transpose 16 x 16.
template <int Half>
[[gnu::always_inline]] inline void exchange(Line (&lines)[kSide]) {
  for (int i = 0; i < kSide; ++i) {
    if ((i & Half) != 0) continue;
    const Line low = lines[i];
    const Line high = lines[i + Half];
    if constexpr (Half == 8) {
      lines[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
      lines[i + 8] = __builtin_shufflevector(low, high, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    } else if constexpr (Half == 4) {
      lines[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      lines[i + 4] = __builtin_shufflevector(low, high, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    } else if constexpr (Half == 2) {
      lines[i] = __builtin_shufflevector(low, high, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      lines[i + 2] = __builtin_shufflevector(low, high, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    } else {
      lines[i] = __builtin_shufflevector(low, high, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
      lines[i + 1] = __builtin_shufflevector(low, high, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
  }
}

[[gnu::always_inline]] inline void transpose(Line (&lines)[kSide]) {
  exchange<8>(lines);
  exchange<4>(lines);
  exchange<2>(lines);
  exchange<1>(lines);
}

/// Elements per word.
template <class T>
constexpr std::int64_t kPerWord = std::int64_t(sizeof(Word) / sizeof(T));

/// Sixteen columns of one word row: word n holds elements (k, n) [and (k+1, n)] of a matrix with k down its rows.
template <class T>
Line across(const T* from, std::int64_t stride) {
  if constexpr (sizeof(T) == sizeof(Word)) {
    return load_line(from);
  } else {
    typedef std::uint16_t HalfLine __attribute__((vector_size(32)));
    HalfLine even, odd;
    std::memcpy(&even, from, sizeof even);
    std::memcpy(&odd, from + stride, sizeof odd);
    const auto pairs = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24,
                                               9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return std::bit_cast<Line>(pairs);
  }
}

/// Where a turned block goes: at most 16 rows of at most 16 words, `stride` words apart.
struct Place {
  Word* to;
  std::int64_t stride, rows = kSide, words = kSide;

  void store(const Line (&lines)[kSide]) const {
    if (rows >= kSide && words >= kSide) {
      for (std::int64_t i = 0; i < kSide; ++i) store_line(to + i * stride, lines[i]);
      return;
    }
    for (std::int64_t i = 0; i < std::min(rows, kSide); ++i) {
      std::memcpy(to + i * stride, &lines[i], std::size_t(std::min(words, kSide)) * sizeof(Word));
    }
  }
};

/// Reads 16 x 16 words and writes them transposed, all in registers.
template <class T, bool depth_across>
[[gnu::always_inline]] inline void turn_whole(const Place& place, const T* from, std::int64_t stride) {
  Line lines[kSide];
  for (std::int64_t i = 0; i < kSide; ++i) {
    lines[i] = depth_across ? load_line(from + i * stride) : across(from + i * kPerWord<T> * stride, stride);
  }
  transpose(lines);
  for (std::int64_t i = 0; i < kSide; ++i) store_line(place.to + i * place.stride, lines[i]);
}

/// Reads 16 x 16 words, or fewer at the edges, and writes them transposed, with zeros where nothing was read.
/// `depth_across`: depth runs along the rows of the stored matrix.
template <class T>
void turn_block(const Place& place, const T* from, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                bool depth_across) {
  const std::int64_t full_rows = depth_across ? kSide : kSide * kPerWord<T>;
  const std::int64_t full_cols = depth_across ? kSide * kPerWord<T> : kSide;
  Line lines[kSide] = {};
  if (rows <= 0 || cols <= 0) {
    place.store(lines);
    return;
  }
  if (rows >= full_rows && cols >= full_cols && place.rows >= kSide && place.words >= kSide) {
    depth_across ? turn_whole<T, true>(place, from, stride) : turn_whole<T, false>(place, from, stride);
    return;
  }
  T edge[kSide * kSide * kPerWord<T>];
  if (rows < full_rows || cols < full_cols) {
    std::memset(static_cast<void*>(edge), 0, sizeof edge);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::memcpy(static_cast<void*>(edge + i * full_cols), from + i * stride, std::size_t(cols) * sizeof(T));
    }
    from = edge;
    stride = full_cols;
  }
  for (std::int64_t i = 0; i < kSide; ++i) {
    lines[i] = depth_across ? load_line(from + i * stride) : across(from + i * kPerWord<T> * stride, stride);
  }
  transpose(lines);
  place.store(lines);
}

/// Where the stored matrix begins for this window, and its extent in stored rows and columns.
template <class T>
struct Stored {
  explicit Stored(const Window& w)
      : data(static_cast<const T*>(w.matrix->data) + (w.transposed ? w.col : w.row) * w.matrix->stride +
             (w.transposed ? w.row : w.col)),
        stride(w.matrix->stride),
        rows(w.transposed ? w.cols : w.rows),
        cols(w.transposed ? w.rows : w.cols) {}
  const T* data;
  std::int64_t stride, rows, cols;

  const T* at(std::int64_t i, std::int64_t j) const { return data + i * stride + j; }  // may lie outside: not read
};

template <class T>
void pack_a_of(T* dst, const Window& a, std::int64_t padded_rows, std::int64_t padded_depth) {
  const Stored<T> m(a);
  if (!a.transposed) {
    for (std::int64_t i = 0; i < padded_rows; ++i) {
      T* row = dst + i * padded_depth;
      const std::int64_t copied = i < a.rows ? a.cols : 0;
      if (copied > 0) std::memcpy(static_cast<void*>(row), m.at(i, 0), std::size_t(copied) * sizeof(T));
      std::memset(static_cast<void*>(row + copied), 0, std::size_t(padded_depth - copied) * sizeof(T));
    }
    return;
  }
  const std::int64_t depth_block = kSide * kPerWord<T>;
  Word* words = reinterpret_cast<Word*>(dst);
  const std::int64_t row_words = padded_depth / kPerWord<T>;
  for (std::int64_t k = 0; k < padded_depth; k += depth_block) {  // reads run along the stored rows
    for (std::int64_t i = 0; i < padded_rows; i += kSide) {
      const std::int64_t rows = std::min(m.rows - k, depth_block);
      const std::int64_t cols = std::min(m.cols - i, kSide);
      const std::int64_t word = k / kPerWord<T>;
      const Place place{words + i * row_words + word, row_words, padded_rows - i, row_words - word};
      turn_block(place, m.at(k, i), m.stride, rows, cols, false);
    }
  }
}

/// A word row of one block of columns at the edges of b, where `rows` rows and `cols` columns remain.
template <class T>
void copy_across_edge(Word* to, const T* from, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                      std::int64_t block_cols) {
  for (std::int64_t n = 0; n < block_cols; n += kSide) {
    T edge[kPerWord<T> * kSide] = {};
    const std::int64_t width = std::clamp<std::int64_t>(cols - n, 0, kSide);
    for (std::int64_t r = 0; r < std::min(rows, kPerWord<T>); ++r) {
      if (width > 0) std::copy_n(from + r * stride + n, width, edge + r * kSide);
    }
    store_line(to + n, across(edge, kSide));
  }
}

/// Asks for the rows of a later word row: rows are far apart, and no processor guesses that far ahead. May
/// point behind the matrix: nothing is read then.
template <class T>
void prefetch_rows(const T* from, std::int64_t stride) {
  constexpr std::int64_t kLine = 64 / std::int64_t(sizeof(T));
  for (std::int64_t r = 0; r < kPerWord<T>; ++r) {
    for (std::int64_t i = 0; i < kTileColStep; i += kLine) __builtin_prefetch(from + r * stride + i, 0, 2);
  }
}

/// Word rows that are packed together, block of columns after block of columns: few, so that each stored row is read in
/// one run, and not one, so that blocks are written in whole runs, too. Of 1 to 32, 4 was measured to be the fastest.
constexpr std::int64_t kWordRows = 4;

/// b stored with its columns along the rows: every word row is made of kPerWord stored rows.
template <class T>
void pack_b_straight(T* dst, const Window& b, std::int64_t padded_depth, std::int64_t padded_cols,
                     std::int64_t block_cols) {
  const Stored<T> m(b);
  const std::int64_t depth_words = padded_depth / kPerWord<T>;
  for (std::int64_t first = 0; first < depth_words; first += kWordRows) {
    const std::int64_t end = std::min(first + kWordRows, depth_words);
    for (std::int64_t n = 0; n < padded_cols; n += block_cols) {
      Word* to = reinterpret_cast<Word*>(dst) + n * depth_words + first * block_cols;
      const bool whole_cols = n + block_cols <= b.cols && block_cols == kTileColStep;
      for (std::int64_t w = first; w < end; ++w, to += block_cols) {
        const std::int64_t k = w * kPerWord<T>;
        const std::int64_t rows = b.rows - k;
        if (rows <= 0 || n >= b.cols) {
          for (std::int64_t i = 0; i < block_cols; i += kSide) store_line(to + i, Line{});
        } else if (rows >= kPerWord<T> && whole_cols) {
          const T* from = m.at(k, n);
          prefetch_rows(from + 2 * kWordRows * kPerWord<T> * m.stride, m.stride);
          for (std::int64_t i = 0; i < kTileColStep; i += kSide) store_line(to + i, across(from + i, m.stride));
        } else {
          copy_across_edge(to, m.at(k, n), m.stride, rows, b.cols - n, block_cols);
        }
      }
    }
  }
}

/// b stored with its depth along the rows: blocks of 16 x 16 words are turned.
template <class T>
void pack_b_turned(T* dst, const Window& b, std::int64_t padded_depth, std::int64_t padded_cols,
                   std::int64_t block_cols) {
  const Stored<T> m(b);
  const std::int64_t depth_block = kSide * kPerWord<T>;
  const std::int64_t depth_words = padded_depth / kPerWord<T>;
  Word* words = reinterpret_cast<Word*>(dst);
  for (std::int64_t n = 0; n < padded_cols; n += kSide) {
    Word* column = words + n / block_cols * block_cols * depth_words + n % block_cols;
    for (std::int64_t k = 0; k < padded_depth; k += depth_block) {
      for (std::int64_t i = 0; i < kSide; ++i) __builtin_prefetch(m.at(n + kSide + i, k), 0, 2);  // the next columns
      turn_block(Place{column + k / kPerWord<T> * block_cols, block_cols}, m.at(n, k), m.stride,
                 std::min(b.cols - n, kSide), std::min(b.rows - k, depth_block), true);
    }
  }
}

/// Element by element, for what the fast paths do not know: bf16 widened to fp32, and a plain b. Where oneDNN has
/// neither, its products are slow too.
template <class To, class From>
void pack_a_slowly(To* dst, const Window& a, std::int64_t padded_rows, std::int64_t padded_depth) {
  const Stored<From> m(a);
  for (std::int64_t i = 0; i < padded_rows; ++i) {
    for (std::int64_t k = 0; k < padded_depth; ++k) {
      const bool inside = i < a.rows && k < a.cols;
      dst[i * padded_depth + k] = inside ? To(*(a.transposed ? m.at(k, i) : m.at(i, k))) : To{};
    }
  }
}

template <class To, class From>
void pack_b_slowly(To* dst, const Window& b, std::int64_t padded_depth, std::int64_t padded_cols,
                   const PackedLayout& layout) {
  const Stored<From> m(b);
  for (std::int64_t n = 0; n < padded_cols; ++n) {
    To* block = dst + n / layout.block_cols * layout.block_cols * padded_depth;
    for (std::int64_t k = 0; k < padded_depth; ++k) {
      const bool inside = k < b.rows && n < b.cols;
      block[(k / layout.interleave * layout.block_cols + n % layout.block_cols) * layout.interleave +
            k % layout.interleave] = inside ? To(*(b.transposed ? m.at(n, k) : m.at(k, n))) : To{};
    }
  }
}

template <class T>
void pack_b_of(T* dst, const Window& b, std::int64_t padded_depth, std::int64_t padded_cols,
               const PackedLayout& layout) {
  if (layout.interleave != kPerWord<T>) {
    pack_b_slowly<T, T>(dst, b, padded_depth, padded_cols, layout);
  } else if (b.transposed) {
    pack_b_turned(dst, b, padded_depth, padded_cols, layout.block_cols);
  } else {
    pack_b_straight(dst, b, padded_depth, padded_cols, layout.block_cols);
  }
}

}  // namespace

void pack_a(void* dst, DType type, const Window& a, std::int64_t padded_rows, std::int64_t padded_depth) {
  if (type != a.matrix->dtype) {
    pack_a_slowly<float, bf16>(static_cast<float*>(dst), a, padded_rows, padded_depth);
  } else if (type == DType::bf16) {
    pack_a_of(static_cast<bf16*>(dst), a, padded_rows, padded_depth);
  } else {
    pack_a_of(static_cast<float*>(dst), a, padded_rows, padded_depth);
  }
}

void pack_b(void* dst, DType type, const Window& b, std::int64_t padded_depth, std::int64_t padded_cols,
            const PackedLayout& layout) {
  if (type != b.matrix->dtype) {
    pack_b_slowly<float, bf16>(static_cast<float*>(dst), b, padded_depth, padded_cols, layout);
  } else if (type == DType::bf16) {
    pack_b_of(static_cast<bf16*>(dst), b, padded_depth, padded_cols, layout);
  } else {
    pack_b_of(static_cast<float*>(dst), b, padded_depth, padded_cols, layout);
  }
}

}  // namespace flanmoe::cpu
