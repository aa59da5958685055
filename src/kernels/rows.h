// Operations on rows of activations: normalisation, rotary positions, SwiGLU, sums, conversions. Serial over the rows given: the
// caller cuts the rows and runs the parts on its pool. E is float or bf16; arithmetic in fp32. Each has a scalar `_ref` twin.
#pragma once

#include <cstdint>

#include "base/bf16.h"
#include "base/cpu.h"

namespace amxt::kernels {

// y = x / sqrt(mean(x^2) + eps) * weight, per row of `dim`. inverse_rms[rows] is kept for the backward (may be null).
template <typename E>
void rms_norm_forward(Isa isa, int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                      float eps, E* y, int64_t ldy, float* inverse_rms);

// dx = residual + d(rms_norm)/dx . dy ; residual may be null, may be dx itself. dweight[dim] (fp32) += sum over rows, in row order.
// inverse_rms null: recomputed from x with eps.
template <typename E>
void rms_norm_backward(Isa isa, int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                       float eps, const float* inverse_rms, const E* dy, int64_t lddy,
                       const E* residual, int64_t ldr, E* dx, int64_t lddx, float* dweight);

// Rotates pairs (i, i + C/2) of each head by the angle of the row's position, in place, as transformers' apply_rotary_pos_emb does.
// cosine, sine: [positions, C/2] fp32. inverse: the backward (angle negated).
template <typename E>
void rope(Isa isa, int64_t rows, int64_t heads, int64_t head_dim, E* x, int64_t ldx,
          const int32_t* position, const float* cosine, const float* sine, bool inverse);

// y = silu(gate) * up, rows of `dim`.
template <typename E>
void swiglu_forward(Isa isa, int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                    int64_t ldu, E* y, int64_t ldy);

// dgate, dup from dy; dgate may be gate's memory and dup up's. y (may be null): silu(gate) * up again, for the gradient of down_proj.
template <typename E>
void swiglu_backward(Isa isa, int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                     int64_t ldu, const E* dy, int64_t lddy, E* dgate, int64_t lddg, E* dup,
                     int64_t lddu, E* y, int64_t ldy);

// y = a + b per row; y may be a or b.
template <typename E>
void add_rows(Isa isa, int64_t rows, int64_t dim, const E* a, int64_t lda, const E* b, int64_t ldb,
              E* y, int64_t ldy);
// x += bias, per row.
template <typename E>
void add_bias(Isa isa, int64_t rows, int64_t dim, E* x, int64_t ldx, const E* bias);
// sum[dim] (fp32) += rows of x, in row order: the gradient of a bias.
template <typename E>
void sum_rows(Isa isa, int64_t rows, int64_t dim, const E* x, int64_t ldx, float* sum);
// sum[dim] += x[dim]
template <typename E>
void accumulate(Isa isa, int64_t dim, const E* x, float* sum);

// Conversions of contiguous elements; bf16 and fp16 round to nearest even, NaN stays NaN.
void convert(Isa isa, int64_t count, const float* from, bf16* to);
void convert(Isa isa, int64_t count, const bf16* from, float* to);
void convert_f16(int64_t count, const uint16_t* from, float* to);
void convert_f16(int64_t count, const float* from, uint16_t* to);

// Soft-max cross-entropy over a block of the vocabulary, columns [first, first + n) of the logits; rows are tokens.
// Running maximum and sum of exponentials per row, and the logit of the row's target when it lies in the block. Start with
// maximum = -inf, sum = 0. After the last block the row's loss is log(sum) + maximum - target_logit.
void cross_entropy_accumulate(Isa isa, int64_t rows, int64_t n, const float* logits, int64_t ld,
                              int64_t first, const int32_t* target, float* maximum, float* sum,
                              float* target_logit);
// d[row, j] = scale[row] * (exp(logit - lse[row]) - [first + j == target[row]]), stored as E. A row with scale 0 gives exact zeros,
// whatever its logits.
template <typename E>
void cross_entropy_gradient(Isa isa, int64_t rows, int64_t n, const float* logits, int64_t ld,
                            int64_t first, const int32_t* target, const float* lse,
                            const float* scale, E* d, int64_t ldd);

}  // namespace amxt::kernels
