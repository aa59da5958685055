// The blocking of gemm_blocked.h, for any backend that multiplies panels. One block of sums stays in the second-level cache over all of the
// contracted index, which is passed in groups of 256: then a panel of the second operand (32 x 256, 16 KiB) stays in the first-level
// cache while the panels of the first stream from the second-level one.
//
// A backend is an object that lives while a block is computed, with
//   kSides                                         of a block of sums, at most
//   multiply(a, b, steps, from_zero, sums, ahead)  sums (+)= panel a times panel b; returns with the sums of the call BEFORE in memory
//   finish()                                       the sums of the last call are in memory
// Since a call's sums are loaded by the next group's call, an element is one chain over the contracted index: its bits do not depend on
// blocks, nor on which other rows and columns are computed.
//
// Included after what packs and stores: gemm_blocked_pack.h and gemm_blocked_store.h, or gemm_blocked_lanes.h.
#pragma once

#include "kernels/gemm_blocked_kernel.h"

namespace amxt::kernels {
namespace {

inline const bf16* panel_of(const PackedOperand& operand, int64_t step, int64_t panel) {
  return operand.data + step / kGroupSteps * operand.group_stride + panel * operand.panel_stride;
}

// What later calls will touch, from here on: the backend asks for it a few lines at a time. Each call has its part of the next group of the
// first operand and of the next panel of the second, and in the last group the 4 KiB where its sums will be stored, if they lie
// together.
struct Ahead {
  const bf16 *first, *second;
  const void* result;  // or null
};

inline const char* lines_behind(const void* at, int64_t lines) {
  return static_cast<const char*>(at) + lines * 64;
}

// The first operand as it was packed.
struct PackedFirst {
  const SumBlock& block;
  int64_t group = 0;

  void take(int64_t step, int64_t) { group = step; }
  const bf16* panel(int64_t m) const { return panel_of(block.a, group, m); }
  const bf16* ahead(int64_t step, int64_t m, int64_t element) const {
    return panel_of(block.a, step, m) + element;
  }
};

// Weights as rows k: panels of W are steps, blocks along K are panels.
struct WeightsFirst {
  const SumBlock& block;

  void take(int64_t step, int64_t steps) const {
    for (int64_t m = block.m_begin; m < block.m_end; ++m) {
      for (int64_t i = 0; i < steps; ++i) {
        convert_weights(block.a.data + (step + i) * block.a.panel_stride + m * kBlock,
                        block.converted + (m - block.m_begin) * kPanelStride + i * kBlock);
      }
    }
  }
  const bf16* panel(int64_t m) const {
    return block.converted + (m - block.m_begin) * kPanelStride;
  }
  const bf16* ahead(int64_t step, int64_t m, int64_t element) const {
    step = lesser(block.steps - 1, step + element / kBlock);
    return block.a.data + step * block.a.panel_stride + m * kBlock + element % kBlock;
  }
};

template <typename Backend, typename First, typename Store>
void multiply_block(const SumBlock& block, First first, const Store& store_sums) {
  Backend backend;
  const int64_t m_panels = block.m_end - block.m_begin, n_panels = block.n_end - block.n_begin;
  const auto sums_of = [&](int64_t m, int64_t n) {
    return block.sums + ((n - block.n_begin) * m_panels + m - block.m_begin) * kBlock;
  };
  int64_t last_m = -1, last_n = -1;  // finished, but not stored
  for (int64_t step = 0; step < block.steps; step += kGroupSteps) {
    const int64_t steps = lesser(kGroupSteps, block.steps - step);
    const bool finishes = step + steps == block.steps;
    const int64_t next_step = finishes ? 0 : step + steps;
    const int64_t next_m = finishes ? block.next_m : block.m_begin;
    const int64_t next_n = finishes ? block.next_n : block.n_begin;
    first.take(step, steps);
    for (int64_t n = block.n_begin; n < block.n_end; ++n) {
      const bf16* const second = panel_of(block.b, step, n);
      const bf16* const next_second = n + 1 < block.n_end ? panel_of(block.b, step, n + 1)
                                                          : panel_of(block.b, next_step, next_n);
      for (int64_t m = block.m_begin; m < block.m_end; ++m) {
        const Ahead ahead{first.ahead(next_step, next_m + m - block.m_begin,
                                      (n - block.n_begin) * kPanelStride / n_panels),
                          next_second + (m - block.m_begin) * kPanelStride / m_panels,
                          finishes ? store_sums.destination(m, n) : nullptr};
        backend.multiply(first.panel(m), second, steps, step == 0, sums_of(m, n), ahead);
        if (last_m >= 0) store_sums(sums_of(last_m, last_n), last_m, last_n);
        if (finishes) {
          last_m = m;
          last_n = n;
        }
      }
    }
  }
  backend.finish();
  store_sums(sums_of(last_m, last_n), last_m, last_n);
}

template <typename Backend, typename First, template <typename, bool> typename Store>
void multiply_to(const SumBlock& block, const ResultPlace& result) {
  if (!result.to_float) {
    multiply_block<Backend>(block, First{block}, Store<bf16, false>{result});
  } else if (!result.accumulate) {
    multiply_block<Backend>(block, First{block}, Store<float, false>{result});
  } else {
    multiply_block<Backend>(block, First{block}, Store<float, true>{result});
  }
}

template <typename Forward, typename GradInput, typename GradWeight>
constexpr BlockedKernel blocked_kernel(const char* name) {
  return {name,
          pack_rows,
          pack_rows_as_second,
          pack_columns<true>,
          pack_columns<false>,
          {Forward::kSides, multiply_to<Forward, PackedFirst, StoreRows>},
          {GradInput::kSides, multiply_to<GradInput, WeightsFirst, StoreTransposed>},
          {GradWeight::kSides, multiply_to<GradWeight, PackedFirst, StoreBlocked>}};
}

}  // namespace
}  // namespace amxt::kernels
