#include "model/head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/rows.h"

namespace amxt::model {
namespace {

int64_t row_blocks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

template <typename E>
int64_t Head<E>::scratch_bytes_needed(const ModelConfig& config, int64_t max_rows) {
  const int64_t logits = std::min(max_rows, kLogitRows) * vocabulary_width(config);
  return aligned(logits * 4) +
         aligned(max_rows * config.hidden_size * static_cast<int64_t>(sizeof(E))) +
         aligned(row_blocks(max_rows) * config.hidden_size * 4);
}

template <typename E>
Result<std::unique_ptr<Head<E>>> Head<E>::create(const ModelConfig& config, ThreadPool* pool,
                                                 Isa isa, kernels::Gemm<E>* gemm,
                                                 int64_t max_rows) {
  std::unique_ptr<Head> head(new Head(config, pool, isa, gemm));
  AMXT_ASSIGN(head->scratch_,
              Buffer::allocate(scratch_bytes_needed(config, max_rows), "scratch of the head"));
  std::byte* at = head->scratch_.data();
  head->logits_ = reinterpret_cast<float*>(at);
  at += aligned(std::min(max_rows, kLogitRows) * vocabulary_width(config) * 4);
  head->dnormed_ = reinterpret_cast<E*>(at);
  at += aligned(max_rows * config.hidden_size * static_cast<int64_t>(sizeof(E)));
  head->partial_ = reinterpret_cast<float*>(at);
  return head;
}

template <typename E>
void Head<E>::embed(int64_t rows, const int32_t* token, const E* embedding, bool is_blocked, E* x) {
  const int64_t D = config_.hidden_size;
  const kernels::BlockedShape shape{config_.vocab_size, D};
  const Span span(pool_->trace(), "embedding", 0, 2.0 * static_cast<double>(rows * D) * sizeof(E));
  pool_->run_blocks(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (is_blocked) {
        kernels::row_from_blocked(D, embedding + shape.offset(token[row], 0), x + row * D);
      } else {
        std::memcpy(x + row * D, embedding + token[row] * D, static_cast<size_t>(D) * sizeof(E));
      }
    }
  });
}

template <typename E>
void Head<E>::normalise(int64_t rows, const E* x, const E* weight, E* normed) {
  const int64_t D = config_.hidden_size;
  const Span span(pool_->trace(), "norm", 0, 2.0 * static_cast<double>(rows * D) * sizeof(E));
  pool_->run_blocks(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    kernels::rms_norm_forward(isa_, end - begin, D, x + begin * D, D, weight,
                              static_cast<float>(config_.rms_norm_eps), normed + begin * D, D,
                              nullptr);
  });
}

template <typename E>
Status Head<E>::logits(int64_t rows, int64_t count, const E* normed, const E* weight) {
  const int64_t D = config_.hidden_size;
  const Span span(pool_->trace(), "logits",
                  2.0 * static_cast<double>(rows * count) * static_cast<double>(D));
  return gemm_->forward_float(rows, count, D, normed, D, weight, D, logits_, count);
}

template <typename E>
void Head<E>::begin(int64_t rows, const LossRows& loss) {
  std::fill_n(loss.maximum, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(loss.sum, rows, 0.0f);
  std::fill_n(loss.target_logit, rows, 0.0f);
}

template <typename E>
Status Head<E>::forward_block(int64_t rows, const E* normed, const E* weight, int64_t first,
                              int64_t count, const LossRows& loss) {
  const int64_t D = config_.hidden_size;
  for (int64_t row = 0; row < rows; row += kLogitRows) {
    const int64_t n = std::min(kLogitRows, rows - row);
    AMXT_TRY(logits(n, count, normed + row * D, weight));
    const Span span(pool_->trace(), "loss", 0, 4.0 * static_cast<double>(n * count));
    pool_->run_blocks(n, kRowBlock, [&](int64_t begin, int64_t end) {
      const int64_t at = row + begin;
      kernels::cross_entropy_accumulate(isa_, end - begin, count, logits_ + begin * count, count,
                                        first, loss.target + at, loss.maximum + at, loss.sum + at,
                                        loss.target_logit + at);
    });
  }
  return {};
}

template <typename E>
void Head<E>::finish(int64_t rows, const LossRows& loss) {
  for (int64_t row = 0; row < rows; ++row)
    loss.lse[row] = loss.maximum[row] + std::log(loss.sum[row]);
}

template <typename E>
Status Head<E>::backward_block(int64_t rows, const E* normed, const E* weight, int64_t first,
                               int64_t count, const LossRows& loss, const float* scale, E* dlogits,
                               int64_t ldd, float* dnormed, bool first_block) {
  const int64_t D = config_.hidden_size;
  for (int64_t row = 0; row < rows; row += kLogitRows) {
    const int64_t n = std::min(kLogitRows, rows - row);
    AMXT_TRY(logits(n, count, normed + row * D, weight));
    const Span span(pool_->trace(), "loss backward", 0,
                    static_cast<double>(n * count) * (4.0 + sizeof(E)));
    pool_->run_blocks(n, kRowBlock, [&](int64_t begin, int64_t end) {
      const int64_t at = row + begin;
      kernels::cross_entropy_gradient(isa_, end - begin, count, logits_ + begin * count, count,
                                      first, loss.target + at, loss.lse + at, scale + at,
                                      dlogits + at * ldd, ldd);
    });
  }
  const Span span(pool_->trace(), "head dX",
                  2.0 * static_cast<double>(rows * count) * static_cast<double>(D));
  return gemm_->grad_input_float(rows, count, D, dlogits, ldd, weight, D, dnormed, D, !first_block);
}

template <typename E>
void Head<E>::norm_backward(int64_t rows, const E* x, const E* weight, const float* dnormed,
                            E* gradient, float* dweight) {
  const int64_t D = config_.hidden_size;
  pool_->run_blocks(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    E* dy = dnormed_ + begin * D;
    if constexpr (sizeof(E) == 4) {
      std::memcpy(dy, dnormed + begin * D, static_cast<size_t>(n * D) * sizeof(float));
    } else {
      kernels::convert(isa_, n * D, dnormed + begin * D, dy);
    }
    float* partial = partial_ + begin / kRowBlock * D;
    std::memset(partial, 0, static_cast<size_t>(D) * sizeof(float));
    kernels::rms_norm_backward(isa_, n, D, x + begin * D, D, weight,
                               static_cast<float>(config_.rms_norm_eps), nullptr, dy, D,
                               static_cast<const E*>(nullptr), 0, gradient + begin * D, D, partial);
  });
  std::memset(dweight, 0, static_cast<size_t>(D) * sizeof(float));
  for (int64_t block = 0; block < row_blocks(rows); ++block)
    kernels::accumulate(isa_, D, partial_ + block * D, dweight);
}

template class Head<float>;
template class Head<bf16>;

}  // namespace amxt::model
