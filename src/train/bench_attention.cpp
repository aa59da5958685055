// bench attention: both directions as a decoder layer calls them, q, k and v parts of one matrix.
//
// FLOP: of the causal half, T (T + 1) / 2 pairs of tokens; two products forward, five backward (the scores once more, as whoever keeps no
// T x T matrix must).
#include <cmath>

#include "base/buffer.h"
#include "base/carver.h"
#include "kernels/attention.h"
#include "train/bench_kernels.h"
#include "train/bench_samples.h"

namespace amxt::train {

namespace {

const BenchKind& kind() {
  static const BenchKind kind{
      "attention",
      {{"T", 65536}, {"heads", 1024}, {"kv_heads", 1024}, {"head_dim", 256}},
      {{512, 32, 8, 128}, {2048, 32, 8, 128}}};
  return kind;
}

Result<kernels::AttentionShape> shape_of(const BenchShape& sides) {
  kernels::AttentionShape shape;
  shape.tokens = sides[0];
  shape.heads = sides[1];
  shape.kv_heads = sides[2];
  shape.head_dim = sides[3];
  shape.scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  if (shape.heads % shape.kv_heads != 0) {
    return bench_invalid(kind(), "kv_heads must divide heads");
  }
  if (shape.head_dim % 2 != 0) return bench_invalid(kind(), "head_dim must be even");
  return shape;
}

struct Operands {
  bf16 *qkv, *out, *dout, *dqkv;
  float* lse;
  int32_t* document_start;
  std::byte* scratch;
};

// Places them in `memory`; with none it only adds up their bytes.
int64_t place(const kernels::AttentionShape& s, int threads, std::byte* memory, Operands* to) {
  const int64_t wide = (s.heads + 2 * s.kv_heads) * s.head_dim, query = s.heads * s.head_dim;
  Carver carver(memory);
  to->qkv = carver.take<bf16>(s.tokens * wide);
  to->out = carver.take<bf16>(s.tokens * query);
  to->dout = carver.take<bf16>(s.tokens * query);
  to->dqkv = carver.take<bf16>(s.tokens * wide);
  to->lse = carver.take<float>(s.tokens * s.heads);
  to->document_start = carver.take<int32_t>(s.tokens);
  to->scratch = carver.take<std::byte>(kernels::attention_scratch_bytes(s, threads));
  return carver.used();
}

std::vector<Contender> directions_of(kernels::AttentionShape shape, const Operands& o,
                                     BenchRun* run) {
  const int64_t T = shape.tokens, Q = shape.heads * shape.head_dim,
                KV = shape.kv_heads * shape.head_dim, W = Q + 2 * KV;
  shape.document_start = o.document_start;
  ThreadPool& pool = *run->pool();
  const Isa isa = run->isa();
  const double product = static_cast<double>(T * (T + 1)) * static_cast<double>(Q);
  const double row_bytes = 2.0 * static_cast<double>(T);
  const auto forward = [=, &pool]() -> Status {
    kernels::attention_forward(pool, isa, shape, o.qkv, W, o.qkv + Q, W, o.qkv + Q + KV, W, o.out,
                               Q, o.lse, o.scratch);
    return {};
  };
  const auto backward = [=, &pool]() -> Status {
    kernels::attention_backward(pool, isa, shape, o.qkv, W, o.qkv + Q, W, o.qkv + Q + KV, W, o.out,
                                Q, o.lse, o.dout, Q, o.dqkv, W, o.dqkv + Q, W, o.dqkv + Q + KV, W,
                                o.scratch);
    return {};
  };
  std::vector<Contender> contenders;
  contenders.push_back(
      {Json{{"form", "forward"}}, 2 * product, row_bytes * static_cast<double>(W + Q), forward});
  contenders.push_back({Json{{"form", "backward"}}, 5 * product,
                        row_bytes * static_cast<double>(2 * W + 2 * Q), backward});
  return contenders;
}

}  // namespace

Result<std::string> bench_attention(std::string_view options, int threads, bool pin,
                                    const BenchLimits& limits) {
  AMXT_ASSIGN(const BenchRequest request, parse_bench_request(kind(), options));
  for (const BenchShape& each : request.shapes) AMXT_TRY(shape_of(each));
  AMXT_ASSIGN(const std::unique_ptr<BenchRun> run,
              BenchRun::create(kind(), request, threads, pin, limits));
  AMXT_TRY(run->limit_by_compute());
  for (const BenchShape& each : request.shapes) {
    AMXT_ASSIGN(const kernels::AttentionShape shape, shape_of(each));
    Operands operands{};
    const int64_t bytes = place(shape, threads, nullptr, &operands);
    AMXT_TRY(check_bench_memory(kind(), each, bytes));
    AMXT_ASSIGN(const Buffer memory, Buffer::allocate(bytes, "operands of the benchmark"));
    place(shape, threads, memory.data(), &operands);
    const int64_t Q = shape.heads * shape.head_dim;
    fill_random(operands.qkv, shape.tokens * (Q + 2 * shape.kv_heads * shape.head_dim), 1);
    fill_random(operands.dout, shape.tokens * Q, 2);
    AMXT_TRY(run->take_turns(each, directions_of(shape, operands, run.get())));
  }
  return run->result().dump();
}

}  // namespace amxt::train
