#include "kernels/blocked_layout.h"

#include <algorithm>

#include "base/bf16.h"

namespace amxt::kernels {

template <typename E>
void to_blocked(BlockedShape shape, const E* from, int64_t ld, E* to) {
  for (int64_t panel = 0; panel < shape.panels(); ++panel) {
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      E* const out = to + panel * shape.panel_elements() + block * kBlockElements;
      const int64_t columns = std::min(kBlockSide, shape.columns - block * kBlockSide);
      const int64_t rows = std::min(kBlockSide, shape.rows - panel * kBlockSide);
      if (rows < kBlockSide || columns < kBlockSide) std::fill_n(out, kBlockElements, E{});
      for (int64_t row = 0; row < rows; ++row) {
        const E* const in = from + (panel * kBlockSide + row) * ld + block * kBlockSide;
        E* const place = out + row / 16 * 512 + row % 16 * 2;
        for (int64_t column = 0; column < columns; ++column) {
          place[column / 2 * 32 + column % 2] = in[column];
        }
      }
    }
  }
}

template <typename E>
void from_blocked(BlockedShape shape, const E* from, E* to, int64_t ld) {
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      const E* const place = from + shape.offset(row, block * kBlockSide);
      const int64_t columns = std::min(kBlockSide, shape.columns - block * kBlockSide);
      E* const out = to + row * ld + block * kBlockSide;
      for (int64_t column = 0; column < columns; ++column) {
        out[column] = place[column / 2 * 32 + column % 2];
      }
    }
  }
}

template void to_blocked(BlockedShape, const bf16*, int64_t, bf16*);
template void to_blocked(BlockedShape, const float*, int64_t, float*);
template void from_blocked(BlockedShape, const bf16*, bf16*, int64_t);
template void from_blocked(BlockedShape, const float*, float*, int64_t);

}  // namespace amxt::kernels
