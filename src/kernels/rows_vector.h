// rows.h over the sixteen lanes of simd.h. Included by rows_avx2.cpp and rows_avx512.cpp after their simd header.
#pragma once

#include "kernels/rows_table.h"
#include "kernels/simd.h"

namespace amxt::kernels {
namespace {

constexpr int64_t kStrip = 4 * kLanes;  // four independent chains hide the latency of a sum

// Sum over i of term(i), in an order that `count` alone fixes.
template <typename Term>
inline float sum_over(int64_t count, Term term) {
  F s0 = all(0), s1 = all(0), s2 = all(0), s3 = all(0);
  int64_t i = 0;
  for (; i + kStrip <= count; i += kStrip) {
    s0 = term(s0, i, Whole{});
    s1 = term(s1, i + kLanes, Whole{});
    s2 = term(s2, i + 2 * kLanes, Whole{});
    s3 = term(s3, i + 3 * kLanes, Whole{});
  }
  for_lanes(i, count, [&](int64_t at, auto part) { s0 = term(s0, at, part); });
  return sum((s0 + s1) + (s2 + s3));
}

template <typename E>
inline float inverse_rms_of(int64_t dim, const E* x, float eps) {
  const float squares = sum_over(dim, [&](F total, int64_t i, auto part) {
    const F value = load(x + i, part);
    return fma(value, value, total);
  });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps);
}

template <typename E>
void rms_norm_forward_vector(int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                             float eps, E* y, int64_t ldy, float* inverse_rms) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, y += ldy) {
    const float inverse = inverse_rms_of(dim, x, eps);
    if (inverse_rms) inverse_rms[r] = inverse;
    for_lanes(0, dim, [&](int64_t i, auto part) {
      store(y + i, load(x + i, part) * all(inverse) * load(weight + i, part), part);
    });
  }
}

template <typename E>
void rms_norm_backward_vector(int64_t rows, int64_t dim, const E* x, int64_t ldx, const E* weight,
                              float eps, const float* inverse_rms, const E* dy, int64_t lddy,
                              const E* residual, int64_t ldr, E* dx, int64_t lddx, float* dweight) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, dy += lddy, dx += lddx) {
    const float inverse = inverse_rms ? inverse_rms[r] : inverse_rms_of(dim, x, eps);
    const float dot = sum_over(dim, [&](F total, int64_t i, auto part) {
      return fma(load(dy + i, part) * load(weight + i, part), load(x + i, part), total);
    });
    // The part of the scaled gradient that lies along the normalised row.
    const F along = all(dot * inverse / static_cast<float>(dim));
    const E* kept = residual ? residual + r * ldr : nullptr;
    for_lanes(0, dim, [&](int64_t i, auto part) {
      const F normal = load(x + i, part) * all(inverse), g = load(dy + i, part);
      const F change = fnma(normal, along, g * load(weight + i, part));
      const F base = kept ? load(kept + i, part) : all(0);
      store(dweight + i, fma(g, normal, load(dweight + i, part)), part);
      store(dx + i, fma(all(inverse), change, base), part);
    });
  }
}

template <typename E>
void rope_vector(int64_t rows, int64_t heads, int64_t head_dim, E* x, int64_t ldx,
                 const int32_t* position, const float* cosine, const float* sine, bool inverse) {
  const int64_t half = head_dim / 2;
  const F sign = all(inverse ? -1.0f : 1.0f);
  for (int64_t r = 0; r < rows; ++r) {
    const float* c = cosine + position[r] * half;
    const float* s = sine + position[r] * half;
    for (int64_t h = 0; h < heads; ++h) {
      E* low = x + r * ldx + h * head_dim;
      E* high = low + half;
      for_lanes(0, half, [&](int64_t i, auto part) {
        const F a = load(low + i, part), b = load(high + i, part);
        const F cos = load(c + i, part), sin = load(s + i, part) * sign;
        store(low + i, fnma(b, sin, a * cos), part);
        store(high + i, fma(a, sin, b * cos), part);
      });
    }
  }
}

inline F sigmoid(F x) { return all(1) / (all(1) + exp(all(0) - x)); }

// One expression for both directions: what the backward recomputes has the bits of the forward.
inline F gated(F silu, F up) { return silu * up; }

template <typename E>
void swiglu_forward_vector(int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                           int64_t ldu, E* y, int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r, gate += ldg, up += ldu, y += ldy) {
    for_lanes(0, dim, [&](int64_t i, auto part) {
      const F g = load(gate + i, part);
      store(y + i, gated(g * sigmoid(g), load(up + i, part)), part);
    });
  }
}

template <typename E>
void swiglu_backward_vector(int64_t rows, int64_t dim, const E* gate, int64_t ldg, const E* up,
                            int64_t ldu, const E* dy, int64_t lddy, E* dgate, int64_t lddg, E* dup,
                            int64_t lddu, E* y, int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(0, dim, [&](int64_t i, auto part) {
      const F g = load(gate + r * ldg + i, part), u = load(up + r * ldu + i, part);
      const F d = load(dy + r * lddy + i, part);
      const F s = sigmoid(g), silu = g * s;
      const F slope = s * fma(g, all(1) - s, all(1));
      if (y) store(y + r * ldy + i, gated(silu, u), part);
      store(dgate + r * lddg + i, d * u * slope, part);
      store(dup + r * lddu + i, d * silu, part);
    });
  }
}

