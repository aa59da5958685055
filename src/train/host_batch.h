// HostBatch: samples as a host gives them (labels beside their own tokens), made into a Batch (targets
// beside the tokens that predict them); and log-probabilities on their way back.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "train/batch.h"

namespace amxt::train {

inline constexpr int32_t kIgnoredLabel = -100;

// Arrays of [samples, sequence], row-major; see amxt_batch in include/amxtrain.h.
struct HostBatch {
  int64_t samples = 0;
  int64_t sequence = 0;
  const int32_t* tokens = nullptr;
  const int32_t* labels = nullptr;           // null: the tokens
  const float* weights = nullptr;            // null: 1
  const uint8_t* document_starts = nullptr;  // null: one document a row
  const int32_t* lengths = nullptr;          // [samples]; null: rows are full
};

// A token beyond a row's length becomes a pad: token 0, no target, a document of its own. Errors name
// sample and position; that tokens are in the vocabulary is not checked here.
Result<Batch> make_batch(const HostBatch& host);

// [samples, sequence]: out[s, t] = predicted[s, t - 1] where position t - 1 has a target (so it is the
// label of t), else 0. `out` must not be `predicted`.
void to_label_positions(const Batch& batch, std::span<const float> predicted, std::span<float> out);

}  // namespace amxt::train
