// What ranks tell each other of a step, and what all of them conclude from it alike: scales, loss, norm, and whether it may commit.
#include <fmt/format.h>

#include <cmath>
#include <string>

#include "base/text.h"
#include "train/step.h"

namespace amxt::train {

// Loss weights per micro-batch, and what the metrics count.
template <typename E>
void StepRunner<E>::publish_counts(const Batch& batch) {
  Mailbox& own = box(me());
  own = {};
  own.tokens = batch.tokens;
  own.bad_micro_batch = own.bad_layer = own.bad_tensor = -1;
  own.micro_rows = p_.options->micro_batch * batch.sequence;
  own.micro_batches = micro_batches(batch);
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    double sum = 0;
    if (a < micro_batches(batch)) {
      const model::Rows r = rows(batch, a);
      const float* from = batch.weight.data() + a * p_.options->micro_batch * batch.sequence;
      for (int64_t i = 0; i < r.count(); ++i) {
        sum += from[i];
        own.counted += from[i] != 0;
      }
    }
    weight(me(), a) = sum;
    loss(me(), a) = 0;
  }
}

// d(objective) / d(loss of a row).
template <typename E>
void StepRunner<E>::set_scales(const Batch& batch) {
  const int64_t all = p_.options->accumulate * world();
  double total = 0;
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) total += weight(rank, a);
  }
  for (int64_t a = 0; a < micro_batches(batch); ++a) {
    const bool by_tokens = p_.options->loss_average == LossAverage::kTokens;
    const double divisor = by_tokens ? total : weight(me(), a) * static_cast<double>(all);
    const float factor = divisor > 0 ? static_cast<float>(1.0 / divisor) : 0.0f;
    const int64_t first = a * p_.options->micro_batch * batch.sequence, n = rows(batch, a).count();
    for (int64_t i = 0; i < n; ++i)
      scale_[a * micro_rows() + i] = batch.weight[static_cast<size_t>(first + i)] * factor;
  }
}

template <typename E>
std::optional<Error> StepRunner<E>::nonfinite(const StepInput& step, double norm) const {
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) {
      const Mailbox& said = box(rank);
      if (said.bad_micro_batch != a) continue;
      const std::string where = said.bad_layer < 0 ? "the embedding"
                                : said.bad_layer >= p_.config->layers
                                    ? "the head"
                                    : fmt::format("layer {}", said.bad_layer);
      return Error(Code::kNonfinite, fmt::format("step {}: the loss of rank {}, micro-batch {}, is "
                                                 "not finite; first in the output of {}",
                                                 step.step, rank, a, where))
          .with_rank(rank);
    }
  }
  for (int rank = 0; rank < world(); ++rank) {
    if (box(rank).bad_tensor < 0) continue;
    const std::string& name = p_.layout->specs()[static_cast<size_t>(box(rank).bad_tensor)].name;
    return Error(Code::kNonfinite,
                 fmt::format("step {}: the gradient of {} (rows of rank {}) is not finite",
                             step.step, quote(name), rank))
        .with_rank(rank);
  }
  if (!std::isfinite(norm))
    return Error(Code::kNonfinite,
                 fmt::format("step {}: the norm of the gradient is not finite", step.step));
  return std::nullopt;
}

// What every rank computes from the same shared numbers in the same order.
template <typename E>
Status StepRunner<E>::agree(const StepInput& step, StepResult* result) {
  for (int rank = 1; rank < world(); ++rank) {
    const double first = box(0).learning_rate, other = box(rank).learning_rate;
    if (first == other) continue;
    return Error(Code::kMismatch, fmt::format("ranks disagree on the learning rate: rank 0 has {}, "
                                              "rank {} has {}",
                                              first, rank, other))
        .with_rank(rank);
  }
  double losses = 0, weights = 0, means = 0;
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) {
      losses += loss(rank, a);
      weights += weight(rank, a);
      if (weight(rank, a) > 0) means += loss(rank, a) / weight(rank, a);
    }
  }
  if (p_.options->loss_average == LossAverage::kTokens) {
    result->loss = weights > 0 ? losses / weights : 0;
  } else {
    result->loss = means / static_cast<double>(p_.options->accumulate * world());
  }
  double squares = 0;
  for (int64_t panel = 0; panel < p_.layout->panels(); ++panel) squares += squares_[panel];
  result->grad_norm = std::sqrt(squares);
  result->tokens = result->counted = 0;
  for (int rank = 0; rank < world(); ++rank) {
    result->tokens += box(rank).tokens;
    result->counted += box(rank).counted;
  }
  if (auto error = nonfinite(step, result->grad_norm)) {
    if (p_.options->nonfinite == Nonfinite::kStop) return std::move(*error);
    result->skipped = true;
  }
  return {};
}

#define AMXT_INSTANTIATE(E)                                                               \
  template void StepRunner<E>::publish_counts(const Batch&);                              \
  template void StepRunner<E>::set_scales(const Batch&);                                  \
  template std::optional<Error> StepRunner<E>::nonfinite(const StepInput&, double) const; \
  template Status StepRunner<E>::agree(const StepInput&, StepResult*)

AMXT_INSTANTIATE(float);
AMXT_INSTANTIATE(bf16);

}  // namespace amxt::train
