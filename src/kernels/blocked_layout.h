// The blocked order of a weight: one order from which the forward product, both gradients and the optimizer read, so that nothing is packed
// but activations.
//
// W [N,K] is cut into panels of 32 rows and these into blocks of 32 x 32, the panels one after the other, each with its blocks along K:
//
//   [N/32 panels] [K/32 blocks] [2 halves of 16 rows] [16 pairs of columns] [16 rows] [2 columns of a pair]
//
// A half of a block of bf16 is 1 KiB: the second operand of a tile product as it stands (16 pairs of the contracted index, 16 columns of
// the result). Rows and columns that a panel or a block has beyond the weight are zeros, and stay zeros.
//
// What the order gives to whoever owns rows (store/layout):
//   - Panels are the panels that rows are dealt out in, and a panel is contiguous: rows [32 a, 32 b) are the elements
//     [32 a K', 32 b K'), K' = K rounded up to 32. These are the places that they have in row-major order too, so offsets of tensors and of
//     owned ranges, windows and exchanges between nodes stay as they are; only sizes are those of rounded shapes.
//   - Matrices that follow each other (q, k, v; gate, up) are one matrix to a product if their row counts are multiples of 32, and a range
//     of whole panels (an owner's rows, a block of the vocabulary) is a matrix of its own.
//   - Master, moments and gradients in the same order keep the optimizer elementwise.
// One row is spread over K/2 cache lines: a table that rows are looked up in is better kept row-major, if it is not the head's weight too.
#pragma once

#include <cstdint>

namespace amxt::kernels {

// How the weights of products lie.
enum class WeightOrder : int32_t { kRowMajor, kBlocked };

inline constexpr int64_t kBlockSide = 32;
inline constexpr int64_t kBlockElements = kBlockSide * kBlockSide;

struct BlockedShape {
  int64_t rows, columns;

  int64_t panels() const { return (rows + kBlockSide - 1) / kBlockSide; }
  int64_t blocks() const { return (columns + kBlockSide - 1) / kBlockSide; }  // of a panel
  int64_t panel_elements() const { return blocks() * kBlockElements; }
  int64_t elements() const { return panels() * panel_elements(); }

  int64_t offset(int64_t row, int64_t column) const {
    const int64_t half = row % kBlockSide / 16, pair = column % kBlockSide / 2;
    return row / kBlockSide * panel_elements() + column / kBlockSide * kBlockElements +
           ((half * 16 + pair) * 16 + row % 16) * 2 + column % 2;
  }
};

// Between row-major rows, `ld` elements apart, and the blocked order. E: bf16, float or uint16_t. to_blocked() writes zeros where the shape has no
// element; from_blocked() does not read them.
template <typename E>
void to_blocked(BlockedShape shape, const E* from, int64_t ld, E* to);
template <typename E>
void from_blocked(BlockedShape shape, const E* from, E* to, int64_t ld);

// One row, `columns` long; in the blocked order from its first element on, at shape.offset(row, 0).
template <typename E>
void row_to_blocked(int64_t columns, const E* from, E* to);
template <typename E>
void row_from_blocked(int64_t columns, const E* from, E* to);

}  // namespace amxt::kernels
