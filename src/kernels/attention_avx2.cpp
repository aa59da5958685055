#include "kernels/simd_avx2.h"
//
#include "kernels/attention_vector.h"

namespace amxt::kernels {

constinit const AttentionTables attention_avx2 = attention_tables();

}  // namespace amxt::kernels
