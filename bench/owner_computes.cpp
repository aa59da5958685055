// Who computes the gradient of a layer's weights? Two ways, side by side, ranks as threads of one process, a core's work each:
//   owner   each rank computes dW of the rows that it owns, over the tokens of all ranks (X and dY are shared)
//   reduce  each rank computes dW of all rows over its own tokens, in fp32, then every rank adds up the parts of its rows
// Prints one JSON object per number of ranks: median seconds of a layer and bytes that each way needs. Figures: docs/architecture.md.
#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/deadline.h"
#include "kernels/gemm.h"
#include "kernels/rows.h"

namespace {

using namespace amxt;

struct Matrix {
  int64_t N, K;
};

// Llama-3.2-1B's layer: qkv, output, gate and up, down.
constexpr Matrix kMatrices[] = {{3072, 2048}, {2048, 2048}, {16384, 2048}, {2048, 8192}};
constexpr int64_t kTokens = 512, kMicroBatches = 4, kRounds = 5, kRows = 256;

template <typename T>
T check(Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "%s\n", result.error().message().c_str());
    std::exit(1);
  }
  return std::move(result).value();
}

void check(Status status) {
  if (!status) {
    std::fprintf(stderr, "%s\n", status.error().message().c_str());
    std::exit(1);
  }
}

Buffer random_bf16(int64_t count, uint32_t seed) {
  Buffer buffer = check(Buffer::allocate(count * 2, "data"));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; ++i) buffer.as<bf16>()[i] = to_bf16(normal(random));
  return buffer;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void measure(int ranks, Isa isa) {
  const int64_t slots = ranks * kMicroBatches;
  int64_t weights = 0, arena = 0;
  std::vector<std::vector<Buffer>> x(4), dy(4);
  for (size_t m = 0; m < 4; ++m) {
    weights += kMatrices[m].N * kMatrices[m].K;
    for (int64_t s = 0; s < slots; ++s) {
      x[m].push_back(random_bf16(kTokens * kMatrices[m].K,
                                 static_cast<uint32_t>(m * 100 + static_cast<size_t>(s))));
      dy[m].push_back(random_bf16(kTokens * kMatrices[m].N,
                                  static_cast<uint32_t>(m * 100 + 50 + static_cast<size_t>(s))));
      arena += kTokens * (kMatrices[m].K + kMatrices[m].N) * 2;
    }
  }
  std::vector<Buffer> full(static_cast<size_t>(ranks));
  for (Buffer& buffer : full) buffer = check(Buffer::allocate(weights * 4, "full gradients"));
  std::vector<double> owner_seconds, reduce_seconds;
  std::barrier barrier(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool::Options options;
      const auto pool = check(ThreadPool::create(options));
      const auto gemm = check(kernels::Gemm<bf16>::create(pool.get(), isa));
      Buffer kept = check(Buffer::allocate(weights / ranks * 2 + (1 << 20), "kept gradients"));
      Buffer block = check(Buffer::allocate(kRows * 8192 * 4, "block"));
      for (int64_t round = 0; round <= kRounds; ++round) {
        barrier.arrive_and_wait();
        const int64_t begin = monotonic_ns();
        bf16* to = kept.as<bf16>();
        for (size_t m = 0; m < 4; ++m) {
          const auto [N, K] = kMatrices[m];
          for (int64_t row = N / ranks * rank; row < N / ranks * (rank + 1); row += kRows) {
            const int64_t n = std::min(kRows, N / ranks * (rank + 1) - row);
            for (int64_t s = 0; s < slots; ++s) {
              check(gemm->grad_weight(kTokens, n, K, dy[m][static_cast<size_t>(s)].as<bf16>() + row,
                                      N, x[m][static_cast<size_t>(s)].as<bf16>(), K,
                                      block.as<float>(), K, s > 0));
            }
            kernels::convert(isa, n * K, block.as<float>(), to);
            to += n * K;
          }
        }
        barrier.arrive_and_wait();
        const int64_t middle = monotonic_ns();
        float* own = full[static_cast<size_t>(rank)].as<float>();
        for (size_t m = 0; m < 4; ++m) {
          const auto [N, K] = kMatrices[m];
          for (int64_t row = 0; row < N; row += kRows) {
            for (int64_t a = 0; a < kMicroBatches; ++a) {
              const auto s = static_cast<size_t>(a * ranks + rank);
              check(gemm->grad_weight(kTokens, std::min(kRows, N - row), K,
                                      dy[m][s].as<bf16>() + row, N, x[m][s].as<bf16>(), K,
                                      own + row * K, K, a > 0));
            }
          }
          own += N * K;
        }
        barrier.arrive_and_wait();
        const int64_t part = weights / ranks;
        to = kept.as<bf16>();
        for (int64_t at = part * rank; at < part * (rank + 1); at += 8192) {
          const int64_t n = std::min<int64_t>(8192, part * (rank + 1) - at);
          std::memset(block.data(), 0, static_cast<size_t>(n) * 4);
          for (int peer = 0; peer < ranks; ++peer)
            kernels::accumulate(isa, n, full[static_cast<size_t>(peer)].as<float>() + at,
                                block.as<float>());
          kernels::convert(isa, n, block.as<float>(), to);
          to += n;
        }
        barrier.arrive_and_wait();
        if (rank == 0 && round > 0) {
          owner_seconds.push_back(static_cast<double>(middle - begin) * 1e-9);
          reduce_seconds.push_back(static_cast<double>(monotonic_ns() - middle) * 1e-9);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf(
      "{\"ranks\": %d, \"isa\": \"%s\", \"tokens_per_rank\": %ld, \"owner_seconds\": %.4f, "
      "\"reduce_seconds\": %.4f, "
      "\"owner_bytes\": %ld, \"reduce_bytes\": %ld}\n",
      ranks, isa_name(isa), static_cast<long>(kTokens * kMicroBatches), median(owner_seconds),
      median(reduce_seconds), static_cast<long>(arena), static_cast<long>(ranks * weights * 4));
}

}  // namespace

int main() {
  const CpuIsa* isa = check(cpu_isa());
  for (int ranks : {2, 4}) measure(ranks, isa->chosen);
}