template <typename E>
void add_rows_vector(int64_t rows, int64_t dim, const E* a, int64_t lda, const E* b, int64_t ldb,
                     E* y, int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r, a += lda, b += ldb, y += ldy) {
    for_lanes(0, dim, [&](int64_t i, auto part) {
      store(y + i, load(a + i, part) + load(b + i, part), part);
    });
  }
}

template <typename E>
void add_bias_vector(int64_t rows, int64_t dim, E* x, int64_t ldx, const E* bias) {
  add_rows_vector(rows, dim, static_cast<const E*>(x), ldx, bias, 0, x, ldx);
}

template <typename E>
void accumulate_vector(int64_t dim, const E* x, float* sum) {
  for_lanes(0, dim, [&](int64_t i, auto part) {
    store(sum + i, load(sum + i, part) + load(x + i, part), part);
  });
}

template <typename E>
void sum_rows_vector(int64_t rows, int64_t dim, const E* x, int64_t ldx, float* sum) {
  // Four rows a pass: each row is read in order, and a sum is loaded and stored once for four.
  for (; rows >= 4; rows -= 4, x += 4 * ldx) {
    for_lanes(0, dim, [&](int64_t i, auto part) {
      F total = load(sum + i, part);
      for (int64_t r = 0; r < 4; ++r) total = total + load(x + r * ldx + i, part);
      store(sum + i, total, part);
    });
  }
  for (; rows > 0; --rows, x += ldx) accumulate_vector(dim, x, sum);
}

template <typename From, typename To>
void convert_vector(int64_t count, const From* from, To* to) {
  for_lanes(0, count, [&](int64_t i, auto part) { store(to + i, load(from + i, part), part); });
}

constexpr float kInfinity = __builtin_inff();

// -inf in the lanes that a part leaves out.
inline F load_scores(const float* p, Whole) { return load(p); }
inline F load_scores(const float* p, Part part) {
  return select(lanes_between(0, part.n), load(p, part.n), all(-kInfinity));
}

// A NaN does not become the maximum; the sum of exponentials shows it.
inline float largest_of(int64_t n, const float* row, float start) {
  F m0 = all(start), m1 = m0;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    m0 = max(load(row + i), m0);
    m1 = max(load(row + i + kLanes), m1);
  }
  for_lanes(i, n, [&](int64_t at, auto part) { m0 = max(load_scores(row + at, part), m0); });
  return largest(max(m0, m1));
}

void cross_entropy_accumulate_vector(int64_t rows, int64_t n, const float* logits, int64_t ld,
                                     int64_t first, const int32_t* target, float* maximum,
                                     float* sum, float* target_logit) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits + r * ld;
    const float top = largest_of(n, row, maximum[r]);
    const int64_t place = target[r] - first;
    if (place >= 0 && place < n) target_logit[r] = row[place];
    // Without any finite logit yet subtract 0: exp(-inf) counts nothing, and a NaN still shows.
    const float base = top == -kInfinity ? 0 : top;
    const float before = sum[r] * exp_of(maximum[r] - base);
    sum[r] = before + sum_over(n, [&](F total, int64_t i, auto part) {
               return total + exp(load_scores(row + i, part) - all(base));
             });
    maximum[r] = top;
  }
}

template <typename E>
void cross_entropy_gradient_vector(int64_t rows, int64_t n, const float* logits, int64_t ld,
                                   int64_t first, const int32_t* target, const float* lse,
                                   const float* scale, E* d, int64_t ldd) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits + r * ld;
    E* out = d + r * ldd;
    if (scale[r] == 0) {
      for_lanes(0, n, [&](int64_t i, auto part) { store(out + i, all(0), part); });
      continue;
    }
    const int64_t place = target[r] - first;
    const bool here = place >= 0 && place < n;
    const float hot = here ? scale[r] * (exp_of(row[place] - lse[r]) - 1) : 0;
    for_lanes(0, n, [&](int64_t i, auto part) {
      store(out + i, all(scale[r]) * exp(load(row + i, part) - all(lse[r])), part);
    });
    if (here) store(out + place, all(hot), Part{1});
  }
}

template <typename E>
constexpr RowTable<E> row_table() {
  return {rms_norm_forward_vector<E>,
          rms_norm_backward_vector<E>,
          rope_vector<E>,
          swiglu_forward_vector<E>,
          swiglu_backward_vector<E>,
          add_rows_vector<E>,
          add_bias_vector<E>,
          sum_rows_vector<E>,
          accumulate_vector<E>,
          cross_entropy_gradient_vector<E>};
}

constexpr RowTables row_tables() {
  return {row_table<float>(), row_table<bf16>(), convert_vector<float, bf16>,
          convert_vector<bf16, float>, cross_entropy_accumulate_vector};
}

}  // namespace
}  // namespace amxt::kernels
