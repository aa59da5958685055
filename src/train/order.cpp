#include "train/order.h"

#include <cassert>

namespace amxt::train {
namespace {

constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;
constexpr int kRounds = 8;

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Bits of half a block: the block is at most four times as large as the samples, so a walk takes
// four permutations on average at most.
int half_bits(uint64_t samples) {
  int h = 1;
  while (h < 31 && (uint64_t{1} << (2 * h)) < samples) ++h;
  if ((uint64_t{1} << (2 * h)) < samples) h = 32;
  return h;
}

uint64_t permute(uint64_t x, uint64_t key, int h) {
  const uint64_t mask = (uint64_t{1} << h) - 1;
  uint64_t left = x >> h;
  uint64_t right = x & mask;
  for (int r = 0; r < kRounds; ++r) {
    const uint64_t round = mix(key + kGamma * static_cast<uint64_t>(r + 1) + right) & mask;
    const uint64_t next = left ^ round;
    left = right;
    right = next;
  }
  return (left << h) | right;
}

}  // namespace

int64_t SampleOrder::sample(int64_t index) const {
  assert(samples_ >= 1 && index >= 0);
  const auto samples = static_cast<uint64_t>(samples_);
  const auto at = static_cast<uint64_t>(index);
  const int h = half_bits(samples);
  const uint64_t key = mix(mix(seed_ + kGamma) + kGamma * (at / samples + 1));
  uint64_t x = at % samples;
  do {
    x = permute(x, key, h);
  } while (x >= samples);
  return static_cast<int64_t>(x);
}

}  // namespace amxt::train
