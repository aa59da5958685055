// Sixteen lanes in one AVX-512 register. See simd.h for the interface; only *_avx512.cpp includes this file.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace amxt::kernels {
namespace {

constexpr int kLanes = 16;
// The register tile of matrix products: rows x vectors accumulators, of 32 registers.
constexpr int kTileRows = 6, kTileVectors = 4;

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};
struct M {
  __mmask16 v;
};
struct D {
  __m512d a, b;
};

inline __mmask16 below(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline F all(float x) { return {_mm512_set1_ps(x)}; }
inline I all_bits(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(below(n), p)}; }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, below(n), x.v); }
inline I load16(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline I load16(const uint16_t* p, int64_t n) {
  return {_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(below(n), p))};
}
inline void store16(uint16_t* p, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x.v));
}
inline void store16(uint16_t* p, I x, int64_t n) {
  _mm256_mask_storeu_epi16(p, below(n), _mm512_cvtepi32_epi16(x.v));
}

inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }

inline I bits(F a) { return {_mm512_castps_si512(a.v)}; }
inline F floats(I a) { return {_mm512_castsi512_ps(a.v)}; }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I operator&(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I operator|(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
inline I left(I a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
inline I right(I a) {
  return {_mm512_srli_epi32(a.v, n)};
}
inline I max_unsigned(I a, I b) { return {_mm512_max_epu32(a.v, b.v)}; }
inline uint32_t largest_unsigned(I a) { return _mm512_reduce_max_epu32(a.v); }

inline M is_nan(F a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline M lanes_between(int64_t low, int64_t high) {
  const int64_t from = low < 0 ? 0 : (low > 16 ? 16 : low);
  const int64_t to = high < from ? from : (high > 16 ? 16 : high);
  return {static_cast<__mmask16>(below(to) & ~below(from))};
}
inline F select(M m, F yes, F no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
inline I select(M m, I yes, I no) { return {_mm512_mask_blend_epi32(m.v, no.v, yes.v)}; }

inline float sum(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float largest(F a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
inline float first(F a) { return _mm512_cvtss_f32(a.v); }

// a * 2^n for whole n, rounded once.
inline F scale_by_power(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }

inline D zero_doubles() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
inline D add_squares(D sums, F x) {
  const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(x.v));
  const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1));
  return {_mm512_fmadd_pd(a, a, sums.a), _mm512_fmadd_pd(b, b, sums.b)};
}
inline D operator+(D x, D y) { return {_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)}; }
inline double sum(D x) {
  const __m512d e = _mm512_add_pd(x.a, x.b);
  const __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(e), _mm512_extractf64x4_pd(e, 1));
  const __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
  return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

// Rows become columns.
inline void transpose(F (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {  // 2 x 2 within each 4 x 4
    const __m512 a = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    const __m512 b = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    const __m512 c = _mm512_unpacklo_ps(r[i + 2].v, r[i + 3].v);
    const __m512 d = _mm512_unpackhi_ps(r[i + 2].v, r[i + 3].v);
    t[i] = _mm512_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm512_shuffle_ps(a, c, 0xEE);
    t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm512_shuffle_ps(b, d, 0xEE);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {  // 4 x 4 of the blocks
    const __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xDD);
    const __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xDD);
    r[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xDD);
    r[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xDD);
  }
}

}  // namespace
}  // namespace amxt::kernels

#include "kernels/simd.h"
