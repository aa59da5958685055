#include "kernels/optimizer_ref.h"

#include <cmath>

namespace amxt::kernels {
namespace {

// One element. Every line is one tensor operation of torch's single-tensor AdamW on the CPU, scalars computed in double
// and rounded once, so that the bits are torch's own.
float adamw_element(float p, float* m, float* v, float g, const AdamwStep& step) {
  const float toward = static_cast<float>(1 - step.beta1);
  p *= static_cast<float>(1 - step.learning_rate * step.weight_decay);
  // torch.lerp: from the nearer end, one rounding.
  *m = toward < 0.5f ? std::fma(toward, g - *m, *m) : std::fma(toward - 1, g - *m, g);
  *v *= static_cast<float>(step.beta2);
  *v += static_cast<float>(1 - step.beta2) * g * g;
  const float denominator = std::sqrt(*v) / static_cast<float>(std::sqrt(step.bias_correction2)) +
                            static_cast<float>(step.epsilon);
  return p + static_cast<float>(-(step.learning_rate / step.bias_correction1)) * *m / denominator;
}

}  // namespace

template <typename G>
void adamw_split_ref(int64_t count, bf16* weight, uint16_t* low, float* m, float* v,
                     const G* gradient, const AdamwStep& step) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = to_float(gradient[i]) * step.gradient_scale;
    const float p = adamw_element(join_master(weight[i], low[i]), m + i, v + i, g, step);
    split_master(p, weight + i, low + i);
  }
}

template <typename G>
void adamw_float_ref(int64_t count, float* weight, float* m, float* v, const G* gradient,
                     const AdamwStep& step) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = to_float(gradient[i]) * step.gradient_scale;
    weight[i] = adamw_element(weight[i], m + i, v + i, g, step);
  }
}

template <typename G>
double sum_of_squares_ref(int64_t count, const G* values, bool* finite) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double value = to_float(values[i]);
    if (!std::isfinite(value)) *finite = false;
    sum += value * value;
  }
  return sum;
}

#define AMXT_INSTANTIATE(G)                                                                   \
  template void adamw_split_ref(int64_t, bf16*, uint16_t*, float*, float*, const G*,          \
                                const AdamwStep&);                                            \
  template void adamw_float_ref(int64_t, float*, float*, float*, const G*, const AdamwStep&); \
  template double sum_of_squares_ref(int64_t, const G*, bool*);
AMXT_INSTANTIATE(float)
AMXT_INSTANTIATE(bf16)
#undef AMXT_INSTANTIATE

}  // namespace amxt::kernels
