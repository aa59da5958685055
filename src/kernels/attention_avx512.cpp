#include "kernels/simd_avx512.h"
//
#include "kernels/attention_vector.h"

namespace amxt::kernels {

constinit const AttentionTables attention_avx512 = attention_tables();

}  // namespace amxt::kernels
