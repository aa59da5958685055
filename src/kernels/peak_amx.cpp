#include <immintrin.h>

#include "kernels/amx_tile_config.h"
#include "kernels/peak_kernel.h"

namespace amxt::kernels {
// 2 x 2 tiles of C, two of A and two of B: one tile loaded from the cache for each product.
double peak_bf16_amx(const void* data, int64_t rounds, float* sink) {
  constexpr int64_t kTile = 1024, kStep = 4 * kTile, kSteps = kPeakBytes / kStep;
  TileConfig config;
  // GCC 12 takes _tile_loadconfig for something that reads no memory, and drops the stores that
  // fill the structure.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t round = 0; round < rounds; ++round) {
    const char* at = static_cast<const char*>(data);
    for (int64_t step = 0; step < kSteps; ++step, at += kStep) {
      _tile_loadd(6, at, 64);
      _tile_loadd(4, at + kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, at + 2 * kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, at + 3 * kTile, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  alignas(64) float tile[256];
  _tile_stored(0, tile, 64);
  *sink += tile[0];
  _tile_stored(3, tile, 64);
  *sink += tile[255];
  _tile_release();
  return 2.0 * 16 * 16 * 32 * 4 * static_cast<double>(kSteps) * static_cast<double>(rounds);
}

}  // namespace amxt::kernels
