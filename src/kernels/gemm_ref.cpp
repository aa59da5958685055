// Scalar truth: one chain of fused multiply-adds per element, in order of the contracted index,
// that starts from what is there.

#include <cmath>

#include "kernels/gemm.h"

namespace amxt::kernels {

template <typename E>
void gemm_forward_ref(int64_t T, int64_t N, int64_t K, const E* x, int64_t ldx, const E* w,
                      int64_t ldw, float* y, int64_t ldy) {
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      float sum = 0;
      for (int64_t k = 0; k < K; ++k) {
        sum = std::fma(to_float(x[t * ldx + k]), to_float(w[n * ldw + k]), sum);
      }
      y[t * ldy + n] = sum;
    }
  }
}

template <typename E>
void gemm_grad_input_ref(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* w,
                         int64_t ldw, float* dx, int64_t lddx, bool accumulate) {
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < K; ++k) {
      float sum = accumulate ? dx[t * lddx + k] : 0;
      for (int64_t n = 0; n < N; ++n) {
        sum = std::fma(to_float(dy[t * lddy + n]), to_float(w[n * ldw + k]), sum);
      }
      dx[t * lddx + k] = sum;
    }
  }
}

template <typename E>
void gemm_grad_weight_ref(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* x,
                          int64_t ldx, float* dw, int64_t lddw, bool accumulate) {
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      float sum = accumulate ? dw[n * lddw + k] : 0;
      for (int64_t t = 0; t < T; ++t) {
        sum = std::fma(to_float(dy[t * lddy + n]), to_float(x[t * ldx + k]), sum);
      }
      dw[n * lddw + k] = sum;
    }
  }
}

#define AMXT_GEMM_REF(E)                                                                          \
  template void gemm_forward_ref(int64_t, int64_t, int64_t, const E*, int64_t, const E*, int64_t, \
                                 float*, int64_t);                                                \
  template void gemm_grad_input_ref(int64_t, int64_t, int64_t, const E*, int64_t, const E*,       \
                                    int64_t, float*, int64_t, bool);                              \
  template void gemm_grad_weight_ref(int64_t, int64_t, int64_t, const E*, int64_t, const E*,      \
                                     int64_t, float*, int64_t, bool)
AMXT_GEMM_REF(float);
AMXT_GEMM_REF(bf16);
#undef AMXT_GEMM_REF

}  // namespace amxt::kernels
