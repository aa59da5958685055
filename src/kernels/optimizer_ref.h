// The scalar truth of optimizer.h: one element after the other, each operation as torch.optim.AdamW rounds it. For tests.
#pragma once

#include <cstdint>

#include "kernels/optimizer.h"

namespace amxt::kernels {

template <typename G>
void adamw_split_ref(int64_t count, bf16* weight, uint16_t* low, float* m, float* v,
                     const G* gradient, const AdamwStep& step);
template <typename G>
void adamw_float_ref(int64_t count, float* weight, float* m, float* v, const G* gradient,
                     const AdamwStep& step);
template <typename G>
double sum_of_squares_ref(int64_t count, const G* values, bool* finite);

}  // namespace amxt::kernels
