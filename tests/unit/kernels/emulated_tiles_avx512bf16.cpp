#include "kernels/gemm_blocked_tiles.h"
#include "unit/kernels/emulated_tiles.h"

namespace amxt::kernels {
namespace {

struct Tile {
  alignas(64) unsigned char bytes[16][64];
};
thread_local Tile tiles[8];
thread_local bool configured = false;

float flushed(float value) { return __builtin_fabsf(value) < 0x1p-126f ? value * 0.0f : value; }

float float_at(const unsigned char* at) {
  float value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}
float bf16_at(const unsigned char* at) {
  bf16 value;
  __builtin_memcpy(&value, at, sizeof value);
  return flushed(to_float(value));
}

// What the instructions do, as their manual says it; using tiles that are not configured traps.
struct EmulatedTiles {
  static void configure() {
    for (Tile& tile : tiles) __builtin_memset(tile.bytes, 0, sizeof tile.bytes);
    configured = true;
  }
  static void release() { configured = false; }
  static Tile& tile(int number) {
    if (!configured) __builtin_trap();
    return tiles[number];
  }
  template <int kTile>
  static void zero() {
    __builtin_memset(tile(kTile).bytes, 0, sizeof(Tile));
  }
  template <int kTile>
  static void load(const void* from) {
    __builtin_memcpy(tile(kTile).bytes, from, sizeof(Tile));
  }
  template <int kTile>
  static void store(void* to) {
    __builtin_memcpy(to, tile(kTile).bytes, sizeof(Tile));
  }
  // Two chains from zero, of the even and of the odd elements, are added up and then added to the sum. Denormals count as zero everywhere.
  template <int kSum, int kFirst, int kSecond>
  static void multiply_add() {
    Tile& sum = tile(kSum);
    const Tile &first = tile(kFirst), &second = tile(kSecond);
    for (int m = 0; m < 16; ++m) {
      float even[16] = {}, odd[16] = {};
      for (int pair = 0; pair < 16; ++pair) {
        const float a0 = bf16_at(&first.bytes[m][pair * 4]),
                    a1 = bf16_at(&first.bytes[m][pair * 4 + 2]);
        for (int n = 0; n < 16; ++n) {
          even[n] = flushed(__builtin_fmaf(a0, bf16_at(&second.bytes[pair][n * 4]), even[n]));
          odd[n] = flushed(__builtin_fmaf(a1, bf16_at(&second.bytes[pair][n * 4 + 2]), odd[n]));
        }
      }
      for (int n = 0; n < 16; ++n) {
        unsigned char* const at = &sum.bytes[m][n * 4];
        const float total = flushed(flushed(float_at(at)) + flushed(even[n] + odd[n]));
        __builtin_memcpy(at, &total, sizeof total);
      }
    }
  }
};

constinit const BlockedKernel kKernel = tile_kernel<EmulatedTiles>("blocked-amx, emulated");

}  // namespace

const BlockedKernel& blocked_kernel_emulated() { return kKernel; }

}  // namespace amxt::kernels
