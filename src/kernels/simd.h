// What kernels are written over: sixteen lanes whatever the instruction set, so that both give the same bits.
//
// simd_avx2.h and simd_avx512.h give the types F (floats), I (32-bit integers), M (mask), D (doubles) and the operations on them;
// each includes this file for what needs no instruction of its own. Everything is in an anonymous namespace: the files
// that include it are compiled with different flags, and no function may be shared between them.
//
//   load(p), load(p, n)   sixteen, or the first n < 16 with zeros after them; nothing beyond is touched. So too store.
//   max(a, b), min(a, b)  b where either is NaN
//   sum, largest          over the lanes, halving: i with i + 8, + 4, + 2, + 1
//   fma(a, b, c), fnma    a b + c and c - a b, rounded once
#pragma once

#include "base/bf16.h"

namespace amxt::kernels {
namespace {

inline const uint16_t* words(const bf16* p) { return reinterpret_cast<const uint16_t*>(p); }
inline uint16_t* words(bf16* p) { return reinterpret_cast<uint16_t*>(p); }

inline F load(const bf16* p) { return floats(left<16>(load16(words(p)))); }
inline F load(const bf16* p, int64_t n) { return floats(left<16>(load16(words(p), n))); }

// To nearest even in the low half of each lane; a NaN stays a quiet NaN.
inline I round_to_bf16(F x) {
  const I b = bits(x);
  const I upper = right<16>(b);
  const I rounded = right<16>(b + all_bits(0x7FFF) + (upper & all_bits(1)));
  return select(is_nan(x), upper | all_bits(0x40), rounded);
}
inline void store(bf16* p, F x) { store16(words(p), round_to_bf16(x)); }
inline void store(bf16* p, F x, int64_t n) { store16(words(p), round_to_bf16(x), n); }

// A whole vector, or the first n lanes at the end of a row.
struct Whole {};
struct Part {
  int64_t n;
};

template <typename T>
inline F load(const T* p, Whole) {
  return load(p);
}
template <typename T>
inline F load(const T* p, Part part) {
  return load(p, part.n);
}
template <typename T>
inline void store(T* p, F x, Whole) {
  store(p, x);
}
template <typename T>
inline void store(T* p, F x, Part part) {
  store(p, x, part.n);
}
inline I load16(const uint16_t* p, Whole) { return load16(p); }
inline I load16(const uint16_t* p, Part part) { return load16(p, part.n); }
inline void store16(uint16_t* p, I x, Whole) { store16(p, x); }
inline void store16(uint16_t* p, I x, Part part) { store16(p, x, part.n); }

// body(i, Whole or Part) for each vector of [from, count).
template <typename Body>
inline void for_lanes(int64_t from, int64_t count, Body body) {
  int64_t i = from;
  for (; i + kLanes <= count; i += kLanes) body(i, Whole{});
  if (i < count) body(i, Part{count - i});
}

// e^x within 1 ulp: 2^n e^r with |r| <= ln(2) / 2. The polynomial is the one of least relative error (3e-9) that starts with
// 1 + r. Denormal results are exact, beyond them 0 and infinity; NaN stays NaN.
inline F exp(F x) {
  x = min(all(89.0f), max(all(-104.0f), x));
  const F magic = all(0x1.8p23f);  // a float this large has no fraction: adding it rounds
  const F n = fma(x, all(0x1.715476p0f), magic) - magic;
  const F r = fnma(n, all(-0x1.05c610p-29f), fnma(n, all(0x1.62e430p-1f), x));
  F q = fma(r, all(0x1.6a241ap-10f), all(0x1.1239f2p-7f));
  q = fma(q, r, all(0x1.5558f2p-5f));
  q = fma(q, r, all(0x1.555492p-3f));
  q = fma(q, r, all(0x1.fffffcp-2f));
  return scale_by_power(all(1) + fma(q, r * r, r), n);
}

inline float exp_of(float x) { return first(exp(all(x))); }

}  // namespace
}  // namespace amxt::kernels
