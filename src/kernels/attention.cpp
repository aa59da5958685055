#include "kernels/attention.h"

#include <algorithm>

#include "kernels/attention_table.h"

namespace amxt::kernels {
namespace {

const AttentionTables& tables(Isa isa) {
  return isa >= Isa::kAvx512 ? attention_avx512 : attention_avx2;
}

template <typename E>
const AttentionTable<E>& table(Isa isa);
template <>
const AttentionTable<float>& table<float>(Isa isa) {
  return tables(isa).of_float;
}
template <>
const AttentionTable<bf16>& table<bf16>(Isa isa) {
  return tables(isa).of_bf16;
}

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t delta_bytes(const AttentionShape& shape) {
  return round_up(shape.heads * shape.tokens * static_cast<int64_t>(sizeof(float)));
}

// Two passes compute 7 products of a block instead of 5; one pass has only as many tasks as kv heads.
bool one_pass(const AttentionShape& shape, int64_t threads) {
  const int64_t rounds = (shape.kv_heads + threads - 1) / threads;
  return 5 * rounds * threads <= 7 * shape.kv_heads;
}

int64_t forward_bytes(const AttentionShape& shape) {
  return 4 * attention_avx2.forward_floats(shape.head_dim);
}

int64_t backward_bytes(const AttentionShape& shape, int64_t threads) {
  return 4 * attention_avx2.backward_floats(shape.head_dim,
                                            one_pass(shape, threads) ? shape.tokens : kKeyBlock);
}

template <typename E>
AttentionCall<E> call_of(const AttentionShape& shape, const E* q, int64_t ldq, const E* k,
                         int64_t ldk, const E* v, int64_t ldv) {
  AttentionCall<E> call{};
  call.tokens = shape.tokens;
  call.heads = shape.heads;
  call.kv_heads = shape.kv_heads;
  call.head_dim = shape.head_dim;
  call.scale = shape.scale;
  call.document_start = shape.document_start;
  call.q = q;
  call.k = k;
  call.v = v;
  call.ldq = ldq;
  call.ldk = ldk;
  call.ldv = ldv;
  return call;
}

template <typename E>
int64_t query_tasks(const AttentionCall<E>& call) {
  return call.kv_heads * chunks(call) * query_blocks(call);
}

}  // namespace

int64_t attention_scratch_bytes(const AttentionShape& shape, int threads) {
  return delta_bytes(shape) +
         threads * std::max(forward_bytes(shape), backward_bytes(shape, threads));
}

template <typename E>
void attention_forward(ThreadPool& pool, Isa isa, const AttentionShape& shape, const E* q,
                       int64_t ldq, const E* k, int64_t ldk, const E* v, int64_t ldv, E* out,
                       int64_t ldo, float* lse, void* scratch) {
  AttentionCall<E> call = call_of(shape, q, ldq, k, ldk, v, ldv);
  call.out = out;
  call.ldo = ldo;
  call.lse = lse;
  const auto memory = [&, bytes = forward_bytes(shape)](int thread) {
    return reinterpret_cast<float*>(static_cast<char*>(scratch) + thread * bytes);
  };
  pool.run(query_tasks(call),
           [&](int64_t task, int thread) { table<E>(isa).forward(call, task, memory(thread)); });
}

template <typename E>
void attention_backward(ThreadPool& pool, Isa isa, const AttentionShape& shape, const E* q,
                        int64_t ldq, const E* k, int64_t ldk, const E* v, int64_t ldv, const E* out,
                        int64_t ldo, const float* lse, const E* dout, int64_t lddo, E* dq,
                        int64_t lddq, E* dk, int64_t lddk, E* dv, int64_t lddv, void* scratch) {
  AttentionCall<E> call = call_of(shape, q, ldq, k, ldk, v, ldv);
  call.forward_out = out;
  call.ldo = ldo;
  call.kept_lse = lse;
  call.dout = dout;
  call.lddo = lddo;
  call.dq = dq;
  call.lddq = lddq;
  call.dk = dk;
  call.lddk = lddk;
  call.dv = dv;
  call.lddv = lddv;
  call.delta = static_cast<float*>(scratch);
  char* rest = static_cast<char*>(scratch) + delta_bytes(shape);
  const auto memory = [&, bytes = backward_bytes(shape, pool.threads())](int thread) {
    return reinterpret_cast<float*>(rest + thread * bytes);
  };
  const AttentionTable<E>& with = table<E>(isa);
  pool.run(query_blocks(call), [&](int64_t task, int) { with.delta(call, task); });
  if (one_pass(shape, pool.threads())) {
    pool.run(call.kv_heads,
             [&](int64_t task, int thread) { with.backward(call, task, memory(thread)); });
    return;
  }
  // The first key blocks are seen by the most queries, the last query blocks see the most keys: long tasks first.
  pool.run(call.kv_heads * key_blocks(call),
           [&](int64_t task, int thread) { with.backward_keys(call, task, memory(thread)); });
  pool.run(query_tasks(call),
           [&](int64_t task, int thread) { with.backward_queries(call, task, memory(thread)); });
}

#define AMXT_INSTANTIATE(E)                                                                       \
  template void attention_forward(ThreadPool&, Isa, const AttentionShape&, const E*, int64_t,     \
                                  const E*, int64_t, const E*, int64_t, E*, int64_t, float*,      \
                                  void*);                                                         \
  template void attention_backward(ThreadPool&, Isa, const AttentionShape&, const E*, int64_t,    \
                                   const E*, int64_t, const E*, int64_t, const E*, int64_t,       \
                                   const float*, const E*, int64_t, E*, int64_t, E*, int64_t, E*, \
                                   int64_t, void*);
AMXT_INSTANTIATE(float)
AMXT_INSTANTIATE(bf16)
#undef AMXT_INSTANTIATE

}  // namespace amxt::kernels
