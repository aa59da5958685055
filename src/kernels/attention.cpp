#include "kernels/attention.h"

#include <vector>

namespace amxt::kernels {
namespace {

template <typename E>
void store(int64_t tokens, int64_t width, const std::vector<float>& from, E* to, int64_t ld) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < width; ++i)
      to[t * ld + i] = from_float<E>(from[static_cast<size_t>(t * width + i)]);
}

}  // namespace

template <typename E>
void attention_forward(ThreadPool&, Isa, const AttentionShape& shape, const E* q, int64_t ldq,
                       const E* k, int64_t ldk, const E* v, int64_t ldv, E* out, int64_t ldo,
                       float* lse, void*) {
  std::vector<float> o(static_cast<size_t>(shape.tokens * shape.heads * shape.head_dim));
  attention_forward_ref(shape, q, ldq, k, ldk, v, ldv, o.data(), lse);
  store(shape.tokens, shape.heads * shape.head_dim, o, out, ldo);
}

template <typename E>
void attention_backward(ThreadPool&, Isa, const AttentionShape& shape, const E* q, int64_t ldq,
                        const E* k, int64_t ldk, const E* v, int64_t ldv, const E*, int64_t,
                        const float*, const E* dout, int64_t lddo, E* dq, int64_t lddq, E* dk,
                        int64_t lddk, E* dv, int64_t lddv, void*) {
  const int64_t wide = shape.heads * shape.head_dim, narrow = shape.kv_heads * shape.head_dim;
  std::vector<float> a(static_cast<size_t>(shape.tokens * wide)),
      b(static_cast<size_t>(shape.tokens * narrow)), c(b.size());
  attention_backward_ref(shape, q, ldq, k, ldk, v, ldv, dout, lddo, a.data(), b.data(), c.data());
  store(shape.tokens, wide, a, dq, lddq);
  store(shape.tokens, narrow, b, dk, lddk);
  store(shape.tokens, narrow, c, dv, lddv);
}

int64_t attention_scratch_bytes(const AttentionShape&, int) { return 64; }

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
