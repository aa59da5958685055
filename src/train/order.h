// Order: which sample is the k-th of step s. A seeded permutation per epoch, back to back, independent of the world size and without
// memory: a Feistel network over [0, samples) keyed by (seed, epoch), walked until it lands inside.
#pragma once

#include <cstdint>

namespace amxt::train {

class SampleOrder {
 public:
  SampleOrder(int64_t samples, uint64_t seed) : samples_(samples), seed_(seed) {}
  // order[index], index >= 0 counted from the first step of the job; a step may span two epochs.
  int64_t sample(int64_t index) const;
  int64_t epoch(int64_t index) const { return index / samples_; }

 private:
  int64_t samples_;
  uint64_t seed_;
};

}  // namespace amxt::train
