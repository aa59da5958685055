#include "kernels/optimizer.h"

#include "kernels/optimizer_ref.h"

namespace amxt::kernels {

template <typename G>
void adamw_split(Isa, int64_t count, bf16* weight, uint16_t* low, float* m, float* v, const G* gradient, const AdamwStep& step) {
  adamw_split_ref(count, weight, low, m, v, gradient, step);
}
template <typename G>
void adamw_float(Isa, int64_t count, float* weight, float* m, float* v, const G* gradient, const AdamwStep& step) {
  adamw_float_ref(count, weight, m, v, gradient, step);
}
template <typename G>
double sum_of_squares(Isa, int64_t count, const G* values, bool* finite) {
  return sum_of_squares_ref(count, values, finite);
}
#define AMXT_INSTANTIATE(G)                                                                       \
  template void adamw_split(Isa, int64_t, bf16*, uint16_t*, float*, float*, const G*,              \
                                const AdamwStep&);                                                \
  template void adamw_float(Isa, int64_t, float*, float*, float*, const G*, const AdamwStep&);     \
  template double sum_of_squares(Isa, int64_t, const G*, bool*);
AMXT_INSTANTIATE(float)
AMXT_INSTANTIATE(bf16)
#undef AMXT_INSTANTIATE

}  // namespace amxt::kernels
