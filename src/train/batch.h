// Batch: this rank's samples of one step, in the form that the step works on.
#pragma once

#include <cstdint>
#include <vector>

#include "io/dataset.h"

namespace amxt::train {

// `samples` rows of `sequence` positions, accumulation index outermost: sample a * micro_batch + b. Arrays as io::SampleView.
struct Batch {
  int64_t samples = 0;
  int64_t sequence = 0;
  std::vector<int32_t> token, target, document_start, position;
  std::vector<float> weight;
  int64_t tokens = 0;  // positions that are not padding

  void resize(int64_t sample_count, int64_t sequence_length) {
    samples = sample_count;
    sequence = sequence_length;
    const auto n = static_cast<size_t>(sample_count * sequence_length);
    token.resize(n);
    target.resize(n);
    document_start.resize(n);
    position.resize(n);
    weight.resize(n);
    tokens = 0;
  }
  io::SampleView sample(int64_t index) {
    const auto at = static_cast<size_t>(index * sequence), n = static_cast<size_t>(sequence);
    return {std::span(token).subspan(at, n), std::span(target).subspan(at, n),
            std::span(document_start).subspan(at, n), std::span(position).subspan(at, n),
            std::span(weight).subspan(at, n)};
  }
};

}  // namespace amxt::train
