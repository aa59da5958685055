// The inner loops of peak.h, one per instruction set. Light: the files with wider flags include it.
#pragma once

#include <cstdint>

namespace amxt::kernels {

// Operands of one thread, in its first-level cache.
constexpr int64_t kPeakBytes = 32 * 1024;

// Multiplies and adds `rounds` times over kPeakBytes at `data` (64-byte aligned) and returns the
// floating-point operations of it. *sink gets a value that depends on all of them.
using PeakLoop = double (*)(const void* data, int64_t rounds, float* sink);

double peak_fp32_avx2(const void* data, int64_t rounds, float* sink);
double peak_fp32_avx512(const void* data, int64_t rounds, float* sink);
double peak_bf16_avx512(const void* data, int64_t rounds, float* sink);
double peak_bf16_amx(const void* data, int64_t rounds, float* sink);

// to = x + scale y; count a multiple of 16, all aligned to 32 bytes.
void triad_avx2(int64_t count, float scale, const float* x, const float* y, float* to);
// data ^= mask; bytes a multiple of 64, data aligned to 32 bytes.
void update_avx2(int64_t bytes, uint32_t mask, void* data);

}  // namespace amxt::kernels
