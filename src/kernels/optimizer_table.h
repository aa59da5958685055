// The functions of optimizer.h that an instruction set provides.
#pragma once

#include <cstdint>

#include "base/bf16.h"

namespace amxt::kernels {

// The scalars of one step as torch rounds them: computed in double, then to fp32.
struct AdamwFactors {
  float gradient_scale;
  float decay;                // 1 - lr * weight_decay
  float toward;               // 1 - beta1: the weight of torch.lerp(m, g)
  float keep, square_weight;  // beta2, 1 - beta2
  float root_bias2;           // sqrt(1 - beta2^step)
  float epsilon;
  float step_size;  // -lr / (1 - beta1^step)
};

template <typename G>
struct OptimizerTable {
  void (*adamw_split)(int64_t count, bf16* weight, uint16_t* low, float* m, float* v,
                      const G* gradient, const AdamwFactors& factors);
  void (*adamw_float)(int64_t count, float* weight, float* m, float* v, const G* gradient,
                      const AdamwFactors& factors);
  double (*sum_of_squares)(int64_t count, const G* values, bool* finite);
};

struct OptimizerTables {
  OptimizerTable<float> of_float;
  OptimizerTable<bf16> of_bf16;
};

extern const OptimizerTables optimizer_avx2;
extern const OptimizerTables optimizer_avx512;

}  // namespace amxt::kernels
