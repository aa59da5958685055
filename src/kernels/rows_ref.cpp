#include "kernels/rows_ref.h"

#include <bit>
#include <cmath>
#include <limits>

namespace amxt::kernels {
namespace {

template <typename E>
float inverse_rms_of(int64_t dim, const E* x, float eps) {
  double squares = 0;
  for (int64_t i = 0; i < dim; ++i) squares += double(to_float(x[i])) * double(to_float(x[i]));
  return static_cast<float>(1.0 / std::sqrt(squares / double(dim) + double(eps)));
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace

template <typename E>
void rms_norm_forward_ref(int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                          float eps, E* y, int64_t ldy, float* inverse_rms) {
  for (int64_t r = 0; r < rows; ++r) {
    const float inverse = inverse_rms_of(dim, x + r * ldx, eps);
    for (int64_t i = 0; i < dim; ++i) {
      y[r * ldy + i] = from_float<E>(to_float(x[r * ldx + i]) * inverse * to_float(weight[i]));
    }
    if (inverse_rms) inverse_rms[r] = inverse;
  }
}

template <typename E>
void rms_norm_backward_ref(int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                           float eps, const float* inverse_rms, const E* dy, int64_t lddy,
                           const E* residual, int64_t ldr, E* dx, int64_t lddx, float* dweight) {
  for (int64_t r = 0; r < rows; ++r) {
    const float inverse = inverse_rms ? inverse_rms[r] : inverse_rms_of(dim, x + r * ldx, eps);
    double dot = 0;
    for (int64_t i = 0; i < dim; ++i) {
      dot += double(to_float(dy[r * lddy + i])) * double(to_float(weight[i])) *
             double(to_float(x[r * ldx + i]));
    }
    const double along = dot * inverse * inverse / double(dim);  // of x, in the scaled gradient
    for (int64_t i = 0; i < dim; ++i) {
      const float xi = to_float(x[r * ldx + i]);
      const float gi = to_float(dy[r * lddy + i]);
      const double change =
          double(inverse) * (double(gi) * double(to_float(weight[i])) - double(xi) * along);
      const double kept = residual ? double(to_float(residual[r * ldr + i])) : 0.0;
      dweight[i] += gi * (xi * inverse);
      dx[r * lddx + i] = from_float<E>(static_cast<float>(kept + change));
    }
  }
}

template <typename E>
void rope_ref(int64_t rows, int64_t heads, int64_t head_dim, E* x, int64_t ldx,
              const int32_t* position, const float* cosine, const float* sine, bool inverse) {
  const int64_t half = head_dim / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const float* c = cosine + position[r] * half;
    const float* s = sine + position[r] * half;
    for (int64_t h = 0; h < heads; ++h) {
      E* head = x + r * ldx + h * head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const float a = to_float(head[i]), b = to_float(head[i + half]);
        const float sin = inverse ? -s[i] : s[i];
        head[i] = from_float<E>(a * c[i] - b * sin);
        head[i + half] = from_float<E>(b * c[i] + a * sin);
      }
    }
  }
}

template <typename E>
void swiglu_forward_ref(int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                        int64_t ldu, E* y, int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < dim; ++i) {
      const float g = to_float(gate[r * ldg + i]);
      y[r * ldy + i] = from_float<E>(g * sigmoid(g) * to_float(up[r * ldu + i]));
    }
  }
}

template <typename E>
void swiglu_backward_ref(int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                         int64_t ldu, const E* dy, int64_t lddy, E* dgate, int64_t lddg, E* dup,
                         int64_t lddu, E* y, int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < dim; ++i) {
      const float g = to_float(gate[r * ldg + i]);
      const float u = to_float(up[r * ldu + i]);
      const float d = to_float(dy[r * lddy + i]);
      const float s = sigmoid(g);
      dgate[r * lddg + i] = from_float<E>(d * u * (s * (1 + g * (1 - s))));
      dup[r * lddu + i] = from_float<E>(d * (g * s));
      if (y) y[r * ldy + i] = from_float<E>(g * s * u);
    }
  }
}

template <typename E>
void add_rows_ref(int64_t rows, int64_t dim, const E* a, int64_t lda, const E* b, int64_t ldb, E* y,
                  int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < dim; ++i) {
      y[r * ldy + i] = from_float<E>(to_float(a[r * lda + i]) + to_float(b[r * ldb + i]));
    }
  }
}

template <typename E>
void add_bias_ref(int64_t rows, int64_t dim, E* x, int64_t ldx, const E* bias) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < dim; ++i) {
      x[r * ldx + i] = from_float<E>(to_float(x[r * ldx + i]) + to_float(bias[i]));
    }
  }
}

