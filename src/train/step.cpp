#include "train/step.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

namespace amxt::train {
namespace {

// How long a rank whose wire broke waits for word of why.
constexpr int64_t kLastWordsNs = 1'000'000'000;

}  // namespace

template <typename E>
Status StepRunner<E>::check_batch(const Batch& batch, bool whole) const {
  const int64_t most = p_.options->micro_batch * p_.options->accumulate;
  if (whole ? batch.samples != most : batch.samples > most) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("the batch has {} samples; a step takes {}{} (micro-batch {} x accumulate {})",
                    batch.samples, whole ? "" : "at most ", most, p_.options->micro_batch,
                    p_.options->accumulate));
  }
  if (batch.sequence < (batch.samples > 0 ? 1 : 0) ||
      batch.sequence > p_.options->sequence_length) {
    return Error(Code::kInvalidArgument,
                 fmt::format("the batch has rows of {} positions; the trainer takes 1 to {}",
                             batch.sequence, p_.options->sequence_length));
  }
  return {};
}

template <typename E>
Status StepRunner<E>::phase_one(const Batch& batch, const StepInput& input) {
  publish_counts(batch);
  box(me()).learning_rate = input.learning_rate;
  if (has_nodes()) AMXT_TRY(exchange_boxes());
  AMXT_TRY(control_->barrier());
  set_scales(batch);
  const int64_t wave = p_.plan->wave, accumulate = p_.options->accumulate;
  for (int64_t first = 0; first < accumulate; first += wave) {
    const int64_t count = std::min(wave, accumulate - first);
    if (has_nodes()) AMXT_TRY(begin_wave(batch, first, count, true));
    AMXT_TRY(forward_layers(batch, first, count, true));
    AMXT_TRY(head_forward(batch, first, count));
    AMXT_TRY(head_backward(batch, first, count, first == 0));
    AMXT_TRY(layers_backward(batch, first, count, first == 0));
    const int64_t wave_elements = count * micro_rows() * p_.config->hidden_size;
    if (defers_embedding()) {
      std::memcpy(deferred_ + first * micro_rows() * p_.config->hidden_size, gradient_,
                  static_cast<size_t>(wave_elements) * sizeof(E));
    } else {
      AMXT_TRY(embedding_backward(batch, first, count, first == 0, gradient_));
    }
  }
  for (int64_t first = 0; defers_embedding() && first < accumulate; first += wave) {
    AMXT_TRY(embedding_backward(batch, first, std::min(wave, accumulate - first), false,
                                deferred_ + first * micro_rows() * p_.config->hidden_size));
  }
  {
    const Span span = p_.span("wait for readers");
    AMXT_TRY(p_.parameters->drain([this] { return poll(); }));
  }
  {
    const Span span = p_.span("norm of gradients", 0, p_.parameters->gradient_bytes());
    box(me()).bad_tensor = p_.parameters->gradient_squares(*p_.pool, p_.isa, squares_);
  }
  if (has_nodes()) {
    AMXT_TRY(exchange_boxes());
    AMXT_TRY(exchange_squares());
  }
  return barrier();
}

template <typename E>
Status StepRunner<E>::barrier() {
  const Span span = p_.span("wait for ranks");
  return control_->barrier();
}

template <typename E>
Result<const E*> StepRunner<E>::acquire(int64_t deal) {
  const Span span = p_.span("wait for weights");
  return p_.parameters->acquire(deal, [this] { return poll(); });
}

