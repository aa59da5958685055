// optimizer.h over the sixteen lanes of simd.h. Included by optimizer_avx2.cpp and optimizer_avx512.cpp after their simd header.
//
// The end of an array goes through the same vector code with lanes left out, so that an element's bits never depend on
// its place: ranks that own different ranges agree.
#pragma once

#include "kernels/optimizer_table.h"
#include "kernels/simd.h"

namespace amxt::kernels {
namespace {

// The master weight of a split pair, and back: see split_master().
inline F join(I high, I low) { return floats(left<16>(high - right<15>(low)) | low); }

inline void split(F value, I* high, I* low) {
  const M nan = is_nan(value);
  const I b = bits(value);
  *low = select(nan, all_bits(0), b & all_bits(0xFFFF));
  *high = select(nan, all_bits(0x7FC0), right<16>(b) + right<15>(*low));
}

// New weights of sixteen elements; the moments are updated in place. One line per rounding of torch.
template <typename W>
inline F adamw_lanes(F weight, float* m, float* v, F g, const AdamwFactors& by, W part) {
  const F m0 = load(m, part), rise = g - m0;
  // torch.lerp starts from the nearer end.
  const F m1 = by.toward < 0.5f ? fma(all(by.toward), rise, m0) : fma(all(by.toward - 1), rise, g);
  const F v1 = load(v, part) * all(by.keep) + all(by.square_weight) * g * g;
  store(m, m1, part);
  store(v, v1, part);
  const F denominator = sqrt(v1) / all(by.root_bias2) + all(by.epsilon);
  return weight * all(by.decay) + all(by.step_size) * m1 / denominator;
}

template <typename G>
void adamw_split_vector(int64_t count, bf16* weight, uint16_t* low, float* m, float* v,
                        const G* gradient, const AdamwFactors& factors) {
  const AdamwFactors by = factors;
  for_lanes(0, count, [&](int64_t i, auto part) {
    I high_half = load16(words(weight) + i, part), low_half = load16(low + i, part);
    const F g = load(gradient + i, part) * all(by.gradient_scale);
    split(adamw_lanes(join(high_half, low_half), m + i, v + i, g, by, part), &high_half, &low_half);
    store16(words(weight) + i, high_half, part);
    store16(low + i, low_half, part);
  });
}

template <typename G>
void adamw_float_vector(int64_t count, float* weight, float* m, float* v, const G* gradient,
                        const AdamwFactors& factors) {
  const AdamwFactors by = factors;
  for_lanes(0, count, [&](int64_t i, auto part) {
    const F g = load(gradient + i, part) * all(by.gradient_scale);
    store(weight + i, adamw_lanes(load(weight + i, part), m + i, v + i, g, by, part), part);
  });
}

template <typename G>
double sum_of_squares_vector(int64_t count, const G* values, bool* finite) {
  D s0 = zero_doubles(), s1 = s0;
  I top = all_bits(0);  // largest magnitude as an integer: infinity and NaN are the largest
  const I magnitude = all_bits(0x7FFFFFFF);
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    const F a = load(values + i), b = load(values + i + kLanes);
    top = max_unsigned(top, max_unsigned(bits(a) & magnitude, bits(b) & magnitude));
    s0 = add_squares(s0, a);
    s1 = add_squares(s1, b);
  }
  for_lanes(i, count, [&](int64_t at, auto part) {
    const F a = load(values + at, part);
    top = max_unsigned(top, bits(a) & magnitude);
    s0 = add_squares(s0, a);
  });
  if (largest_unsigned(top) >= 0x7F800000) *finite = false;
  return sum(s0 + s1);
}

template <typename G>
constexpr OptimizerTable<G> optimizer_table() {
  return {adamw_split_vector<G>, adamw_float_vector<G>, sum_of_squares_vector<G>};
}

constexpr OptimizerTables optimizer_tables() {
  return {optimizer_table<float>(), optimizer_table<bf16>()};
}

}  // namespace
}  // namespace amxt::kernels
