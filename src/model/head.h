// Embedding, final norm, and the head fused with its loss: never tokens x vocabulary in fp32.
//
// The head goes over the vocabulary in blocks of kVocabularyBlock rows of lm_head. First pass: logits of a block, running maximum and sum
// of exponentials per token. Second pass: logits of the block again, their gradient (given to the caller, who makes dW of it), dX added.
// Reading logits twice costs one more product of the head's four; it saves tokens x vocabulary of memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "base/buffer.h"
#include "base/cpu.h"
#include "base/thread_pool.h"
#include "kernels/gemm.h"
#include "model/config.h"
#include "model/decoder.h"

namespace amxt::model {

// Rows of the embedding and of the head that are handled, and dealt out to owners, together.
inline constexpr int64_t kVocabularyBlock = 4096;

// Rows of the largest block of a vocabulary.
inline int64_t vocabulary_width(const ModelConfig& config) {
  return std::min(config.vocab_size, kVocabularyBlock);
}

// Per token of a micro-batch, [M]: what the loss needs and gives.
struct LossRows {
  const int32_t* target = nullptr;  // kNoTarget (-1): none
  float* maximum = nullptr;
  float* sum = nullptr;
  float* target_logit = nullptr;
  float* lse = nullptr;  // after finish()
};

template <typename E>
class Head {
 public:
  static Result<std::unique_ptr<Head>> create(const ModelConfig& config, ThreadPool* pool, Isa isa,
                                              kernels::Gemm<E>* gemm, int64_t max_rows);

  // x[M, D] = embedding rows of tokens, which are within the vocabulary (the data set and the batch check them).
  void embed(int64_t rows, const int32_t* token, const E* embedding, bool is_blocked, E* x);
  // normed[M, D] = final norm of x.
  void normalise(int64_t rows, const E* x, const E* weight, E* normed);

  void begin(int64_t rows, const LossRows& loss);
  // First pass over vocabulary rows [first, first + count), whose weights are `weight`[count, D].
  Status forward_block(int64_t rows, const E* normed, const E* weight, int64_t first, int64_t count,
                       const LossRows& loss);
  // lse from maximum and sum.
  void finish(int64_t rows, const LossRows& loss);
  // Second pass: dlogits[M, count] (E, distance ldd) and dnormed[M, D] (fp32) += dlogits weight; `first_block` overwrites dnormed.
  Status backward_block(int64_t rows, const E* normed, const E* weight, int64_t first,
                        int64_t count, const LossRows& loss, const float* scale, E* dlogits,
                        int64_t ldd, float* dnormed, bool first_block);
  // gradient[M, D] of the last layer's output, from dnormed; dweight[D] is the sum over the micro-batch.
  void norm_backward(int64_t rows, const E* x, const E* weight, const float* dnormed, E* gradient,
                     float* dweight);

  static int64_t scratch_bytes_needed(const ModelConfig& config, int64_t max_rows);
  int64_t scratch_bytes() const { return scratch_.bytes(); }

 private:
  Head(const ModelConfig& config, ThreadPool* pool, Isa isa, kernels::Gemm<E>* gemm)
      : config_(config), pool_(pool), isa_(isa), gemm_(gemm) {}

  // logits_[rows, count] of a block of the vocabulary.
  Status logits(int64_t rows, int64_t count, const E* normed, const E* weight);

  ModelConfig config_;
  ThreadPool* pool_;
  Isa isa_;
  kernels::Gemm<E>* gemm_;
  Buffer scratch_;
  float* logits_ = nullptr;   // [min(M, kLogitRows), min(V, kVocabularyBlock)]
  E* dnormed_ = nullptr;      // [M, D] in E, for the norm's backward
  float* partial_ = nullptr;  // [row blocks, D]
};

// Tokens whose logits are in memory at a time.
inline constexpr int64_t kLogitRows = 512;

}  // namespace amxt::model
