#include "kernels/blocked_layout.h"

#include <algorithm>
#include <cstring>

#include "base/bf16.h"

namespace amxt::kernels {

namespace {

// Two elements at a time; memcpy, since they are no words to the caller.
template <typename E>
struct Pair {
  E first, second;
};

// 16 rows of whole pairs.
template <typename E>
void to_half(const E* from, int64_t ld, E* to) {
  for (int64_t row = 0; row < 16; ++row) {
    for (int64_t pair = 0; pair < 16; ++pair)
      std::memcpy(to + (pair * 16 + row) * 2, from + row * ld + pair * 2, sizeof(Pair<E>));
  }
}

}  // namespace

template <typename E>
void row_to_blocked(int64_t columns, const E* from, E* to) {
  for (int64_t column = 0; column < columns; ++column) {
    to[column / kBlockSide * kBlockElements + column % kBlockSide / 2 * 32 + column % 2] =
        from[column];
  }
}

template <typename E>
void row_from_blocked(int64_t columns, const E* from, E* to) {
  int64_t block = 0;
  for (; block + kBlockSide <= columns; block += kBlockSide, from += kBlockElements) {
    for (int64_t pair = 0; pair < 16; ++pair)
      std::memcpy(to + block + pair * 2, from + pair * 32, sizeof(Pair<E>));
  }
  for (int64_t column = 0; block + column < columns; ++column)
    to[block + column] = from[column / 2 * 32 + column % 2];
}

template <typename E>
void to_blocked(BlockedShape shape, const E* from, int64_t ld, E* to) {
  for (int64_t panel = 0; panel < shape.panels(); ++panel) {
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      E* const out = to + panel * shape.panel_elements() + block * kBlockElements;
      const int64_t columns = std::min(kBlockSide, shape.columns - block * kBlockSide);
      const int64_t rows = std::min(kBlockSide, shape.rows - panel * kBlockSide);
      if (rows == kBlockSide && columns == kBlockSide) {
        const E* const in = from + panel * kBlockSide * ld + block * kBlockSide;
        to_half(in, ld, out);
        to_half(in + 16 * ld, ld, out + kBlockElements / 2);
        continue;
      }
      std::fill_n(out, kBlockElements, E{});
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
  for (int64_t row = 0; row < shape.rows; ++row)
    row_from_blocked(shape.columns, from + shape.offset(row, 0), to + row * ld);
}

template void to_blocked(BlockedShape, const bf16*, int64_t, bf16*);
template void to_blocked(BlockedShape, const float*, int64_t, float*);
template void from_blocked(BlockedShape, const bf16*, bf16*, int64_t);
template void from_blocked(BlockedShape, const float*, float*, int64_t);
template void to_blocked(BlockedShape, const uint16_t*, int64_t, uint16_t*);
template void from_blocked(BlockedShape, const uint16_t*, uint16_t*, int64_t);
template void row_to_blocked(int64_t, const bf16*, bf16*);
template void row_to_blocked(int64_t, const float*, float*);
template void row_to_blocked(int64_t, const uint16_t*, uint16_t*);
template void row_from_blocked(int64_t, const bf16*, bf16*);
template void row_from_blocked(int64_t, const float*, float*);
template void row_from_blocked(int64_t, const uint16_t*, uint16_t*);

}  // namespace amxt::kernels
