#include "kernels/amx_tile_config.h"
#include "kernels/gemm_blocked_tiles.h"

namespace amxt::kernels {
namespace {

// Instructions rather than intrinsics: GCC 12's take a number as text, which a template has not, and do not say what memory they touch.
struct AmxTiles {
  using Memory = char[1024];

  static void configure() {
    const TileConfig config;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { __asm__ volatile("tilerelease"); }
  template <int kTile>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  static void load(const void* from) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(from), "r"(int64_t{64}), "i"(kTile),
                       "m"(*static_cast<const Memory*>(from)));
  }
  template <int kTile>
  static void store(void* to) {
    __asm__ volatile("tilestored %%tmm%c3, (%1,%2,1)"
                     : "=m"(*static_cast<Memory*>(to))
                     : "r"(to), "r"(int64_t{64}), "i"(kTile));
  }
  template <int kSum, int kFirst, int kSecond>
  static void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                     :
                     : "i"(kSum), "i"(kFirst), "i"(kSecond));
  }
};

constinit const BlockedKernel kKernel = tile_kernel<AmxTiles>("blocked-amx");

}  // namespace

const BlockedKernel& blocked_kernel_amx() { return kKernel; }

}  // namespace amxt::kernels
