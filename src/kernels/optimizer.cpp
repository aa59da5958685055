#include "kernels/optimizer.h"

#include <cmath>

#include "kernels/optimizer_table.h"

namespace amxt::kernels {
namespace {

const OptimizerTables& tables(Isa isa) {
  return isa >= Isa::kAvx512 ? optimizer_avx512 : optimizer_avx2;
}

template <typename G>
const OptimizerTable<G>& table(Isa isa);
template <>
const OptimizerTable<float>& table<float>(Isa isa) {
  return tables(isa).of_float;
}
template <>
const OptimizerTable<bf16>& table<bf16>(Isa isa) {
  return tables(isa).of_bf16;
}

AdamwFactors factors(const AdamwStep& step) {
  AdamwFactors by{};
  by.gradient_scale = step.gradient_scale;
  by.decay = static_cast<float>(1 - step.learning_rate * step.weight_decay);
  by.toward = static_cast<float>(1 - step.beta1);
  by.keep = static_cast<float>(step.beta2);
  by.square_weight = static_cast<float>(1 - step.beta2);
  by.root_bias2 = static_cast<float>(std::sqrt(step.bias_correction2));
  by.epsilon = static_cast<float>(step.epsilon);
  by.step_size = static_cast<float>(-(step.learning_rate / step.bias_correction1));
  return by;
}

}  // namespace

template <typename G>
void adamw_split(Isa isa, int64_t count, bf16* weight, uint16_t* low, float* m, float* v,
                 const G* gradient, const AdamwStep& step) {
  table<G>(isa).adamw_split(count, weight, low, m, v, gradient, factors(step));
}

template <typename G>
void adamw_float(Isa isa, int64_t count, float* weight, float* m, float* v, const G* gradient,
                 const AdamwStep& step) {
  table<G>(isa).adamw_float(count, weight, m, v, gradient, factors(step));
}

template <typename G>
double sum_of_squares(Isa isa, int64_t count, const G* values, bool* finite) {
  return table<G>(isa).sum_of_squares(count, values, finite);
}

#define AMXT_INSTANTIATE(G)                                                                    \
  template void adamw_split(Isa, int64_t, bf16*, uint16_t*, float*, float*, const G*,          \
                            const AdamwStep&);                                                 \
  template void adamw_float(Isa, int64_t, float*, float*, float*, const G*, const AdamwStep&); \
  template double sum_of_squares(Isa, int64_t, const G*, bool*);
AMXT_INSTANTIATE(float)
AMXT_INSTANTIATE(bf16)
#undef AMXT_INSTANTIATE

}  // namespace amxt::kernels
