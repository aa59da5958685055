// The expected values are those of transformers 5.23 with torch 2.15 on a CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/config.h"

namespace amxt::model {
namespace {

ModelConfig with(Rope rope, int64_t head_dim = 32) {
  ModelConfig config;
  config.head_dim = head_dim;
  config.rope = rope;
  return config;
}

// Powers of other libraries may differ in the last bit.
void expect_close(const std::vector<float>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], expected[i] * std::numeric_limits<float>::epsilon())
        << "frequency " << i;
  }
}

const Rope kLlama3{RopeType::kLlama3, 500000, 32, 1, 4, 8192};

TEST(RopeFrequencies, Default) {
  expect_close(rope_inverse_frequencies(with({})),
               {0x1p+0, 0x1.1feb34p-1, 0x1.43d136p-2, 0x1.6c310ep-3, 0x1.99999ap-4, 0x1.ccab84p-5,
                0x1.030dc6p-5, 0x1.235a72p-6, 0x1.47ae14p-7, 0x1.708938p-8, 0x1.9e7c70p-9,
                0x1.d22a50p-10, 0x1.0624dep-10, 0x1.26d42cp-11, 0x1.4b96c0p-12, 0x1.74eea6p-13});
}

TEST(RopeFrequencies, HeadDimensionThatIsNoPowerOfTwo) {
  expect_close(rope_inverse_frequencies(with({RopeType::kDefault, 1000000}, 24)),
               {0x1p+0, 0x1.43d136p-2, 0x1.999998p-4, 0x1.030dc6p-5, 0x1.47ae12p-7, 0x1.9e7c72p-9,
                0x1.0624dep-10, 0x1.4b96c4p-12, 0x1.a36e26p-14, 0x1.094564p-15, 0x1.4f8b60p-17,
                0x1.a86f02p-19});
}

TEST(RopeFrequencies, Linear) {
  expect_close(
      rope_inverse_frequencies(with({RopeType::kLinear, 10000, 3})),
      {0x1.555556p-2, 0x1.7fe446p-3, 0x1.afc19ep-4, 0x1.e596bep-5, 0x1.111112p-5, 0x1.331d02p-6,
       0x1.5967b2p-7, 0x1.847898p-8, 0x1.b4e81ap-9, 0x1.eb61a0p-10, 0x1.1452f6p-10, 0x1.36c6e0p-11,
       0x1.5d867ep-12, 0x1.891ae6p-13, 0x1.ba1e56p-14, 0x1.f13e32p-15});
}

// Kept up to the seventh, interpolated in the eighth and ninth, divided by 32 behind them.
TEST(RopeFrequencies, Llama3CrossesItsThreeBranches) {
  expect_close(rope_inverse_frequencies(with(kLlama3)),
               {0x1p+0, 0x1.c2ef78p-2, 0x1.8d2760p-3, 0x1.5dc95ap-4, 0x1.341190p-5, 0x1.0f5386p-6,
                0x1.ddee9ep-8, 0x1.a4ee40p-9, 0x1.c26c40p-12, 0x1.46831ap-16, 0x1.1f91f0p-17,
                0x1.fa8b86p-19, 0x1.be2188p-20, 0x1.88ec20p-21, 0x1.5a0f4ep-22, 0x1.30c94ep-23});
}

TEST(RopeTables, CosineAndSineOfPositionTimesFrequency) {
  std::vector<float> cosine(78 * 16), sine(78 * 16);
  rope_tables(with({}), 78, cosine.data(), sine.data());
  EXPECT_EQ(cosine[5], 1.0f);
  EXPECT_EQ(sine[5], 0.0f);
  EXPECT_NEAR(cosine[16], 0x1.14a282p-1, 1e-7);
  EXPECT_NEAR(sine[16], 0x1.aed548p-1, 1e-7);
  EXPECT_NEAR(cosine[77 * 16], -0x1.fb7eb4p-6, 1e-7);
  EXPECT_NEAR(cosine[77 * 16 + 1], 0x1.8d77aep-1, 3e-6)
      << "within the last bit of the frequency, 77 times";
  EXPECT_NEAR(sine[77 * 16 + 2], -0x1.693e5ap-1, 3e-6);
}

TEST(RopeTables, FarPositionsAreRoundedAsFloat32) {
  const int64_t positions = 100'001;
  std::vector<float> cosine(positions * 16), sine(positions * 16);
  rope_tables(with(kLlama3), positions, cosine.data(), sine.data());
  EXPECT_NEAR(cosine[(positions - 1) * 16], -0x1.ffac38p-1, 1e-6);
  EXPECT_NEAR(sine[(positions - 1) * 16], 0x1.24daaap-5, 1e-6);
}

}  // namespace
}  // namespace amxt::model
