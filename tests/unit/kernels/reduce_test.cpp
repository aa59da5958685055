#include "kernels/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/bf16.h"

namespace amxt::kernels {
namespace {

float one_by_one(const std::vector<float>& of, ReduceOp op) {
  float result = of[0];
  for (size_t i = 1; i < of.size(); ++i) {
    switch (op) {
      case ReduceOp::kMax:
        result = std::isnan(result) || std::isnan(of[i]) ? NAN : std::max(result, of[i]);
        break;
      case ReduceOp::kMin:
        result = std::isnan(result) || std::isnan(of[i]) ? NAN : std::min(result, of[i]);
        break;
      default:
        result += of[i];
    }
  }
  return op == ReduceOp::kAvg ? result / static_cast<float>(of.size()) : result;
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Every length around the block, every operation, both kinds of stores, aligned or not; the neighbours of the result stay.
TEST(Reduce, EqualsAnElementAtATime) {
  const uint64_t seed = 20240611;
  std::mt19937_64 random(seed);
  const float special[] = {NAN, INFINITY, -INFINITY, 0.f, -0.f, 1e-40f, 3e38f};
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kAvg}) {
    for (const int sources : {1, 2, 5}) {
      for (const size_t count : {0, 1, 7, 31, 32, 33, 100}) {
        for (const size_t offset : {0, 1, 4}) {
          for (const bool around : {false, true}) {
            std::vector<std::vector<float>> f32(static_cast<size_t>(sources));
            std::vector<std::vector<bf16>> b16(static_cast<size_t>(sources));
            std::vector<const void*> from_f32, from_b16;
            for (int s = 0; s < sources; ++s) {
              auto& wide = f32[static_cast<size_t>(s)];
              auto& half = b16[static_cast<size_t>(s)];
              for (size_t i = 0; i < count; ++i) {
                const float value = random() % 16 == 0
                                        ? special[random() % std::size(special)]
                                        : std::ldexp(static_cast<float>(random() % 4096) - 2048,
                                                     static_cast<int>(random() % 20) - 10);
                wide.push_back(value);
                half.push_back(to_bf16(value));
              }
              from_f32.push_back(wide.data());
              from_b16.push_back(half.data());
            }
            std::vector<float> wide(count + 16, 7.f);
            std::vector<bf16> half(count + 16, to_bf16(7.f));
            const auto n = static_cast<int64_t>(count);
            reduce(DType::kF32, op, from_f32.data(), sources, sources, n, wide.data() + offset,
                   around);
            reduce(DType::kBF16, op, from_b16.data(), sources, sources, n, half.data() + offset,
                   around);
            stream_fence();
            for (size_t i = 0; i < count; ++i) {
              std::vector<float> w, h;
              for (int s = 0; s < sources; ++s) {
                w.push_back(f32[static_cast<size_t>(s)][i]);
                h.push_back(to_float(b16[static_cast<size_t>(s)][i]));
              }
              ASSERT_TRUE(same(wide[offset + i], one_by_one(w, op)))
                  << "seed " << seed << ", " << i << " of " << count;
              ASSERT_TRUE(same(to_float(half[offset + i]), to_float(to_bf16(one_by_one(h, op)))))
                  << "seed " << seed << ", " << i << " of " << count;
            }
            for (size_t i = 0; i < wide.size(); ++i) {
              if (i >= offset && i < offset + count) continue;
              ASSERT_EQ(wide[i], 7.f);
              ASSERT_EQ(to_float(half[i]), 7.f);
            }
          }
        }
      }
    }
  }
}

TEST(Reduce, MayWriteOverASource) {
  std::vector<float> a(77, 1.f), b(77, 2.f);
  const void* from[] = {a.data(), b.data()};
  reduce(DType::kF32, ReduceOp::kSum, from, 2, 2, 77, b.data());
  for (const float value : b) EXPECT_EQ(value, 3.f);
}

TEST(Reduce, SumsOfIntegersWrapAround) {
  const int32_t a = INT32_MAX, one = 1;
  const uint8_t big = 250, small = 10;
  int32_t sum = 0;
  uint8_t byte = 0;
  const void* wide[] = {&a, &one};
  const void* narrow[] = {&big, &small};
  reduce(DType::kI32, ReduceOp::kSum, wide, 2, 2, 1, &sum);
  reduce(DType::kU8, ReduceOp::kSum, narrow, 2, 2, 1, &byte);
  EXPECT_EQ(sum, INT32_MIN);
  EXPECT_EQ(byte, 4);
}

TEST(StreamCopy, CopiesAnyLengthToAnyPlace) {
  std::vector<uint8_t> from(400);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>(i * 7);
  for (const size_t offset : {0, 1, 15, 16}) {
    for (const size_t count : {0, 1, 15, 63, 64, 65, 300}) {
      std::vector<uint8_t> to(400, 0xEE);
      stream_copy(to.data() + offset, from.data() + 3, static_cast<int64_t>(count));
      stream_fence();
      for (size_t i = 0; i < to.size(); ++i) {
        const bool inside = i >= offset && i < offset + count;
        ASSERT_EQ(to[i], inside ? from[3 + i - offset] : 0xEE) << offset << " " << count;
      }
    }
  }
}

}  // namespace
}  // namespace amxt::kernels
