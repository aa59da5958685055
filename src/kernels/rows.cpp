#include "kernels/rows.h"

#include "kernels/rows_table.h"

namespace amxt::kernels {
namespace {

const RowTables& tables(Isa isa) { return isa >= Isa::kAvx512 ? rows_avx512 : rows_avx2; }

template <typename E>
const RowTable<E>& table(Isa isa);
template <>
const RowTable<float>& table<float>(Isa isa) {
  return tables(isa).of_float;
}
template <>
const RowTable<bf16>& table<bf16>(Isa isa) {
  return tables(isa).of_bf16;
}

}  // namespace

template <typename E>
void rms_norm_forward(Isa isa, int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                      float eps, E* y, int64_t ldy, float* inverse_rms) {
  table<E>(isa).rms_norm_forward(rows, dim, x, ldx, weight, eps, y, ldy, inverse_rms);
}

template <typename E>
void rms_norm_backward(Isa isa, int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                       float eps, const float* inverse_rms, const E* dy, int64_t lddy,
                       const E* residual, int64_t ldr, E* dx, int64_t lddx, float* dweight) {
  table<E>(isa).rms_norm_backward(rows, dim, x, ldx, weight, eps, inverse_rms, dy, lddy, residual,
                                  ldr, dx, lddx, dweight);
}

template <typename E>
void rope(Isa isa, int64_t rows, int64_t heads, int64_t head_dim, E* x, int64_t ldx,
          const int32_t* position, const float* cosine, const float* sine, bool inverse) {
  table<E>(isa).rope(rows, heads, head_dim, x, ldx, position, cosine, sine, inverse);
}

template <typename E>
void swiglu_forward(Isa isa, int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                    int64_t ldu, E* y, int64_t ldy) {
  table<E>(isa).swiglu_forward(rows, dim, gate, ldg, up, ldu, y, ldy);
}

template <typename E>
void swiglu_backward(Isa isa, int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                     int64_t ldu, const E* dy, int64_t lddy, E* dgate, int64_t lddg, E* dup,
                     int64_t lddu, E* y, int64_t ldy) {
  table<E>(isa).swiglu_backward(rows, dim, gate, ldg, up, ldu, dy, lddy, dgate, lddg, dup, lddu, y,
                                ldy);
}

template <typename E>
void add_rows(Isa isa, int64_t rows, int64_t dim, const E* a, int64_t lda, const E* b, int64_t ldb,
              E* y, int64_t ldy) {
  table<E>(isa).add_rows(rows, dim, a, lda, b, ldb, y, ldy);
}

template <typename E>
void add_bias(Isa isa, int64_t rows, int64_t dim, E* x, int64_t ldx, const E* bias) {
  table<E>(isa).add_bias(rows, dim, x, ldx, bias);
}

template <typename E>
void sum_rows(Isa isa, int64_t rows, int64_t dim, const E* x, int64_t ldx, float* sum) {
  table<E>(isa).sum_rows(rows, dim, x, ldx, sum);
}

template <typename E>
void accumulate(Isa isa, int64_t dim, const E* x, float* sum) {
  table<E>(isa).accumulate(dim, x, sum);
}

void convert(Isa isa, int64_t count, const float* from, bf16* to) {
  tables(isa).round(count, from, to);
}

void convert(Isa isa, int64_t count, const bf16* from, float* to) {
  tables(isa).widen(count, from, to);
}

void convert_f16(int64_t count, const uint16_t* from, float* to) {
  convert_f16_avx2(count, from, to);
}
void convert_f16(int64_t count, const float* from, uint16_t* to) {
  convert_f16_avx2(count, from, to);
}

void cross_entropy_accumulate(Isa isa, int64_t rows, int64_t n, const float* logits, int64_t ld,
                              int64_t first, const int32_t* target, float* maximum, float* sum,
                              float* target_logit) {
  tables(isa).cross_entropy_accumulate(rows, n, logits, ld, first, target, maximum, sum,
                                       target_logit);
}

template <typename E>
void cross_entropy_gradient(Isa isa, int64_t rows, int64_t n, const float* logits, int64_t ld,
                            int64_t first, const int32_t* target, const float* lse,
                            const float* scale, E* d, int64_t ldd) {
  table<E>(isa).cross_entropy_gradient(rows, n, logits, ld, first, target, lse, scale, d, ldd);
}

#define AMXT_INSTANTIATE(E)                                                                        \
  template void rms_norm_forward(Isa, int64_t, int64_t, const E*, int64_t, const E*, float, E*,    \
                                 int64_t, float*);                                                 \
  template void rms_norm_backward(Isa, int64_t, int64_t, const E*, int64_t, const E*, float,       \
                                  const float*, const E*, int64_t, const E*, int64_t, E*, int64_t, \
                                  float*);                                                         \
  template void rope(Isa, int64_t, int64_t, int64_t, E*, int64_t, const int32_t*, const float*,    \
                     const float*, bool);                                                          \
  template void swiglu_forward(Isa, int64_t, int64_t, const E*, int64_t, const E*, int64_t, E*,    \
                               int64_t);                                                           \
  template void swiglu_backward(Isa, int64_t, int64_t, const E*, int64_t, const E*, int64_t,       \
                                const E*, int64_t, E*, int64_t, E*, int64_t, E*, int64_t);         \
  template void add_rows(Isa, int64_t, int64_t, const E*, int64_t, const E*, int64_t, E*,          \
                         int64_t);                                                                 \
  template void add_bias(Isa, int64_t, int64_t, E*, int64_t, const E*);                            \
  template void sum_rows(Isa, int64_t, int64_t, const E*, int64_t, float*);                        \
  template void accumulate(Isa, int64_t, const E*, float*);                                        \
  template void cross_entropy_gradient(Isa, int64_t, int64_t, const float*, int64_t, int64_t,      \
                                       const int32_t*, const float*, const float*, E*, int64_t);
AMXT_INSTANTIATE(float)
AMXT_INSTANTIATE(bf16)
#undef AMXT_INSTANTIATE

}  // namespace amxt::kernels
