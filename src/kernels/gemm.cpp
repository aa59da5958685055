#include "kernels/gemm.h"

#include <fmt/format.h>

#include <type_traits>
#include <utility>

#include "kernels/gemm_fma.h"
#include "kernels/gemm_onednn.h"

namespace amxt::kernels {
namespace {

// The fp32 kernels, behind what was skipped before them.
template <typename E>
Result<std::unique_ptr<Gemm<E>>> create_fma(ThreadPool* pool, Isa isa,
                                            std::vector<GemmCandidate> candidates) {
  const FmaKernel& wide = fma_kernel_avx512();
  const FmaKernel& narrow = fma_kernel_avx2();
  if (isa < Isa::kAvx512) {
    candidates.push_back({wide.name, fmt::format("the instruction set is {}", isa_name(isa))});
    candidates.push_back({narrow.name, ""});
    return create_fma_gemm<E>(pool, narrow, std::move(candidates));
  }
  candidates.push_back({wide.name, ""});
  candidates.push_back({narrow.name, fmt::format("{} comes first", wide.name)});
  return create_fma_gemm<E>(pool, wide, std::move(candidates));
}

}  // namespace

template <>
Result<std::unique_ptr<Gemm<float>>> Gemm<float>::create(ThreadPool* pool, Isa isa) {
  return create_fma<float>(pool, isa, {});
}

template <>
Result<std::unique_ptr<Gemm<bf16>>> Gemm<bf16>::create(ThreadPool* pool, Isa isa) {
  std::vector<GemmCandidate> candidates;
  for (const Isa with : {Isa::kAmx, Isa::kAvx512Bf16}) {
    const char* const name = onednn_gemm_name(with);
    if (with != isa) {
      candidates.push_back({name, fmt::format("the instruction set is {}", isa_name(isa))});
      continue;
    }
    auto gemm = create_onednn_gemm(pool, isa);
    if (!gemm) {
      candidates.push_back({name, gemm.error().message()});
      continue;
    }
    candidates.push_back({name, ""});
    for (const FmaKernel* kernel : {&fma_kernel_avx512(), &fma_kernel_avx2()}) {
      candidates.push_back({kernel->name, fmt::format("{} comes first", name)});
    }
    (*gemm)->candidates_ = std::move(candidates);
    return gemm;
  }
  return create_fma<bf16>(pool, isa, std::move(candidates));
}

template class Gemm<float>;
template class Gemm<bf16>;

}  // namespace amxt::kernels
