// bfloat16 as its 16 bits: the upper half of a float32. Rounding is to nearest even; a NaN stays a quiet NaN.
#pragma once

#include <bit>
#include <cstdint>

namespace amxt {

struct bf16 {
  uint16_t bits;
};

static inline float to_float(float value) { return value; }
static inline float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

static inline bf16 to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return bf16{static_cast<uint16_t>((bits >> 16) | 0x0040)};
  return bf16{static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

template <typename T>
static inline T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline bf16 from_float<bf16>(float value) {
  return to_bf16(value);
}

}  // namespace amxt
