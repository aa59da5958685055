#include "train/host_batch.h"

#include <fmt/format.h>

#include <cmath>

namespace amxt::train {

namespace {

Error at(int64_t sample, int64_t position, const std::string& what) {
  return Error(Code::kInvalidArgument,
               fmt::format("batch: sample {}, position {}: {}", sample, position, what));
}

Status check_shape(const HostBatch& host) {
  if (host.samples < 1 || host.sequence < 1) {
    return Error(Code::kInvalidArgument,
                 fmt::format("batch: {} samples of {} positions", host.samples, host.sequence));
  }
  if (host.samples > (int64_t{1} << 40) / host.sequence) {
    return Error(Code::kInvalidArgument,
                 fmt::format("batch: {} samples of {} positions are more than fit", host.samples,
                             host.sequence));
  }
  if (host.tokens == nullptr) return Error(Code::kInvalidArgument, "batch: tokens is NULL");
  return {};
}

// The target that position t has: the label of t + 1, with its weight.
Status fill_target(const HostBatch& host, int64_t sample, int64_t t, int32_t* target,
                   float* weight) {
  const int64_t next = sample * host.sequence + t + 1;
  const int32_t label = host.labels != nullptr ? host.labels[next] : host.tokens[next];
  if (label == kIgnoredLabel) return {};
  if (label < 0)
    return at(sample, t + 1, fmt::format("label {} is neither a token nor -100", label));
  const float given = host.weights != nullptr ? host.weights[next] : 1.0f;
  if (!std::isfinite(given) || given < 0) {
    return at(sample, t + 1, fmt::format("weight {} is not a number of 0 or more", given));
  }
  *target = label;
  *weight = given;
  return {};
}

Status fill_row(const HostBatch& host, int64_t sample, Batch* batch) {
  const int64_t length = host.lengths != nullptr ? host.lengths[sample] : host.sequence;
  if (length < 0 || length > host.sequence) {
    return Error(Code::kInvalidArgument, fmt::format("batch: sample {}: length {} of {} positions",
                                                     sample, length, host.sequence));
  }
  const io::SampleView row = batch->sample(sample);
  const auto starts = [&](int64_t t) {
    return t == 0 || (host.document_starts != nullptr &&
                      host.document_starts[sample * host.sequence + t] != 0);
  };
  int64_t start = 0;
  for (int64_t t = 0; t < host.sequence; ++t) {
    const auto i = static_cast<size_t>(t);
    if (t >= length || starts(t)) start = t;
    row.token[i] = t < length ? host.tokens[sample * host.sequence + t] : 0;
    row.target[i] = io::kNoTarget;
    row.weight[i] = 0;
    row.document_start[i] = static_cast<int32_t>(start);
    row.position[i] = static_cast<int32_t>(t - start);
    if (t + 1 < length && !starts(t + 1)) {
      AMXT_TRY(fill_target(host, sample, t, &row.target[i], &row.weight[i]));
    }
  }
  batch->tokens += length;
  return {};
}

}  // namespace

Result<Batch> make_batch(const HostBatch& host) {
  AMXT_TRY(check_shape(host));
  Batch batch;
  batch.resize(host.samples, host.sequence);
  for (int64_t sample = 0; sample < host.samples; ++sample)
    AMXT_TRY(fill_row(host, sample, &batch));
  return batch;
}

void to_label_positions(const Batch& batch, std::span<const float> predicted,
                        std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const bool has_label =
        static_cast<int64_t>(i) % batch.sequence != 0 && batch.target[i - 1] != io::kNoTarget;
    out[i] = has_label ? predicted[i - 1] : 0;
  }
}

}  // namespace amxt::train
