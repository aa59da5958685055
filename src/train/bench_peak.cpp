#include "train/bench_peak.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/bf16.h"
#include "base/cpu.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "kernels/gemm.h"

namespace amxt::train {

namespace {

constexpr int64_t kMinimumNs = 500'000'000;

template <typename E>
std::vector<E> random_values(int64_t count, uint64_t seed) {
  std::vector<E> values(static_cast<size_t>(count));
  fill_random(values.data(), count, seed);
  return values;
}

// Seconds of one call, the best of those within half a second: neighbours only ever slow it down.
template <typename F>
Result<double> best_seconds(const BenchLimits& limits, F&& call) {
  AMXT_TRY(call());  // prepares what the first one needs
  int64_t best = INT64_MAX;
  for (const int64_t begin = monotonic_ns(); monotonic_ns() - begin < kMinimumNs;) {
    AMXT_TRY(limits.check());
    const int64_t start = monotonic_ns();
    AMXT_TRY(call());
    best = std::min(best, monotonic_ns() - start);
  }
  return static_cast<double>(best) * 1e-9;
}

Result<double> memory_read(ThreadPool& pool, const BenchLimits& limits) {
  constexpr int64_t kElements = int64_t{64} << 20;  // 512 MiB
  constexpr int64_t kBlock = int64_t{1} << 17;
  std::vector<uint64_t> data(static_cast<size_t>(kElements));
  pool.run_blocks(kElements, kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      data[static_cast<size_t>(i)] = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ULL;
  });
  std::atomic<uint64_t> sink{0};
  AMXT_ASSIGN(const double seconds, best_seconds(limits, [&]() -> Status {
                pool.run_blocks(kElements, kBlock, [&](int64_t begin, int64_t end) {
                  uint64_t sum = 0;
                  for (int64_t i = begin; i < end; ++i) sum += data[static_cast<size_t>(i)];
                  sink.fetch_add(sum, std::memory_order_relaxed);
                });
                return {};
              }));
  return static_cast<double>(kElements * 8) / seconds * 1e-9;
}

// Shapes of an 8b model's MLP at one micro-batch of 2048 tokens, a quarter of its width.
constexpr int64_t kTokens = 2048, kOut = 3584, kIn = 4096;

template <typename E>
Status measure_products(ThreadPool& pool, Isa isa, const char* dtype, const BenchLimits& limits,
                        Json* products) {
  AMXT_ASSIGN(const std::unique_ptr<kernels::Gemm<E>> gemm, kernels::Gemm<E>::create(&pool, isa));
  const std::vector<E> x = random_values<E>(kTokens * kIn, 1), w = random_values<E>(kOut * kIn, 2),
                       dy = random_values<E>(kTokens * kOut, 3);
  std::vector<E> y(static_cast<size_t>(kTokens * kOut)), dx(static_cast<size_t>(kTokens * kIn));
  std::vector<float> dw(static_cast<size_t>(kOut * kIn));
  const auto add = [&](const char* name, Result<double> seconds) -> Status {
    AMXT_TRY(std::move(seconds));
    Json product;
    product["name"] = name;
    product["m"] = kTokens;
    product["n"] = kOut;
    product["k"] = kIn;
    product["dtype"] = dtype;
    product["kernel"] = gemm->name();
    product["tflops"] = 2.0 * kTokens * kOut * kIn / *seconds * 1e-12;
    products->push_back(std::move(product));
    return {};
  };
  AMXT_TRY(add("forward", best_seconds(limits, [&] {
                 return gemm->forward(kTokens, kOut, kIn, x.data(), kIn, w.data(), kIn, y.data(),
                                      kOut);
               })));
  AMXT_TRY(add("grad_input", best_seconds(limits, [&] {
                 return gemm->grad_input(kTokens, kOut, kIn, dy.data(), kOut, w.data(), kIn,
                                         dx.data(), kIn);
               })));
  return add("grad_weight", best_seconds(limits, [&] {
               return gemm->grad_weight(kTokens, kOut, kIn, dy.data(), kOut, x.data(), kIn,
                                        dw.data(), kIn, false);
             }));
}

}  // namespace

Result<std::string> bench_peak(int threads, bool pin, const BenchLimits& limits) {
  AMXT_ASSIGN(const CpuIsa* isa, cpu_isa());
  AMXT_ASSIGN(const std::unique_ptr<ThreadPool> pool, bench_pool(threads, pin));
  AMXT_ASSIGN(const double memory, memory_read(*pool, limits));
  Json products = Json::array();
  AMXT_TRY(measure_products<bf16>(*pool, isa->chosen, "bfloat16", limits, &products));
  AMXT_TRY(measure_products<float>(*pool, isa->chosen, "float32", limits, &products));
  Json json;
  json["threads"] = threads;
  json["isa"] = isa_name(isa->chosen);
  json["memory_read_gb_per_second"] = memory;
  json["products"] = std::move(products);
  return json.dump();
}

}  // namespace amxt::train
