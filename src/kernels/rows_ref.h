// The scalar truth of rows.h: same arguments without the instruction set, sums in double, `std::` functions of fp32. For tests.
#pragma once

#include <cstdint>

#include "base/bf16.h"

namespace amxt::kernels {

template <typename E>
void rms_norm_forward_ref(int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                          float eps, E* y, int64_t ldy, float* inverse_rms);
template <typename E>
void rms_norm_backward_ref(int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                           float eps, const float* inverse_rms, const E* dy, int64_t lddy,
                           const E* residual, int64_t ldr, E* dx, int64_t lddx, float* dweight);
template <typename E>
void rope_ref(int64_t rows, int64_t heads, int64_t head_dim, E* x, int64_t ldx,
              const int32_t* position, const float* cosine, const float* sine, bool inverse);
template <typename E>
void swiglu_forward_ref(int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                        int64_t ldu, E* y, int64_t ldy);
template <typename E>
void swiglu_backward_ref(int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                         int64_t ldu, const E* dy, int64_t lddy, E* dgate, int64_t lddg, E* dup,
                         int64_t lddu, E* y, int64_t ldy);
template <typename E>
void add_rows_ref(int64_t rows, int64_t dim, const E* a, int64_t lda, const E* b, int64_t ldb, E* y,
                  int64_t ldy);
template <typename E>
void add_bias_ref(int64_t rows, int64_t dim, E* x, int64_t ldx, const E* bias);
template <typename E>
void sum_rows_ref(int64_t rows, int64_t dim, const E* x, int64_t ldx, float* sum);
template <typename E>
void accumulate_ref(int64_t dim, const E* x, float* sum);

void convert_ref(int64_t count, const float* from, bf16* to);
void convert_ref(int64_t count, const bf16* from, float* to);
void convert_f16_ref(int64_t count, const uint16_t* from, float* to);

void cross_entropy_accumulate_ref(int64_t rows, int64_t n, const float* logits, int64_t ld,
                                  int64_t first, const int32_t* target, float* maximum, float* sum,
                                  float* target_logit);
template <typename E>
void cross_entropy_gradient_ref(int64_t rows, int64_t n, const float* logits, int64_t ld,
                                int64_t first, const int32_t* target, const float* lse,
                                const float* scale, E* d, int64_t ldd);

}  // namespace amxt::kernels
