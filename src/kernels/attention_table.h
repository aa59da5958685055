// How attention is cut in tasks, what a task gets, and the functions that an instruction set provides.
#pragma once

#include <cstdint>

#include "base/bf16.h"

namespace amxt::kernels {

// Fixed, so that the order of every sum is: which blocks there are depends on the shape alone.
constexpr int64_t kQueryBlock = 64;
constexpr int64_t kKeyBlock = 64;
constexpr int64_t kHeadChunk = 4;  // query heads that share a converted block of K and V

template <typename E>
struct AttentionCall {
  int64_t tokens, heads, kv_heads, head_dim;
  float scale;
  const int32_t* document_start;
  const E *q, *k, *v;
  int64_t ldq, ldk, ldv;
  E* out;                       // forward
  const E *forward_out, *dout;  // backward
  int64_t ldo, lddo;
  E *dq, *dk, *dv;
  int64_t lddq, lddk, lddv;
  float* lse;             // [H, T], written by the forward
  const float* kept_lse;  // read by the backward
  float* delta;           // [H, T], sum over C of dout * out
};

// Static, because files with wider instructions call them too.
template <typename E>
static inline int64_t group(const AttentionCall<E>& call) {
  return call.heads / call.kv_heads;
}
template <typename E>
static inline int64_t chunks(const AttentionCall<E>& call) {
  return (group(call) + kHeadChunk - 1) / kHeadChunk;
}
template <typename E>
static inline int64_t query_blocks(const AttentionCall<E>& call) {
  return (call.tokens + kQueryBlock - 1) / kQueryBlock;
}
template <typename E>
static inline int64_t key_blocks(const AttentionCall<E>& call) {
  return (call.tokens + kKeyBlock - 1) / kKeyBlock;
}

// Each runs one task with a scratch of its thread.
template <typename E>
struct AttentionTable {
  // Tasks: (kv head, chunk of its query heads, query block), the longest rows of blocks first.
  void (*forward)(const AttentionCall<E>&, int64_t task, float* scratch);
  // Tasks: query blocks.
  void (*delta)(const AttentionCall<E>&, int64_t task);
  // Either one pass, tasks: kv heads ...
  void (*backward)(const AttentionCall<E>&, int64_t task, float* scratch);
  // ... or two that compute the scores twice, but in many more tasks; the same sums in the same order.
  void (*backward_keys)(const AttentionCall<E>&, int64_t task,
                        float* scratch);  // (kv head, key block)
  void (*backward_queries)(const AttentionCall<E>&, int64_t task, float* scratch);  // as forward
};

struct AttentionTables {
  AttentionTable<float> of_float;
  AttentionTable<bf16> of_bf16;
  int64_t (*forward_floats)(int64_t head_dim);  // scratch of a thread
  int64_t (*backward_floats)(int64_t head_dim,
                             int64_t key_rows);  // key_rows: T in one pass, a block in two
};

extern const AttentionTables attention_avx2;
extern const AttentionTables attention_avx512;

}  // namespace amxt::kernels