// A wire is lost when a peer gives it up because the attempt has ended: word of that is on its way. Else the wire alone is broken, and the
// ranks that do not use it now must learn of it.
template <typename E>
Status StepRunner<E>::why_lost(const Error& error) {
  const Deadline grace = Deadline::after(kLastWordsNs);
  while (has_nodes() && !grace.passed()) {
    AMXT_TRY(poll());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (p_.group->check().ok()) p_.group->abort(error.message());
  return p_.group->check();
}

// An error of this rank ends the attempt for all; whoever is first names the cause.
template <typename E>
Error StepRunner<E>::leave(Error error) {
  Status ended = is_fatal(error) ? why_lost(error) : control_->cancel(error);
  give_up_wire();
  return ended ? std::move(error) : std::move(ended).error();
}

template <typename E>
Result<StepResult> StepRunner<E>::step(const Batch& batch, const StepInput& input,
                                       const StepControl::Limits& limits) {
  const int64_t began = monotonic_ns();
  StepResult result;
  AMXT_TRY(begin_call(limits));
  const store::Traffic::Uses before = wire_uses();
  if (input.refused) return leave(*input.refused);
  if (Status ok = check_batch(batch, true); !ok) return leave(std::move(ok).error());
  if (Status ok = phase_one(batch, input); !ok) return leave(std::move(ok).error());
  // Every rank comes to the same verdict from the same numbers: no rank needs to be told.
  if (Status ok = agree(input, &result); !ok) {
    AMXT_TRY(end_call());
    return std::move(ok).error();
  }
  if (!input.commit) {
    AMXT_TRY(end_call());
    result.seconds = static_cast<double>(monotonic_ns() - began) * 1e-9;
    return result;
  }
  if (Status ok = control_->commit(); !ok) {
    give_up_wire();
    return std::move(ok).error();
  }
  if (!result.skipped) {
    kernels::AdamwStep adamw;
    adamw.learning_rate = input.learning_rate;
    adamw.beta1 = p_.options->beta1;
    adamw.beta2 = p_.options->beta2;
    adamw.epsilon = p_.options->epsilon;
    adamw.weight_decay = p_.options->weight_decay;
    adamw.bias_correction1 = 1 - std::pow(p_.options->beta1, static_cast<double>(input.update));
    adamw.bias_correction2 = 1 - std::pow(p_.options->beta2, static_cast<double>(input.update));
    if (p_.options->clip > 0)
      adamw.gradient_scale =
          static_cast<float>(std::min(1.0, p_.options->clip / (result.grad_norm + 1e-6)));
    const Span span = p_.span("optimizer", 0, p_.parameters->update_bytes());
    p_.parameters->update(
        *p_.pool, p_.isa, adamw,
        p_.options->decay == DecayScope::kAll ? store::Decay::kAll : store::Decay::kMatrices);
  }
  Mailbox& own = box(me());
  own.memory = process_memory();
  own.wire = wire_since(before);
  own.seconds = static_cast<double>(monotonic_ns() - began) * 1e-9;
  Status finished = has_nodes() ? exchange_boxes() : Status();
  if (finished) finished = control_->finish();
  if (!finished) {
    failed_after_commit_ = true;
    return std::move(finished).error();
  }
  for (int rank = 0; rank < world(); ++rank) {
    const Mailbox& said = box(rank);
    result.seconds = std::max(result.seconds, said.seconds);
    result.pss_bytes += said.memory.pss_bytes;
    result.private_bytes += said.memory.private_bytes;
    result.peak_rss_bytes = std::max(result.peak_rss_bytes, said.memory.peak_rss_bytes);
    add_wire(said.wire, &result);
  }
  return result;
}

template <typename E>
auto StepRunner<E>::evaluate(const Batch& batch, float* log_probabilities,
                             const StepControl::Limits& limits, const std::optional<Error>& refused)
    -> Result<Evaluation> {
  AMXT_TRY(begin_call(limits));
  if (refused) return leave(*refused);
  const auto compute = [&]() -> Status {
    AMXT_TRY(check_batch(batch, false));
    publish_counts(batch);
    int64_t all = micro_batches(batch);
    if (has_nodes()) {
      // A rank with less to do still brings what others need.
      AMXT_TRY(exchange_boxes());
      AMXT_TRY(control_->barrier());
      for (int rank = 0; rank < world(); ++rank) all = std::max(all, box(rank).micro_batches);
    }
    const int64_t wave = p_.plan->wave;
    for (int64_t first = 0; first < all; first += wave) {
      const int64_t count = std::clamp<int64_t>(micro_batches(batch) - first, 0, wave);
      if (has_nodes()) AMXT_TRY(begin_wave(batch, first, count, false));
      AMXT_TRY(forward_layers(batch, first, count, false));
      AMXT_TRY(head_forward(batch, first, count));
      for (int64_t i = 0; log_probabilities != nullptr && i < count; ++i) {
        const model::LossRows of = loss_rows(batch, first + i, i);
        const int64_t at = (first + i) * p_.options->micro_batch * batch.sequence,
                      n = rows(batch, first + i).count();
        for (int64_t row = 0; row < n; ++row) {
          log_probabilities[at + row] =
              of.target[row] >= 0 ? of.target_logit[row] - of.lse[row] : 0.0f;
        }
      }
    }
    AMXT_TRY(p_.parameters->drain([this] { return poll(); }));
    if (has_nodes()) AMXT_TRY(exchange_boxes());
    return control_->barrier();
  };
  if (Status ok = compute(); !ok) return leave(std::move(ok).error());
  AMXT_TRY(end_call());
  Evaluation evaluation;
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) {
      evaluation.loss_sum += loss(rank, a);
      evaluation.weight_sum += weight(rank, a);
    }
  }
  for (int rank = 0; rank < world(); ++rank) evaluation.tokens += box(rank).counted;
  return evaluation;
}

template <typename E>
auto StepRunner<E>::exchange_memory(const StepControl::Limits& limits)
    -> Result<std::vector<ProcessMemory>> {
  AMXT_TRY(begin_call(limits));
  box(me()).memory = process_memory();
  Status met = has_nodes() ? exchange_boxes() : Status();
  if (met) met = control_->barrier();
  if (!met) return leave(std::move(met).error());
  AMXT_TRY(end_call());
  std::vector<ProcessMemory> all;
  for (int rank = 0; rank < world(); ++rank) all.push_back(box(rank).memory);
  return all;
}

template class StepRunner<float>;
template class StepRunner<bf16>;

}  // namespace amxt::train
