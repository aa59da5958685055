#include "kernels/blocked_layout.h"

#include <vector>

#include "unit/kernels/kernel_data.h"

namespace amxt::kernels {
namespace {

// The order in words: panels of 32 rows, blocks of 32 columns, halves of 16 rows, pairs of columns, rows, the two columns of a pair.
TEST(BlockedLayout, PutsElementsWhereTheOrderSays) {
  const BlockedShape shape{96, 64};
  EXPECT_EQ(shape.elements(), 96 * 64);
  EXPECT_EQ(shape.offset(0, 0), 0);
  EXPECT_EQ(shape.offset(0, 1), 1) << "the second column of a pair";
  EXPECT_EQ(shape.offset(1, 0), 2) << "the next row";
  EXPECT_EQ(shape.offset(0, 2), 32) << "the next pair of columns";
  EXPECT_EQ(shape.offset(16, 0), 512) << "the second half of the rows";
  EXPECT_EQ(shape.offset(0, 32), 1024) << "the next block";
  EXPECT_EQ(shape.offset(32, 0), 2048) << "the next panel";
  EXPECT_EQ(shape.offset(95, 63), 96 * 64 - 1);
}

template <typename E>
class BlockedLayoutOf : public ::testing::Test {};
using Elements = ::testing::Types<bf16, float>;
TYPED_TEST_SUITE(BlockedLayoutOf, Elements);

TYPED_TEST(BlockedLayoutOf, RowsGoThereAndBackWithZerosAround) {
  using E = TypeParam;
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  std::vector<BlockedShape> shapes{{1, 1},   {1, 33},   {33, 1},   {31, 32}, {32, 31},
                                   {32, 32}, {65, 100}, {960, 70}, {48, 960}};
  for (int i = 0; i < 10; ++i) shapes.push_back({random.between(1, 200), random.between(1, 200)});
  for (const BlockedShape shape : shapes) {
    SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.columns);
    const Rows<E> rows(shape.rows, shape.columns, 3, random);
    std::vector<E> blocked(static_cast<size_t>(shape.elements()), from_float<E>(kNaN));
    to_blocked(shape, rows.begin(), rows.ld, blocked.data());

    for (int64_t row = 0; row < shape.panels() * kBlockSide; ++row) {
      for (int64_t column = 0; column < shape.blocks() * kBlockSide; ++column) {
        const bool inside = row < shape.rows && column < shape.columns;
        ASSERT_EQ(to_float(blocked[static_cast<size_t>(shape.offset(row, column))]),
                  inside ? rows.value(row, column) : 0)
            << row << "," << column;
      }
    }

    Rows<E> back(shape.rows, shape.columns, 5);
    from_blocked(shape, blocked.data(), back.begin(), back.ld);
    expect_near(back, rows, 0, 0, "there and back");
  }
}

TYPED_TEST(BlockedLayoutOf, ARowGoesThereAndBackAlone) {
  using E = TypeParam;
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  for (const int64_t columns : {1, 31, 32, 64, 100, 960}) {
    const BlockedShape shape{40, columns};
    const Rows<E> rows(shape.rows, columns, 0, random);
    std::vector<E> blocked(static_cast<size_t>(shape.elements())), other(blocked.size());
    to_blocked(shape, rows.begin(), rows.ld, blocked.data());
    for (int64_t row = 0; row < shape.rows; ++row) {
      row_to_blocked(columns, rows.begin() + row * rows.ld, other.data() + shape.offset(row, 0));
      std::vector<E> back(static_cast<size_t>(columns));
      row_from_blocked(columns, blocked.data() + shape.offset(row, 0), back.data());
      for (int64_t column = 0; column < columns; ++column)
        ASSERT_EQ(to_float(back[static_cast<size_t>(column)]), rows.value(row, column));
    }
    for (size_t i = 0; i < blocked.size(); ++i)
      ASSERT_EQ(to_float(other[i]), to_float(blocked[i])) << columns << " columns, place " << i;
  }
}

// What lets owners keep the offsets that they have in row-major order.
TEST(BlockedLayout, ARangeOfPanelsIsAMatrixOfItsOwn) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const BlockedShape whole{200, 77};
  const Rows<bf16> rows(whole.rows, whole.columns, 0, random);
  std::vector<bf16> all(static_cast<size_t>(whole.elements()));
  to_blocked(whole, rows.begin(), rows.ld, all.data());
  const BlockedShape part{whole.rows - 64, whole.columns};
  std::vector<bf16> own(static_cast<size_t>(part.elements()));
  to_blocked(part, rows.begin() + 64 * rows.ld, rows.ld, own.data());
  EXPECT_TRUE(same_bits(std::vector<bf16>(all.begin() + 64 * 96, all.end()), own));
}

// What an embedding that is the head's weight too is read by.
TEST(BlockedLayout, OneRowCanBeRead) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const BlockedShape shape{70, 99};
  const Rows<bf16> rows(shape.rows, shape.columns, 0, random);
  std::vector<bf16> blocked(static_cast<size_t>(shape.elements()));
  to_blocked(shape, rows.begin(), rows.ld, blocked.data());
  for (const int64_t row : {0, 15, 16, 31, 32, 69}) {
    Rows<bf16> one(1, shape.columns, 0);
    from_blocked({1, shape.columns}, blocked.data() + shape.offset(row, 0), one.begin(), one.ld);
    for (int64_t i = 0; i < shape.columns; ++i)
      ASSERT_EQ(one.value(0, i), rows.value(row, i)) << row;
  }
}

}  // namespace
}  // namespace amxt::kernels
