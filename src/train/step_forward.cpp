// A wave of micro-batches through the layers and the head to the loss.
#include <algorithm>
#include <cmath>

#include "train/step.h"

namespace amxt::train {

template <typename E>
void StepRunner<E>::embed(const Batch& batch, int64_t first, int64_t count) {
  int64_t done = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    if (has_nodes()) {
      head_->embed(n, places_.data() + done, embedding_, false, input(0, i));
    } else {
      const int32_t* token =
          batch.token.data() + (first + i) * p_.options->micro_batch * batch.sequence;
      const int64_t embedding = p_.layout->embedding();
      head_->embed(n, token, p_.parameters->tensor(embedding), p_.layout->is_blocked(embedding),
                   input(0, i));
    }
    done += n;
  }
}

template <typename E>
Status StepRunner<E>::forward_layers(const Batch& batch, int64_t first, int64_t count, bool keep) {
  embed(batch, first, count);
  for (int64_t layer = 0; layer < p_.config->layers; ++layer) {
    AMXT_TRY(poll());
    const int64_t deal = p_.layout->layer_deal(layer);
    AMXT_ASSIGN(const E* const there, acquire(deal));
    const model::LayerWeights<E> weights = p_.parameters->layer_weights(layer, there);
    for (int64_t i = 0; i < count; ++i) {
      const model::Rows r = rows(batch, first + i);
      const model::Kept<E> kept_here = keep ? kept(layer, i, r.count()) : model::Kept<E>{};
      AMXT_TRY(decoder_->forward(weights, r, input(layer, i), input(layer + 1, i), kept_here));
    }
    p_.parameters->release(deal);
  }
  AMXT_ASSIGN(const E* const norm, acquire(p_.layout->norm_deal()));
  std::copy_n(norm, p_.config->hidden_size, norm_);
  p_.parameters->release(p_.layout->norm_deal());
  return {};
}

template <typename E>
Status StepRunner<E>::head_forward(const Batch& batch, int64_t first, int64_t count) {
  const int64_t V = p_.config->vocab_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    head_->normalise(n, input(p_.config->layers, i), norm_, slot(local_me(), i));
    head_->begin(n, loss_rows(batch, first + i, i));
  }
  for (int64_t block = 0; block * model::kVocabularyBlock < V; ++block) {
    AMXT_TRY(poll());
    const int64_t row = block * model::kVocabularyBlock, deal = p_.layout->head_deal(block);
    AMXT_ASSIGN(const E* const head, acquire(deal));
    for (int64_t i = 0; i < count; ++i) {
      AMXT_TRY(head_->forward_block(rows(batch, first + i).count(), slot(local_me(), i), head, row,
                                    std::min(model::kVocabularyBlock, V - row),
                                    loss_rows(batch, first + i, i)));
    }
    p_.parameters->release(deal);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t a = first + i, n = rows(batch, a).count();
    const model::LossRows of = loss_rows(batch, a, i);
    head_->finish(n, of);
    const float* counts = batch.weight.data() + a * p_.options->micro_batch * batch.sequence;
    double sum = 0;
    for (int64_t row = 0; row < n; ++row) {
      if (counts[row] != 0)
        sum += static_cast<double>(counts[row]) *
               (static_cast<double>(of.lse[row]) - static_cast<double>(of.target_logit[row]));
    }
    loss(me(), a) = sum;
    Mailbox& own = box(me());
    if (!std::isfinite(sum) && own.bad_micro_batch < 0) {
      own.bad_micro_batch = a;
      own.bad_layer = find_bad_layer(i);
    }
  }
  return {};
}

// The first layer whose output is not finite, `layers` when all are (then the head made it), for a message only.
template <typename E>
int64_t StepRunner<E>::find_bad_layer(int64_t index) const {
  const int64_t n = micro_rows() * p_.config->hidden_size;
  for (int64_t layer = 0; layer <= p_.config->layers; ++layer) {
    const E* x = input(layer, index);
    for (int64_t i = 0; i < n; ++i) {
      if (!std::isfinite(to_float(x[i]))) return layer - 1;
    }
  }
  return p_.config->layers;
}

#define AMXT_INSTANTIATE(E)                                                            \
  template Status StepRunner<E>::forward_layers(const Batch&, int64_t, int64_t, bool); \
  template Status StepRunner<E>::head_forward(const Batch&, int64_t, int64_t);         \
  template void StepRunner<E>::embed(const Batch&, int64_t, int64_t);                  \
  template int64_t StepRunner<E>::find_bad_layer(int64_t) const

AMXT_INSTANTIATE(float);
AMXT_INSTANTIATE(bf16);

}  // namespace amxt::train
