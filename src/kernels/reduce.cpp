#include "kernels/reduce.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "base/bf16.h"

namespace amxt::kernels {
namespace {

// How 8 elements of a type become 8 floats and back.
struct F32 {
  using T = float;
  static __m256 load(const T* p) { return _mm256_loadu_ps(p); }
  static void store(T* p, __m256 v) { _mm256_storeu_ps(p, v); }
  static void stream(T* p, __m256 v) {
    _mm_stream_ps(p, _mm256_castps256_ps128(v));
    _mm_stream_ps(p + 4, _mm256_extractf128_ps(v, 1));
  }
};

struct BF16 {
  using T = uint16_t;
  static __m256 load(const T* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static __m128i round(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
  static void store(T* p, __m256 v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round(v)); }
  static void stream(T* p, __m256 v) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), round(v)); }
};

struct F16 {
  using T = uint16_t;
  static __m256 load(const T* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static __m128i round(__m256 v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  static void store(T* p, __m256 v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round(v)); }
  static void stream(T* p, __m256 v) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), round(v)); }
};

template <ReduceOp op>
__m256 combine(__m256 a, __m256 b) {
  if constexpr (op == ReduceOp::kMax || op == ReduceOp::kMin) {
    // The instruction gives b when either is a NaN: a's is put back, so that a NaN of either side stays.
    const __m256 best = op == ReduceOp::kMax ? _mm256_max_ps(a, b) : _mm256_min_ps(a, b);
    return _mm256_blendv_ps(best, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  } else {
    return _mm256_add_ps(a, b);
  }
}

constexpr int64_t kBlock = 32;  // four registers of sums hide the latency of an addition

template <typename Type, ReduceOp op, bool around>
void reduce_block(const typename Type::T* const* from, int sources, int64_t at, __m256 divisor,
                  typename Type::T* to) {
  __m256 a[4];
  for (int j = 0; j < 4; ++j) a[j] = Type::load(from[0] + at + 8 * j);
  for (int s = 1; s < sources; ++s) {
    for (int j = 0; j < 4; ++j) a[j] = combine<op>(a[j], Type::load(from[s] + at + 8 * j));
  }
  for (int j = 0; j < 4; ++j) {
    if constexpr (op == ReduceOp::kAvg) a[j] = _mm256_div_ps(a[j], divisor);
    if constexpr (around) {
      Type::stream(to + 8 * j, a[j]);
    } else {
      Type::store(to + 8 * j, a[j]);
    }
  }
}

template <typename Type, ReduceOp op, bool around>
void reduce_floats(const void* const* from, int sources, int64_t divisor, int64_t count, void* to) {
  using T = typename Type::T;
  const auto* const* const arrays = reinterpret_cast<const T* const*>(from);
  T* const result = static_cast<T*>(to);
  const __m256 by = _mm256_set1_ps(static_cast<float>(divisor));
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock)
    reduce_block<Type, op, around>(arrays, sources, i, by, result + i);
  if (i == count) return;
  // The rest, source by source in a padded block, so that its arithmetic is the same.
  const auto bytes = static_cast<size_t>(count - i) * sizeof(T);
  T sum[kBlock] = {}, next[kBlock] = {};
  float wide[kBlock];
  std::memcpy(sum, arrays[0] + i, bytes);
  for (int j = 0; j < 4; ++j) _mm256_storeu_ps(wide + 8 * j, Type::load(sum + 8 * j));
  for (int s = 1; s < sources; ++s) {
    std::memcpy(next, arrays[s] + i, bytes);
    for (int j = 0; j < 4; ++j) {
      _mm256_storeu_ps(wide + 8 * j,
                       combine<op>(_mm256_loadu_ps(wide + 8 * j), Type::load(next + 8 * j)));
    }
  }
  for (int j = 0; j < 4; ++j) {
    __m256 v = _mm256_loadu_ps(wide + 8 * j);
    if constexpr (op == ReduceOp::kAvg) v = _mm256_div_ps(v, by);
    Type::store(sum + 8 * j, v);
  }
  std::memcpy(result + i, sum, bytes);
}

template <typename T, ReduceOp op>
void reduce_integers(const void* const* from, int sources, int64_t divisor, int64_t count,
                     void* to) {
  // Wide enough for the average of the narrow ones; wraps around in two's complement.
  using Wide = std::conditional_t<op == ReduceOp::kAvg, uint64_t, std::make_unsigned_t<T>>;
  const auto* const* const arrays = reinterpret_cast<const T* const*>(from);
  T* const result = static_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) {
    T best = arrays[0][i];
    auto sum = static_cast<Wide>(best);
    for (int s = 1; s < sources; ++s) {
      const T value = arrays[s][i];
      sum = static_cast<Wide>(sum + static_cast<Wide>(value));
      if constexpr (op == ReduceOp::kMax) best = value > best ? value : best;
      if constexpr (op == ReduceOp::kMin) best = value < best ? value : best;
    }
    if constexpr (op == ReduceOp::kSum) best = static_cast<T>(sum);
    if constexpr (op == ReduceOp::kAvg) best = static_cast<T>(static_cast<int64_t>(sum) / divisor);
    result[i] = best;
  }
}

template <ReduceOp op>
void reduce_of(DType dtype, const void* const* from, int sources, int64_t divisor, int64_t count,
               void* to, bool around) {
  // Streaming stores of 16 bytes need an address that is a multiple of it.
  const bool stream = around && reinterpret_cast<uintptr_t>(to) % 16 == 0;
  switch (dtype) {
    case DType::kF32:
      return stream ? reduce_floats<F32, op, true>(from, sources, divisor, count, to)
                    : reduce_floats<F32, op, false>(from, sources, divisor, count, to);
    case DType::kBF16:
      return stream ? reduce_floats<BF16, op, true>(from, sources, divisor, count, to)
                    : reduce_floats<BF16, op, false>(from, sources, divisor, count, to);
    case DType::kF16:
      return stream ? reduce_floats<F16, op, true>(from, sources, divisor, count, to)
                    : reduce_floats<F16, op, false>(from, sources, divisor, count, to);
    case DType::kI32:
      return reduce_integers<int32_t, op>(from, sources, divisor, count, to);
    case DType::kI64:
      return reduce_integers<int64_t, op>(from, sources, divisor, count, to);
    default:
      return reduce_integers<uint8_t, op>(from, sources, divisor, count, to);
  }
}

}  // namespace

void reduce(DType dtype, ReduceOp op, const void* const* from, int sources, int64_t divisor,
            int64_t count, void* to, bool around) {
  switch (op) {
    case ReduceOp::kSum:
      return reduce_of<ReduceOp::kSum>(dtype, from, sources, divisor, count, to, around);
    case ReduceOp::kMax:
      return reduce_of<ReduceOp::kMax>(dtype, from, sources, divisor, count, to, around);
    case ReduceOp::kMin:
      return reduce_of<ReduceOp::kMin>(dtype, from, sources, divisor, count, to, around);
    case ReduceOp::kAvg:
      return reduce_of<ReduceOp::kAvg>(dtype, from, sources, divisor, count, to, around);
  }
}

void stream_copy(void* to, const void* from, int64_t bytes) {
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  const auto head = std::min<int64_t>(
      bytes, static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(target) % 16) % 16));
  std::memcpy(target, source, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    for (int j = 0; j < 64; j += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + i + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i + j)));
    }
  }
  std::memcpy(target + i, source + i, static_cast<size_t>(bytes - i));
}

void stream_fence() { _mm_sfence(); }

}  // namespace amxt::kernels
