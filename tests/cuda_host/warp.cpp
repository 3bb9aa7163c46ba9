// Operations of a whole warp that are made of one exchange among its lanes.
#include <array>

#include "block.hpp"
#include "tensor/dtype.hpp"

namespace flanmoe::emulation {

unsigned ballot(unsigned mask, int predicate, Where where) {
  unsigned out = 0;
  warp_collective(
      mask, &predicate, &out,
      [](const WarpOperands& o) {
        unsigned votes = 0;
        for (unsigned l = 0; l < kLanes; ++l) {
          if ((o.mask >> l & 1U) != 0 && *static_cast<const int*>(o.in[l]) != 0) votes |= 1U << l;
        }
        for (unsigned l = 0; l < kLanes; ++l) {
          if ((o.mask >> l & 1U) != 0) *static_cast<unsigned*>(o.out[l]) = votes;
        }
      },
      where);
  return out;
}

unsigned match(unsigned mask, std::uint64_t value, Where where) {
  unsigned out = 0;
  warp_collective(
      mask, &value, &out,
      [](const WarpOperands& o) {
        for (unsigned l = 0; l < kLanes; ++l) {
          if ((o.mask >> l & 1U) == 0) continue;
          unsigned same = 0;
          for (unsigned m = 0; m < kLanes; ++m) {
            if ((o.mask >> m & 1U) == 0) continue;
            if (*static_cast<const std::uint64_t*>(o.in[l]) == *static_cast<const std::uint64_t*>(o.in[m])) {
              same |= 1U << m;
            }
          }
          *static_cast<unsigned*>(o.out[l]) = same;
        }
      },
      where);
  return out;
}

void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Where where) {
  struct In {
    std::array<std::uint32_t, 4> a;
    std::array<std::uint32_t, 2> b;
    std::array<float, 4> c;
  };
  const In in{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  std::array<float, 4> out{};
  warp_collective(
      0xffffffffU, &in, &out,
      [](const WarpOperands& o) {
        const auto part = [](std::uint32_t word, int half) {
          bf16 x;
          x.bits = std::uint16_t(half == 0 ? word & 0xffffU : word >> 16U);
          return float(x);
        };
        // PTX: lane 4 g + t holds of A rows g and g + 8, columns 2t, 2t + 1 and the same + 8; of B (K x 8) rows 2t, 2t
        // + 1 and the same + 8 of column g; of C rows g and g + 8, columns 2t and 2t + 1.
        float A[16][16], B[16][8];
        for (int l = 0; l < kLanes; ++l) {
          const In& x = *static_cast<const In*>(o.in[std::size_t(l)]);
          const int g = l / 4, t = l % 4;
          for (int r = 0; r < 4; ++r) {
            for (int h = 0; h < 2; ++h) A[g + 8 * (r % 2)][2 * t + h + 8 * (r / 2)] = part(x.a[std::size_t(r)], h);
          }
          for (int r = 0; r < 2; ++r) {
            for (int h = 0; h < 2; ++h) B[2 * t + h + 8 * r][g] = part(x.b[std::size_t(r)], h);
          }
        }
        for (int l = 0; l < kLanes; ++l) {
          const In& x = *static_cast<const In*>(o.in[std::size_t(l)]);
          auto& d = *static_cast<std::array<float, 4>*>(o.out[std::size_t(l)]);
          for (int r = 0; r < 4; ++r) {
            const int i = l / 4 + 8 * (r / 2), j = 2 * (l % 4) + r % 2;
            float sum = x.c[std::size_t(r)];
            for (int k = 0; k < 16; ++k) sum += A[i][k] * B[k][j];
            d[std::size_t(r)] = sum;
          }
        }
      },
      where);
  for (std::size_t r = 0; r < 4; ++r) c[r] = out[r];
}

}  // namespace flanmoe::emulation
