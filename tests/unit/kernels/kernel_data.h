// What the tests of kernels share: seeds, operands in exact-size memory, comparison of bits and of values.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "base/cpu.h"

namespace amxt::kernels {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kTiniest = std::numeric_limits<float>::denorm_min();
inline constexpr float kHuge = std::numeric_limits<float>::max();

// Every instruction set from AVX2 to the best that the machine (and AMXTRAIN_MAX_ISA) allows.
inline std::vector<Isa> isas() {
  const auto cpu = cpu_isa();
  EXPECT_TRUE(cpu.ok());
  std::vector<Isa> all;
  for (int32_t i = 0; i <= static_cast<int32_t>(cpu.value()->chosen); ++i) {
    all.push_back(static_cast<Isa>(i));
  }
  return all;
}

// Another seed at each run, printed when the test fails; AMXTRAIN_TEST_SEED repeats one.
inline uint64_t fresh_seed() {
  const char* given = std::getenv("AMXTRAIN_TEST_SEED");
  return given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
}

struct Random {
  explicit Random(uint64_t s) : seed(s), engine(s) {}
  std::string name() const { return "AMXTRAIN_TEST_SEED=" + std::to_string(seed); }
  float normal(float scale = 1) { return std::normal_distribution<float>(0, scale)(engine); }
  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  }
  // Vectors have exactly the size asked for, so that AddressSanitizer sees one element too many.
  template <typename E>
  std::vector<E> normals(int64_t count, float scale = 1) {
    std::vector<E> values(static_cast<size_t>(count));
    for (E& value : values) value = from_float<E>(normal(scale));
    return values;
  }
  uint64_t seed;
  std::mt19937_64 engine;
};

// Rows of `dim` with `gap` elements between them that no kernel may touch.
template <typename E>
struct Rows {
  Rows(int64_t row_count, int64_t row_dim, int64_t gap)
      : rows(row_count),
        dim(row_dim),
        ld(row_dim + gap),
        data(static_cast<size_t>(row_count == 0 ? 0 : (row_count - 1) * ld + row_dim),
             from_float<E>(kUntouched)) {}
  Rows(int64_t row_count, int64_t row_dim, int64_t gap, Random& random, float scale = 1)
      : Rows(row_count, row_dim, gap) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < dim; ++i) at(r, i) = from_float<E>(random.normal(scale));
    }
  }
  E& at(int64_t r, int64_t i) { return data[static_cast<size_t>(r * ld + i)]; }
  float value(int64_t r, int64_t i) const {
    return to_float(data[static_cast<size_t>(r * ld + i)]);
  }
  bool gaps_untouched() const {
    for (int64_t r = 0; r + 1 < rows; ++r) {
      for (int64_t i = dim; i < ld; ++i) {
        if (value(r, i) != to_float(from_float<E>(kUntouched))) return false;
      }
    }
    return true;
  }
  E* begin() { return data.data(); }
  const E* begin() const { return data.data(); }

  static constexpr float kUntouched = 77777;
  int64_t rows, dim, ld;
  std::vector<E> data;
};

// Scratch of exactly `bytes`, 64-byte aligned, filled with NaN: what is read before it was written shows.
class Aligned {
 public:
  explicit Aligned(int64_t bytes)
      : data_(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})) {
    std::memset(data_, 0xFF, static_cast<size_t>(bytes));
  }
  ~Aligned() { ::operator delete(data_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

template <typename E>
bool same_bits(const std::vector<E>& a, const std::vector<E>& b) {
  return a.size() == b.size() &&
         (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(E)));
}

// What a few roundings in fp32 and one to E allow: near a tie two values that differ in fp32 alone differ by one unit of bf16.
template <typename E>
inline constexpr float kRounding = sizeof(E) == 2 ? 0x1p-7f : 2e-6f;

// Equal as numbers, NaN to NaN and infinity to infinity, or within relative * |expected| + absolute.
inline ::testing::AssertionResult near_enough(float actual, float expected, float relative,
                                              float absolute) {
  if (std::isnan(expected) ? std::isnan(actual) : actual == expected) {
    return ::testing::AssertionSuccess();
  }
  if (std::isfinite(expected) &&
      std::fabs(actual - expected) <= relative * std::fabs(expected) + absolute) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "got " << actual << " (" << std::hexfloat << actual
                                       << "), expected " << std::defaultfloat << expected;
}

template <typename E>
void expect_near(const Rows<E>& actual, const Rows<E>& expected, float relative, float absolute,
                 const std::string& what) {
  EXPECT_TRUE(actual.gaps_untouched()) << what << ": wrote between rows";
  for (int64_t r = 0; r < expected.rows; ++r) {
    for (int64_t i = 0; i < expected.dim; ++i) {
      ASSERT_TRUE(near_enough(actual.value(r, i), expected.value(r, i), relative, absolute))
          << what << " at row " << r << ", element " << i;
    }
  }
}

template <typename E>
void expect_near(const std::vector<E>& actual, const std::vector<E>& expected, float relative,
                 float absolute, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(near_enough(to_float(actual[i]), to_float(expected[i]), relative, absolute))
        << what << " at element " << i;
  }
}

// Sizes on both sides of one vector, of four, and of a real hidden size.
inline const std::vector<int64_t>& odd_sizes() {
  static const std::vector<int64_t> sizes = {1,  2,  3,  7,  15, 16,  17,  31,  32,
                                             33, 47, 63, 64, 65, 100, 127, 129, 960};
  return sizes;
}

}  // namespace amxt::kernels
