#include "kernels/simd_avx512.h"
//
#include "kernels/rows_vector.h"

namespace amxt::kernels {

constinit const RowTables rows_avx512 = row_tables();

}  // namespace amxt::kernels
