// The backend of gemm_blocked_scheme.h over tiles: 2 x 2 tiles of sums (0-3), two tiles of the first operand (4, 5) and two of the second
// (6, 7), one loaded for each product.
//
// The calls overlap: the sums of one are stored between the first products of the next, so that the multiplier waits for neither
// (on 2 cores with AMX +6 to +14%).
//
// Tiles: configure(), release(), and for a tile number zero<t>(), load<t>(from), store<t>(to), multiply_add<sum, first, second>(); a tile
// is 16 rows of 64 bytes, one after the other.
#pragma once

#include "kernels/gemm_blocked_pack.h"
#include "kernels/gemm_blocked_store.h"
//
#include "kernels/gemm_blocked_scheme.h"

namespace amxt::kernels {
namespace {

template <typename Tiles, int64_t kMPanels, int64_t kNPanels>
class TileProducts {
 public:
  static constexpr BlockSides kSides{kMPanels, kNPanels};

  TileProducts() { Tiles::configure(); }
  ~TileProducts() { Tiles::release(); }
  TileProducts(const TileProducts&) = delete;
  TileProducts& operator=(const TileProducts&) = delete;

  void multiply(const bf16* a, const bf16* b, int64_t steps, bool from_zero, float* sums,
                Ahead ahead) {
    if (from_zero) {
      first_step<true>(a, b, sums, ahead);
    } else {
      first_step<false>(a, b, sums, ahead);
    }
    for (int64_t step = 1; step < steps; ++step) {
      a += kBlock;
      b += kBlock;
      advance(&ahead);
      Tiles::template load<6>(b);
      Tiles::template load<4>(a);
      Tiles::template multiply_add<0, 4, 6>();
      ask_first(ahead);
      Tiles::template load<7>(b + kTile);
      Tiles::template multiply_add<1, 4, 7>();
      Tiles::template load<5>(a + kTile);
      Tiles::template multiply_add<2, 5, 6>();
      ask<kAheadSecond>(ahead.second);
      Tiles::template multiply_add<3, 5, 7>();
    }
    unstored_ = sums;
  }

  void finish() {
    Tiles::template store<0>(unstored_);
    Tiles::template store<1>(unstored_ + 256);
    Tiles::template store<2>(unstored_ + 512);
    Tiles::template store<3>(unstored_ + 768);
  }

 private:
  static constexpr int64_t kTile = 512;  // bf16
  // Lines a step: a call's part of the next group and of the next panel, or of where its sums go.
  static constexpr int kAheadFirst = 32 / kNPanels, kAheadSecond = 32 / kMPanels;
  static constexpr int kAheadResult = 64 / kGroupSteps;

  template <int kLines>
  static void ask(const void* from) {
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) {
      _mm_prefetch(lines_behind(from, i), _MM_HINT_T1);
    }
  }
  static void ask_first(const Ahead& ahead) {
    if (ahead.result != nullptr) {
      ask<kAheadResult>(ahead.result);
    } else {
      ask<kAheadFirst>(ahead.first);
    }
  }
  static void advance(Ahead* ahead) {
    ahead->first += kAheadFirst * kLine;
    ahead->second += kAheadSecond * kLine;
    if (ahead->result != nullptr) ahead->result = lines_behind(ahead->result, kAheadResult);
  }

  // Stores what is left of the call before from this tile, and begins with it.
  template <int kSum, bool kFromZero>
  void begin(const float* sums) {
    Tiles::template store<kSum>(unstored_ + kSum * 256);
    if constexpr (kFromZero) {
      Tiles::template zero<kSum>();
    } else {
      Tiles::template load<kSum>(sums + kSum * 256);
    }
  }

  template <bool kFromZero>
  void first_step(const bf16* a, const bf16* b, const float* sums, Ahead ahead) {
    Tiles::template load<6>(b);
    Tiles::template load<4>(a);
    ask_first(ahead);
    begin<0, kFromZero>(sums);
    Tiles::template multiply_add<0, 4, 6>();
    Tiles::template load<7>(b + kTile);
    begin<1, kFromZero>(sums);
    Tiles::template multiply_add<1, 4, 7>();
    Tiles::template load<5>(a + kTile);
    begin<2, kFromZero>(sums);
    Tiles::template multiply_add<2, 5, 6>();
    ask<kAheadSecond>(ahead.second);
    begin<3, kFromZero>(sums);
    Tiles::template multiply_add<3, 5, 7>();
  }

  alignas(64) float nothing_[1024];  // where the tiles go before the first call
  float* unstored_ = nothing_;
};

// Sides that were best on 2 cores with AMX.
template <typename Tiles>
constexpr BlockedKernel tile_kernel(const char* name) {
  return blocked_kernel<TileProducts<Tiles, 16, 8>, TileProducts<Tiles, 8, 16>,
                        TileProducts<Tiles, 8, 16>>(name);
}

}  // namespace
}  // namespace amxt::kernels
