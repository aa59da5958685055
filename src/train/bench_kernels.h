// bench_kernels: what a step is made of, each operation on random data, in turn with the limit of the same run (bench_samples.h).
//
// `options`: a JSON object or empty (bench_request.h). The result is a JSON object, described at amxt_preview_bench(). kInvalidArgument,
// kFormat for options that are no JSON, kOutOfMemory, kTimeout, kCancelled.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "train/bench.h"

namespace amxt::train {

using Bench = Result<std::string>(std::string_view options, int threads, bool pin,
                                  const BenchLimits& limits);

// The three products of a linear layer by each implementation. Shapes [T, N, K].
Bench bench_gemm;
// Causal attention, forward and backward. Shapes [T, heads, kv_heads, head_dim].
Bench bench_attention;
// Norm of the gradients, clipping and AdamW, beside a stream that updates the same memory. Shapes [parameters].
Bench bench_optimizer;
// Head and loss, forward and with all gradients. Shapes [T, vocab, hidden].
Bench bench_head;
// Operations on rows of activations, beside the memory's triad. Shapes [T, hidden, intermediate, head_dim].
Bench bench_norms;
// A whole decoder layer, forward and backward with the gradients of its weights. Shapes [T, hidden, intermediate, heads, kv_heads,
// head_dim].
Bench bench_layer;

// The benchmark called `name`, or null; and all names, in one text.
Bench* kernel_bench(std::string_view name);
std::string kernel_bench_names();

}  // namespace amxt::train
