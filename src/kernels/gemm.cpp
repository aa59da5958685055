#include "kernels/gemm.h"

#include <fmt/format.h>

#include <type_traits>
#include <utility>

#include "kernels/gemm_blocked.h"
#include "kernels/gemm_fma.h"
#include "kernels/gemm_onednn.h"

namespace amxt::kernels {
namespace {

const char* blocked_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return blocked_kernel_avx2().name;
    case Isa::kAvx512:
      return blocked_kernel_avx512().name;
    case Isa::kAvx512Bf16:
      return blocked_kernel_avx512bf16().name;
    case Isa::kAmx:
      break;
  }
  return blocked_kernel_amx().name;
}

// Our own products, for the weights of a list's caller.
class OwnGemm final : public Gemm<bf16> {
 public:
  OwnGemm(std::unique_ptr<BlockedGemm> products, std::vector<GemmCandidate> candidates)
      : products_(std::move(products)) {
    candidates_ = std::move(candidates);
    name_ = products_->name();
  }

  Status forward(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx, const bf16* w,
                 int64_t, bf16* y, int64_t ldy) override {
    return products_->forward(T, N, K, x, ldx, w, y, ldy);
  }
  Status forward_float(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx, const bf16* w,
                       int64_t, float* y, int64_t ldy) override {
    return products_->forward_float(T, N, K, x, ldx, w, y, ldy);
  }
  Status grad_input(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy, const bf16* w,
                    int64_t, bf16* dx, int64_t lddx) override {
    return products_->grad_input(T, N, K, dy, lddy, w, dx, lddx);
  }
  Status grad_input_float(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                          const bf16* w, int64_t, float* dx, int64_t lddx,
                          bool accumulate) override {
    return products_->grad_input_float(T, N, K, dy, lddy, w, dx, lddx, accumulate);
  }
  Status grad_weight(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy, const bf16* x,
                     int64_t ldx, float* dw, int64_t, bool accumulate) override {
    return products_->grad_weight_float(T, N, K, dy, lddy, x, ldx, dw, accumulate);
  }
  Status grad_weight_rounded(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                             const bf16* x, int64_t ldx, bf16* dw, int64_t) override {
    return products_->grad_weight(T, N, K, dy, lddy, x, ldx, dw);
  }
  bool sums_pairs() const override { return true; }
  Status grad_weight_of_pairs(std::span<const Pair> pairs, int64_t N, int64_t K, int64_t lddy,
                              int64_t ldx, bf16* dw) override {
    return products_->grad_weight(pairs, N, K, lddy, ldx, dw);
  }
  // dX is one sum over N, which a caller that splits it adds up in another order.
  bool one_order() const override { return false; }

 private:
  const std::unique_ptr<BlockedGemm> products_;
};

Result<std::unique_ptr<Gemm<bf16>>> create_own(ThreadPool* pool, Isa isa) {
  AMXT_ASSIGN(auto products, BlockedGemm::create(pool, isa));
  std::vector<GemmCandidate> candidates;
  for (const Isa with : {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2}) {
    const char* const why = with == isa  ? ""
                            : with > isa ? "the instruction set is {}"
                                         : "{} comes first";
    candidates.push_back(
        {blocked_name(with),
         fmt::format(fmt::runtime(why), with > isa ? isa_name(isa) : products->name())});
  }
  for (const char* name : {onednn_gemm_name(Isa::kAmx), onednn_gemm_name(Isa::kAvx512Bf16),
                           fma_kernel_avx512().name, fma_kernel_avx2().name})
    candidates.push_back({name, "the weights are in the blocked order"});
  return std::unique_ptr<Gemm<bf16>>(new OwnGemm(std::move(products), std::move(candidates)));
}

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
Result<std::unique_ptr<Gemm<float>>> Gemm<float>::create(ThreadPool* pool, Isa isa,
                                                         WeightOrder order) {
  if (order == WeightOrder::kBlocked)
    return Error(Code::kUnsupported, "products of fp32 weights in the blocked order");
  return create_fma<float>(pool, isa, {});
}

template <>
Result<std::unique_ptr<Gemm<bf16>>> Gemm<bf16>::create(ThreadPool* pool, Isa isa,
                                                       WeightOrder order) {
  if (order == WeightOrder::kBlocked) return create_own(pool, isa);
  std::vector<GemmCandidate> candidates;
  candidates.push_back({blocked_name(isa), "the weights are row-major"});
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

template <typename E>
int64_t Gemm<E>::scratch_bytes_needed(WeightOrder order, int64_t T, int64_t all_T, int64_t N,
                                      int64_t K, int threads) {
  if (order != WeightOrder::kBlocked) return 0;
  return BlockedGemm::scratch_bytes_needed(T, all_T, N, K, threads);
}

template class Gemm<float>;
template class Gemm<bf16>;

}  // namespace amxt::kernels
