// Order: which sample is the k-th of step s. A seeded permutation per epoch, back to back,
// independent of the world size and without memory: a Feistel network over [0, samples) keyed by
// (seed, epoch), walked until it lands inside.
//
// The order is part of a checkpoint's state, so the algorithm is stable; another one needs another
// name. All arithmetic is modulo 2^64:
//
//     mix(z)   = z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB;
//                z ^ (z >> 31)                                   (splitmix64's output function)
//     gamma    = 0x9E3779B97F4A7C15
//     h        = the smallest h >= 1 with 4^h >= samples         (bits of half a block)
//     key      = mix(mix(seed + gamma) + gamma * (epoch + 1))
//     F(r, v)  = mix(key + gamma * (r + 1) + v) mod 2^h
//     P(x)     : left = x >> h, right = x mod 2^h; for r = 0 to 7: (left, right) = (right, left ^
//                F(r, right)); P(x) = left << h | right
//     order[i] : epoch = i / samples, x = i mod samples; x = P(x) until x < samples (at least once)
#pragma once

#include <cstdint>

namespace amxt::train {

// Name of the algorithm above, in checkpoints.
inline constexpr const char* kOrderName = "feistel-1";

class SampleOrder {
 public:
  // samples >= 1.
  SampleOrder(int64_t samples, uint64_t seed) : samples_(samples), seed_(seed) {}
  // order[index], index >= 0 counted from the first step of the job; a step may span two epochs.
  int64_t sample(int64_t index) const;
  int64_t epoch(int64_t index) const { return index / samples_; }

 private:
  int64_t samples_;
  uint64_t seed_;
};

}  // namespace amxt::train
