// The gradient of the embedding: each owner adds the rows of the tokens that have its words.
#include <algorithm>
#include <cstring>

#include "kernels/rows.h"
#include "train/step.h"

namespace amxt::train {

// Counts places over the node's micro-batches of the wave, in order of k: the row of the embedding's gradient at one.
template <typename E>
const E* StepRunner<E>::source_of(uint64_t place, int64_t count) const {
  auto left = static_cast<int64_t>(place);
  for (int64_t i = 0; i < count; ++i) {
    for (int rank = 0; rank < ranks(); ++rank) {
      const int64_t n = local_box(rank).micro_rows;
      if (left < n) return slot(rank, i) + left * p_.config->hidden_size;
      left -= n;
    }
  }
  return nullptr;
}

// The tokens of the wave, of all ranks: those of the node, and of every other node.
template <typename E>
Status StepRunner<E>::gather_tokens(const Batch& batch, int64_t first, int64_t count) {
  int32_t* to = tokens_of(me());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    to = std::copy_n(batch.token.data() + (first + i) * p_.options->micro_batch * batch.sequence, n,
                     to);
  }
  token_count(me()) = static_cast<int32_t>(to - tokens_of(me()));
  if (has_nodes()) AMXT_TRY(exchange_tokens());
  AMXT_TRY(control_->barrier());
  if (has_nodes()) find_needed();
  return {};
}

template <typename E>
void StepRunner<E>::find_embedding_rows(int64_t count, int64_t row_begin, int64_t row_end) {
  embedding_rows_.clear();
  uint64_t place = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int rank = 0; rank < ranks(); ++rank) {
      const int64_t n = local_box(rank).micro_rows;
      const int32_t* token = tokens_of(rank_of(rank)) + i * n;
      for (int64_t t = 0; t < n; ++t, ++place) {
        if (token[t] >= row_begin && token[t] < row_end)
          embedding_rows_.push_back(static_cast<uint64_t>(token[t]) << 32 | place);
      }
    }
  }
  std::sort(embedding_rows_.begin(), embedding_rows_.end());
}

template <typename E>
void StepRunner<E>::clear_gradient(const store::OwnedRange& range) {
  const int64_t elements = p_.layout->stored_elements(range);
  if (p_.parameters->gradients_are_bf16()) {
    std::fill_n(p_.parameters->gradient_bf16(range), elements, bf16{0});
  } else {
    std::fill_n(p_.parameters->gradient_float(range), elements, 0.0f);
  }
}

// Each rank adds, in order of k and position, the gradients of the tokens whose embedding rows it owns.
template <typename E>
Status StepRunner<E>::embedding_backward(const Batch& batch, int64_t first, int64_t count,
                                         bool first_wave, const E* gradient) {
  const Span span = p_.span("embedding backward");
  const int64_t D = p_.config->hidden_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    std::memcpy(slot(local_me(), i), gradient + i * micro_rows() * D,
                static_cast<size_t>(n * D) * sizeof(E));
  }
  if (!has_nodes() || defers_embedding()) {
    AMXT_TRY(gather_tokens(batch, first, count));
  } else {
    AMXT_TRY(control_->barrier());
  }
  if (has_nodes()) {
    AMXT_TRY(embedding_parts(count, first_wave));
    return control_->barrier();
  }
  const bool add_to_head = p_.layout->tied();
  for (int64_t block = 0; block < p_.layout->vocabulary_blocks(); ++block) {
    for (const store::OwnedRange& range :
         p_.layout->ranges(me(), p_.layout->embedding_deal(block))) {
      if (first_wave && !add_to_head) clear_gradient(range);
      find_embedding_rows(count, range.row_begin, range.row_end);
      for (size_t begin = 0; begin < embedding_rows_.size();) {
        const uint64_t row = embedding_rows_[begin] >> 32;
        p_.parameters->read_gradient(range, static_cast<int64_t>(row), block_);
        size_t end = begin;
        for (; end < embedding_rows_.size() && embedding_rows_[end] >> 32 == row; ++end) {
          kernels::accumulate(p_.isa, D, source_of(embedding_rows_[end] & 0xFFFFFFFF, count),
                              block_);
        }
        p_.parameters->write_gradient(range, static_cast<int64_t>(row), block_);
        begin = end;
      }
    }
  }
  return control_->barrier();
}

#define AMXT_INSTANTIATE(E)                                                     \
  template void StepRunner<E>::find_embedding_rows(int64_t, int64_t, int64_t);  \
  template void StepRunner<E>::clear_gradient(const store::OwnedRange&);        \
  template const E* StepRunner<E>::source_of(uint64_t, int64_t) const;          \
  template Status StepRunner<E>::gather_tokens(const Batch&, int64_t, int64_t); \
  template Status StepRunner<E>::embedding_backward(const Batch&, int64_t, int64_t, bool, const E*)

AMXT_INSTANTIATE(float);
AMXT_INSTANTIATE(bf16);

}  // namespace amxt::train
