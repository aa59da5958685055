// Causal attention over packed documents, forward and backward, without T x T memory.
//
// Query head h uses key/value head h / (H / G) (grouped-query attention, heads are not repeated). Token t sees tokens
// s in [document_start[t], t] of its row (a sequence of T tokens). Blocks above the diagonal and blocks of other documents are skipped.
// q, k, v, out and their gradients are [T, heads, C] with a distance of ld* elements between tokens (they may be parts of one
// [T, (H + 2 G) C] matrix). Sums, soft-max and dK, dV accumulate in fp32. Rows of pads are computed like any other; the caller masks them.
#pragma once

#include <cstdint>

#include "base/bf16.h"
#include "base/cpu.h"
#include "base/thread_pool.h"

namespace amxt::kernels {

struct AttentionShape {
  int64_t tokens = 0;                       // T
  int64_t heads = 0;                        // H
  int64_t kv_heads = 0;                     // G, divides H
  int64_t head_dim = 0;                     // C, any even number up to 256
  float scale = 0;                          // 1 / sqrt(C)
  const int32_t* document_start = nullptr;  // [T], non-decreasing, document_start[t] <= t
};

// lse: [H, T] float, natural-log of the sum of exponentials of the scaled scores. `scratch` has attention_scratch_bytes() bytes, 64-byte
// aligned. Parallel over (kv head, query block) on the pool; the bits do not depend on the number of threads.
template <typename E>
void attention_forward(ThreadPool& pool, Isa isa, const AttentionShape& shape, const E* q,
                       int64_t ldq, const E* k, int64_t ldk, const E* v, int64_t ldv, E* out,
                       int64_t ldo, float* lse, void* scratch);

template <typename E>
void attention_backward(ThreadPool& pool, Isa isa, const AttentionShape& shape, const E* q,
                        int64_t ldq, const E* k, int64_t ldk, const E* v, int64_t ldv, const E* out,
                        int64_t ldo, const float* lse, const E* dout, int64_t lddo, E* dq,
                        int64_t lddq, E* dk, int64_t lddk, E* dv, int64_t lddv, void* scratch);

// For both directions on a pool of `threads`; grows with H T and with T C per thread, not with T x T. Backward takes one pass over
// the blocks where the kv heads keep the threads busy, and two (dK and dV, then dQ) with 7/5 of the work where they don't.
int64_t attention_scratch_bytes(const AttentionShape& shape, int threads);

// Scalar truth, O(T^2) time, fp32.
template <typename E>
void attention_forward_ref(const AttentionShape& shape, const E* q, int64_t ldq, const E* k,
                           int64_t ldk, const E* v, int64_t ldv, float* out, float* lse);
template <typename E>
void attention_backward_ref(const AttentionShape& shape, const E* q, int64_t ldq, const E* k,
                            int64_t ldk, const E* v, int64_t ldv, const E* dout, int64_t lddo,
                            float* dq, float* dk, float* dv);

}  // namespace amxt::kernels
