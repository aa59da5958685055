#include "kernels/gemm.h"

#include <fmt/format.h>

#include <type_traits>
#include <utility>

#include "kernels/gemm_fma.h"

namespace amxt::kernels {
namespace {

std::string only_on(Isa isa) { return fmt::format("the instruction set is {}", isa_name(isa)); }

}  // namespace

template <typename E>
Result<std::unique_ptr<Gemm<E>>> Gemm<E>::create(ThreadPool* pool, Isa isa) {
  std::vector<GemmCandidate> candidates;
  if (isa < Isa::kAvx512) {
    candidates.push_back({"fma-avx512", only_on(isa)});
    candidates.push_back({"fma-avx2", ""});
    return create_fma_gemm<E>(pool, fma_kernel_avx2(), std::move(candidates));
  }
  candidates.push_back({"fma-avx512", ""});
  candidates.push_back({"fma-avx2", "fma-avx512 comes first"});
  return create_fma_gemm<E>(pool, fma_kernel_avx512(), std::move(candidates));
}

template class Gemm<float>;
template class Gemm<bf16>;

}  // namespace amxt::kernels
