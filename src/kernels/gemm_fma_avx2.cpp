// 6 x 16 register tile: 12 accumulators, two registers of B, one element of A broadcast at a time.

#include <immintrin.h>

#include "kernels/gemm_fma_kernel.h"

namespace amxt::kernels {
namespace {

constexpr int kRows = 6;
constexpr int kLanes = 8;
constexpr int kColumns = 2 * kLanes;

// Sign bits set in the first `count` lanes.
__m256i first(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int used = count >= kLanes ? kLanes : static_cast<int>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(used), lane);
}

__m256 widen(__m128i half) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

__m256 load(const float* from) { return _mm256_loadu_ps(from); }
__m256 load(const bf16* from) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// The first `count` (< 8) elements, 0 behind them.
__m256 load_some(const float* from, int64_t count) {
  return _mm256_maskload_ps(from, first(count));
}
__m256 load_some(const bf16* from, int64_t count) {
  alignas(16) bf16 some[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i];
  return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(some)));
}

// r[i][j] -> r[j][i]
void transpose(__m256 (&r)[kLanes]) {
  __m256 s[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m256 low = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
    const __m256 high = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
    r[c] = low;
    r[4 + c] = high;
  }
}

// `lanes` columns of a panel, from rows that run along p; zeros from row `count` on. Reads no row
// beyond `lanes`.
template <typename E>
void pack_along(int64_t width, int64_t count, int64_t lanes, int64_t depth, const E* from,
                int64_t ld, float* to) {
  const __m256i kept = first(lanes);
  for (int64_t p = 0; p < depth; p += kLanes) {
    const int64_t left = depth - p;
    __m256 r[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; ++i) {
      const E* at = from + i * ld + p;
      r[i] = i >= count || i >= lanes ? _mm256_setzero_ps()
             : left >= kLanes         ? load(at)
                                      : load_some(at, left);
    }
    transpose(r);
    float* out = to + p * width;
    if (left >= kLanes) {
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) _mm256_maskstore_ps(out + i * width, kept, r[i]);
    } else {
      for (int64_t i = 0; i < left; ++i) _mm256_maskstore_ps(out + i * width, kept, r[i]);
    }
  }
}

// One row of the source is read to its end before the next: it is contiguous, and the panels wait
// in the second-level cache.
template <typename E>
void pack_across(int64_t width, int64_t count, int64_t depth, const E* from, int64_t ld,
                 float* to) {
  for (int64_t p = 0; p < depth; ++p) {
    const E* row = from + p * ld;
    for (int64_t i = 0; i < count; i += width) {
      float* out = to + i * depth + p * width;
      for (int64_t lane = 0; lane < width; lane += kLanes) {
        const int64_t left = count - i - lane, lanes = width - lane;
        const int64_t used = left < lanes ? left : lanes;
        const __m256 values = left >= kLanes ? load(row + i + lane)
                              : used > 0     ? load_some(row + i + lane, used)
                                             : _mm256_setzero_ps();
        if (lanes >= kLanes) {
          _mm256_storeu_ps(out + lane, values);
        } else {
          _mm256_maskstore_ps(out + lane, first(lanes), values);
        }
      }
    }
  }
}

template <typename E>
void pack(Lay lay, int64_t width, int64_t count, int64_t depth, const E* from, int64_t ld,
          float* to) {
  if (lay == Lay::kAcross) return pack_across(width, count, depth, from, ld, to);
  for (int64_t i = 0; i < count; i += width) {
    for (int64_t lane = 0; lane < width; lane += kLanes) {
      const int64_t lanes = width - lane < kLanes ? width - lane : kLanes;
      pack_along(width, count - i - lane, lanes, depth, from + (i + lane) * ld, ld,
                 to + i * depth + lane);
    }
  }
}

template <int kUsed>
void tile_of(int64_t columns_used, int64_t depth, const float* a, const float* b, float* c,
             int64_t ldc, bool from_zero) {
  __m256 sum[kUsed][2];
  const bool whole = columns_used == kColumns;
  const __m256i mask[2] = {first(columns_used),
                           first(columns_used > kLanes ? columns_used - kLanes : 0)};
#pragma GCC unroll 6
  for (int i = 0; i < kUsed; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const float* at = c + i * ldc + v * kLanes;
      sum[i][v] = from_zero ? _mm256_setzero_ps()
                  : whole   ? _mm256_loadu_ps(at)
                            : _mm256_maskload_ps(at, mask[v]);
    }
  }
  for (int64_t p = 0; p < depth; ++p) {
    const __m256 low = _mm256_loadu_ps(b), high = _mm256_loadu_ps(b + kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kUsed; ++i) {
      const __m256 row = _mm256_broadcast_ss(a + i);
      sum[i][0] = _mm256_fmadd_ps(row, low, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(row, high, sum[i][1]);
    }
    a += kRows;
    b += kColumns;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kUsed; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      float* at = c + i * ldc + v * kLanes;
      if (whole) {
        _mm256_storeu_ps(at, sum[i][v]);
      } else {
        _mm256_maskstore_ps(at, mask[v], sum[i][v]);
      }
    }
  }
}

void tile(int64_t rows_used, int64_t columns_used, int64_t depth, const float* a, const float* b,
          float* c, int64_t ldc, bool from_zero) {
  constexpr decltype(&tile_of<1>) kTiles[kRows] = {tile_of<1>, tile_of<2>, tile_of<3>,
                                                   tile_of<4>, tile_of<5>, tile_of<6>};
  kTiles[rows_used - 1](columns_used, depth, a, b, c, ldc, from_zero);
}

void round(int64_t count, const float* from, bf16* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    const __m256 values = left >= kLanes ? load(from + i) : load_some(from + i, left);
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i rounded = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    const __m128i half =
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    alignas(16) bf16 some[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(some), half);
    for (int64_t lane = 0; lane < (left < kLanes ? left : kLanes); ++lane)
      to[i + lane] = some[lane];
  }
}

}  // namespace

const FmaKernel& fma_kernel_avx2() {
  static constexpr FmaKernel kKernel = {.name = "fma-avx2",
                                        .rows = kRows,
                                        .columns = kColumns,
                                        .block_rows = 24 * kRows,
                                        .block_columns = 16 * kColumns,
                                        .depth = 256,
                                        .pack_float = pack<float>,
                                        .pack_bf16 = pack<bf16>,
                                        .tile = tile,
                                        .round = round};
  return kKernel;
}

}  // namespace amxt::kernels
