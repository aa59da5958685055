#include "kernels/simd_avx2.h"
//
#include "kernels/optimizer_vector.h"

namespace amxt::kernels {

constinit const OptimizerTables optimizer_avx2 = optimizer_tables();

}  // namespace amxt::kernels