template <typename E>
void sum_rows_ref(int64_t rows, int64_t dim, const E* x, int64_t ldx, float* sum) {
  for (int64_t r = 0; r < rows; ++r) accumulate_ref(dim, x + r * ldx, sum);
}

template <typename E>
void accumulate_ref(int64_t dim, const E* x, float* sum) {
  for (int64_t i = 0; i < dim; ++i) sum[i] += to_float(x[i]);
}

void convert_ref(int64_t count, const float* from, bf16* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_bf16(from[i]);
}

void convert_ref(int64_t count, const bf16* from, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

void convert_f16_ref(int64_t count, const uint16_t* from, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t sign = static_cast<uint32_t>(from[i] & 0x8000) << 16;
    const uint32_t exponent = (from[i] >> 10) & 0x1F;
    const uint32_t fraction = from[i] & 0x3FF;
    uint32_t bits;
    if (exponent == 0x1F) {
      bits = 0x7F800000 | (fraction << 13) | (fraction ? 0x00400000 : 0);  // a NaN becomes quiet
    } else if (exponent == 0) {
      bits = std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-24f);
    } else {
      bits = ((exponent + 112) << 23) | (fraction << 13);
    }
    to[i] = std::bit_cast<float>(sign | bits);
  }
}

void cross_entropy_accumulate_ref(int64_t rows, int64_t n, const float* logits, int64_t ld,
                                  int64_t first, const int32_t* target, float* maximum, float* sum,
                                  float* target_logit) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits + r * ld;
    float largest = maximum[r];
    for (int64_t j = 0; j < n; ++j) largest = std::fmax(largest, row[j]);
    const int64_t place = target[r] - first;
    if (place >= 0 && place < n) target_logit[r] = row[place];
    // A maximum of -inf: no finite logit yet; subtract 0, so that exp(-inf) counts nothing and a NaN still shows.
    const float base = largest == -std::numeric_limits<float>::infinity() ? 0 : largest;
    double total = double(sum[r]) * double(std::exp(maximum[r] - base));
    for (int64_t j = 0; j < n; ++j) total += double(std::exp(row[j] - base));
    maximum[r] = largest;
    sum[r] = static_cast<float>(total);
  }
}

template <typename E>
void cross_entropy_gradient_ref(int64_t rows, int64_t n, const float* logits, int64_t ld,
                                int64_t first, const int32_t* target, const float* lse,
                                const float* scale, E* d, int64_t ldd) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      const float hot = first + j == target[r] ? 1 : 0;
      const float value =
          scale[r] == 0 ? 0 : scale[r] * (std::exp(logits[r * ld + j] - lse[r]) - hot);
      d[r * ldd + j] = from_float<E>(value);
    }
  }
}

#define AMXT_INSTANTIATE(E)                                                                        \
  template void rms_norm_forward_ref(int64_t, int64_t, const E*, int64_t, const E*, float, E*,     \
                                     int64_t, float*);                                             \
  template void rms_norm_backward_ref(int64_t, int64_t, const E*, int64_t, const E*, float,        \
                                      const float*, const E*, int64_t, const E*, int64_t, E*,      \
                                      int64_t, float*);                                            \
  template void rope_ref(int64_t, int64_t, int64_t, E*, int64_t, const int32_t*, const float*,     \
                         const float*, bool);                                                      \
  template void swiglu_forward_ref(int64_t, int64_t, const E*, int64_t, const E*, int64_t, E*,     \
                                   int64_t);                                                       \
  template void swiglu_backward_ref(int64_t, int64_t, const E*, int64_t, const E*, int64_t,        \
                                    const E*, int64_t, E*, int64_t, E*, int64_t, E*, int64_t);     \
  template void add_rows_ref(int64_t, int64_t, const E*, int64_t, const E*, int64_t, E*, int64_t); \
  template void add_bias_ref(int64_t, int64_t, E*, int64_t, const E*);                             \
  template void sum_rows_ref(int64_t, int64_t, const E*, int64_t, float*);                         \
  template void accumulate_ref(int64_t, const E*, float*);                                         \
  template void cross_entropy_gradient_ref(int64_t, int64_t, const float*, int64_t, int64_t,       \
                                           const int32_t*, const float*, const float*, E*,         \
                                           int64_t);
AMXT_INSTANTIATE(float)
AMXT_INSTANTIATE(bf16)
#undef AMXT_INSTANTIATE

}  // namespace amxt::kernels
