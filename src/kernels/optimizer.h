// AdamW as torch.optim.AdamW computes it, in one pass over contiguous elements; and the sums that clipping needs. Serial.
#pragma once

#include <bit>
#include <cstdint>

#include "base/bf16.h"
#include "base/cpu.h"

namespace amxt::kernels {

// Per step: p -= lr * weight_decay * p; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
// p -= (lr / bias1) * m / (sqrt(v) / sqrt(bias2) + eps), with g = gradient * gradient_scale (the clip factor),
// bias1 = 1 - beta1^step, bias2 = 1 - beta2^step (computed in double by the caller).
// Hyper-parameters are doubles as in torch: 1 - beta2 of a float beta2 would be off by 1e-5.
struct AdamwStep {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  float gradient_scale = 1;
  double bias_correction1 = 1, bias_correction2 = 1;
};

// Split master weight: fp32 value = bf16 weight (high half, rounded half up) and its 16 low bits: upper = high - (low >> 15).
// A NaN is stored as 0x7FC0 with low 0.
static inline float join_master(bf16 high, uint16_t low);
static inline void split_master(float value, bf16* high, uint16_t* low);

template <typename G>  // float or bf16 gradients
void adamw_split(Isa isa, int64_t count, bf16* weight, uint16_t* low, float* m, float* v,
                 const G* gradient, const AdamwStep& step);
template <typename G>
void adamw_float(Isa isa, int64_t count, float* weight, float* m, float* v, const G* gradient,
                 const AdamwStep& step);

// Sum of squares in double, in a fixed order for a given count; *finite becomes false when an element is not finite.
template <typename G>
double sum_of_squares(Isa isa, int64_t count, const G* values, bool* finite);

static inline float join_master(bf16 high, uint16_t low) {
  const uint32_t upper = static_cast<uint32_t>(high.bits) - (low >> 15);
  return std::bit_cast<float>((upper << 16) | low);
}

static inline void split_master(float value, bf16* high, uint16_t* low) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) {
    *high = bf16{0x7FC0};
    *low = 0;
    return;
  }
  *low = static_cast<uint16_t>(bits);
  *high = bf16{static_cast<uint16_t>((bits >> 16) + (*low >> 15))};
}

}  // namespace amxt::kernels
