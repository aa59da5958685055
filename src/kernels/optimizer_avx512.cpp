#include "kernels/simd_avx512.h"
//
#include "kernels/optimizer_vector.h"

namespace amxt::kernels {

constinit const OptimizerTables optimizer_avx512 = optimizer_tables();

}  // namespace amxt::kernels
