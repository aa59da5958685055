// 14 x 32 register tile: 28 accumulators, two registers of B, one element of A broadcast at a time.

#include <immintrin.h>

#include "kernels/gemm_fma_kernel.h"

namespace amxt::kernels {
namespace {

constexpr int kRows = 14;
constexpr int kLanes = 16;
constexpr int kColumns = 2 * kLanes;

__mmask16 first(int64_t count) {
  return count >= kLanes ? static_cast<__mmask16>(0xFFFF)
                         : static_cast<__mmask16>((1u << count) - 1u);
}

__mmask16 first_or_none(int64_t count) {
  return count > 0 ? first(count) : static_cast<__mmask16>(0);
}

__m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
__m512 load(const bf16* from, __mmask16 mask) {
  const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// r[i][j] -> r[j][i]
void transpose(__m512 (&r)[kLanes]) {
  __m512 s[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    r[i] = _mm512_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(s[i], s[i + 2], 0xEE);
    r[i + 2] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
  }
  // r[4 a + c] now holds column 4 q + c of rows 4 a .. 4 a + 3 in its quarter q.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    s[c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
    s[4 + c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xDD);
    s[8 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    s[12 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xDD);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm512_shuffle_f32x4(s[c], s[8 + c], 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(s[c], s[8 + c], 0xDD);
    r[4 + c] = _mm512_shuffle_f32x4(s[4 + c], s[12 + c], 0x88);
    r[12 + c] = _mm512_shuffle_f32x4(s[4 + c], s[12 + c], 0xDD);
  }
}

// `lanes` columns of a panel, from rows that run along p; zeros from row `count` on. Reads no row
// beyond `lanes`.
template <typename E>
void pack_along(int64_t width, int64_t count, int64_t lanes, int64_t depth, const E* from,
                int64_t ld, float* to) {
  const __mmask16 kept = first(lanes);
  for (int64_t p = 0; p < depth; p += kLanes) {
    const __mmask16 mask = first(depth - p);
    __m512 r[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      r[i] = i < count && i < lanes ? load(from + i * ld + p, mask) : _mm512_setzero_ps();
    }
    transpose(r);
    float* out = to + p * width;
    if (depth - p >= kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) _mm512_mask_storeu_ps(out + i * width, kept, r[i]);
    } else {
      for (int64_t i = 0; i < depth - p; ++i) _mm512_mask_storeu_ps(out + i * width, kept, r[i]);
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
        const __m512 values = load(row + i + lane, first_or_none(count - i - lane));
        _mm512_mask_storeu_ps(out + lane, first(width - lane), values);
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

template <int kUsed, int kVectors>
void tile_of(int64_t depth, const float* a, const float* b, float* c, int64_t ldc, __mmask16 last,
             bool from_zero) {
  __m512 sum[kUsed][kVectors];
#pragma GCC unroll 14
  for (int i = 0; i < kUsed; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __mmask16 mask = v + 1 == kVectors ? last : static_cast<__mmask16>(0xFFFF);
      sum[i][v] =
          from_zero ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, c + i * ldc + v * kLanes);
    }
  }
  for (int64_t p = 0; p < depth; ++p) {
    __m512 column[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) column[v] = _mm512_loadu_ps(b + v * kLanes);
#pragma GCC unroll 14
    for (int i = 0; i < kUsed; ++i) {
      const __m512 row = _mm512_set1_ps(a[i]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_fmadd_ps(row, column[v], sum[i][v]);
    }
    a += kRows;
    b += kColumns;
  }
#pragma GCC unroll 14
  for (int i = 0; i < kUsed; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __mmask16 mask = v + 1 == kVectors ? last : static_cast<__mmask16>(0xFFFF);
      _mm512_mask_storeu_ps(c + i * ldc + v * kLanes, mask, sum[i][v]);
    }
  }
}

using Tile = void (*)(int64_t, const float*, const float*, float*, int64_t, __mmask16, bool);
constexpr Tile kTiles[2][kRows] = {
    {tile_of<1, 1>, tile_of<2, 1>, tile_of<3, 1>, tile_of<4, 1>, tile_of<5, 1>, tile_of<6, 1>,
     tile_of<7, 1>, tile_of<8, 1>, tile_of<9, 1>, tile_of<10, 1>, tile_of<11, 1>, tile_of<12, 1>,
     tile_of<13, 1>, tile_of<14, 1>},
    {tile_of<1, 2>, tile_of<2, 2>, tile_of<3, 2>, tile_of<4, 2>, tile_of<5, 2>, tile_of<6, 2>,
     tile_of<7, 2>, tile_of<8, 2>, tile_of<9, 2>, tile_of<10, 2>, tile_of<11, 2>, tile_of<12, 2>,
     tile_of<13, 2>, tile_of<14, 2>}};

void tile(int64_t rows_used, int64_t columns_used, int64_t depth, const float* a, const float* b,
          float* c, int64_t ldc, bool from_zero) {
  const int two = columns_used > kLanes ? 1 : 0;
  kTiles[two][rows_used - 1](depth, a, b, c, ldc, first(columns_used - two * kLanes), from_zero);
}

void round(int64_t count, const float* from, bf16* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = first(count - i);
    const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, from + i));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan =
        _mm512_cmp_ps_mask(_mm512_castsi512_ps(bits), _mm512_castsi512_ps(bits), _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    const __m512i rounded = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, up, quiet), 16);
    _mm256_mask_storeu_epi16(to + i, mask, _mm512_cvtepi32_epi16(rounded));
  }
}

}  // namespace

const FmaKernel& fma_kernel_avx512() {
  static constexpr FmaKernel kKernel = {.name = "fma-avx512",
                                        .rows = kRows,
                                        .columns = kColumns,
                                        .block_rows = 18 * kRows,
                                        .block_columns = 16 * kColumns,
                                        .depth = 256,
                                        .pack_float = pack<float>,
                                        .pack_bf16 = pack<bf16>,
                                        .tile = tile,
                                        .round = round};
  return kKernel;
}

}  // namespace amxt::kernels
