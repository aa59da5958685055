// The functions of rows.h that an instruction set provides; argument lists are those of the references.
#pragma once

#include "kernels/rows_ref.h"

namespace amxt::kernels {

template <typename E>
struct RowTable {
  decltype(&rms_norm_forward_ref<E>) rms_norm_forward;
  decltype(&rms_norm_backward_ref<E>) rms_norm_backward;
  decltype(&rope_ref<E>) rope;
  decltype(&swiglu_forward_ref<E>) swiglu_forward;
  decltype(&swiglu_backward_ref<E>) swiglu_backward;
  decltype(&add_rows_ref<E>) add_rows;
  decltype(&add_bias_ref<E>) add_bias;
  decltype(&sum_rows_ref<E>) sum_rows;
  decltype(&accumulate_ref<E>) accumulate;
  decltype(&cross_entropy_gradient_ref<E>) cross_entropy_gradient;
};

struct RowTables {
  RowTable<float> of_float;
  RowTable<bf16> of_bf16;
  void (*round)(int64_t count, const float* from, bf16* to);
  void (*widen)(int64_t count, const bf16* from, float* to);
  decltype(&cross_entropy_accumulate_ref) cross_entropy_accumulate;
};

extern const RowTables rows_avx2;
extern const RowTables rows_avx512;

// IEEE half to float and back: F16C belongs to the baseline.
void convert_f16_avx2(int64_t count, const uint16_t* from, float* to);
void convert_f16_avx2(int64_t count, const float* from, uint16_t* to);

}  // namespace amxt::kernels
