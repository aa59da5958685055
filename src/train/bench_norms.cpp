// bench norms: the operations on rows of activations, cut into tasks as a decoder layer cuts them. They are bound by memory, so the limit
// is its triad; rows that stay in a cache go faster than that.
#include "base/buffer.h"
#include "base/carver.h"
#include "kernels/rows.h"
#include "model/decoder.h"
#include "train/bench_kernels.h"
#include "train/bench_samples.h"

namespace amxt::train {

namespace {

constexpr float kEps = 1e-5f;

const BenchKind& kind() {
  static const BenchKind kind{
      "norms",
      {{"T", 65536}, {"hidden", 65536}, {"intermediate", int64_t{1} << 18}, {"head_dim", 256}},
      {{512, 4096, 14336, 128}, {4096, 4096, 14336, 128}}};
  return kind;
}

struct Operands {
  int64_t T, D, I, C;
  bf16 *x, *y, *dy, *residual, *weight;         // [T, D], and [D]
  bf16 *gate_up, *dgate_up, *activated, *dout;  // [T, 2 I], [T, I]
  float *sums, *partial, *cosine, *sine;        // [T, D], [row blocks, D], [T, C / 2]
  int32_t* position;
};

int64_t place(const BenchShape& shape, std::byte* memory, Operands* to) {
  const int64_t T = to->T = shape[0], D = to->D = shape[1], I = to->I = shape[2],
                C = to->C = shape[3];
  Carver carver(memory);
  for (bf16** rows : {&to->x, &to->y, &to->dy, &to->residual}) *rows = carver.take<bf16>(T * D);
  to->weight = carver.take<bf16>(D);
  for (bf16** rows : {&to->gate_up, &to->dgate_up}) *rows = carver.take<bf16>(T * 2 * I);
  for (bf16** rows : {&to->activated, &to->dout}) *rows = carver.take<bf16>(T * I);
  to->sums = carver.take<float>(T * D);
  to->partial = carver.take<float>((T + model::kRowBlock - 1) / model::kRowBlock * D);
  to->cosine = carver.take<float>(T * (C / 2));
  to->sine = carver.take<float>(T * (C / 2));
  to->position = carver.take<int32_t>(T);
  return carver.used();
}

void fill(const Operands& o) {
  fill_random(o.x, o.T * o.D, 1);
  fill_random(o.dy, o.T * o.D, 2);
  fill_random(o.residual, o.T * o.D, 3);
  fill_random(o.weight, o.D, 4);
  fill_random(o.gate_up, o.T * 2 * o.I, 5);
  fill_random(o.dout, o.T * o.I, 6);
  fill_random(o.sums, o.T * o.D, 7);
  model::ModelConfig config;
  config.head_dim = o.C;
  model::rope_tables(config, o.T, o.cosine, o.sine);
  for (int64_t row = 0; row < o.T; ++row) o.position[row] = static_cast<int32_t>(row);
}

// Operations of [T, D] rows.
void add_narrow(const Operands& o, Isa isa, const auto& add) {
  const int64_t D = o.D;
  add("rms_norm forward", 4 * D, [=](int64_t begin, int64_t rows) {
    const int64_t at = begin * D;
    kernels::rms_norm_forward(isa, rows, D, o.x + at, D, o.weight, kEps, o.y + at, D, nullptr);
  });
  add("rms_norm backward", 8 * D, [=](int64_t begin, int64_t rows) {
    const int64_t at = begin * D;
    float* const partial = o.partial + begin / model::kRowBlock * D;
    kernels::rms_norm_backward(isa, rows, D, o.x + at, D, o.weight, kEps, nullptr, o.dy + at, D,
                               o.residual + at, D, o.y + at, D, partial);
  });
  add("rope, in place", 4 * D, [=](int64_t begin, int64_t rows) {
    kernels::rope(isa, rows, D / o.C, o.C, o.dy + begin * D, D, o.position + begin, o.cosine,
                  o.sine, false);
  });
  add("residual addition", 6 * D, [=](int64_t begin, int64_t rows) {
    const int64_t at = begin * D;
    kernels::add_rows(isa, rows, D, o.x + at, D, o.residual + at, D, o.y + at, D);
  });
  add("fp32 to bf16", 6 * D, [=](int64_t begin, int64_t rows) {
    kernels::convert(isa, rows * D, o.sums + begin * D, o.y + begin * D);
  });
}

// Operations of [T, I] rows.
void add_wide(const Operands& o, Isa isa, const auto& add) {
  const int64_t I = o.I;
  add("swiglu forward", 6 * I, [=](int64_t begin, int64_t rows) {
    const bf16* const gate = o.gate_up + begin * 2 * I;
    kernels::swiglu_forward(isa, rows, I, gate, 2 * I, gate + I, 2 * I, o.activated + begin * I, I);
  });
  add("swiglu backward", 12 * I, [=](int64_t begin, int64_t rows) {
    const bf16* const gate = o.gate_up + begin * 2 * I;
    bf16* const dgate = o.dgate_up + begin * 2 * I;
    kernels::swiglu_backward(isa, rows, I, gate, 2 * I, gate + I, 2 * I, o.dout + begin * I, I,
                             dgate, 2 * I, dgate + I, 2 * I, o.activated + begin * I, I);
  });
}

std::vector<Contender> operations_of(const Operands& o, BenchRun* run) {
  std::vector<Contender> contenders;
  ThreadPool& pool = *run->pool();
  const auto add = [&](const char* form, int64_t row_bytes, auto rows) {
    contenders.push_back({Json{{"form", form}}, 0, static_cast<double>(o.T * row_bytes),
                          [&pool, T = o.T, rows]() -> Status {
                            pool.run_blocks(T, model::kRowBlock, [&](int64_t begin, int64_t end) {
                              rows(begin, end - begin);
                            });
                            return {};
                          }});
  };
  add_narrow(o, run->isa(), add);
  add_wide(o, run->isa(), add);
  return contenders;
}

Status check(const BenchShape& shape) {
  if (shape[3] % 2 != 0) return bench_invalid(kind(), "head_dim must be even");
  if (shape[1] % shape[3] != 0) return bench_invalid(kind(), "head_dim must divide hidden");
  return {};
}

}  // namespace

Result<std::string> bench_norms(std::string_view options, int threads, bool pin,
                                const BenchLimits& limits) {
  AMXT_ASSIGN(const BenchRequest request, parse_bench_request(kind(), options));
  for (const BenchShape& each : request.shapes) AMXT_TRY(check(each));
  AMXT_ASSIGN(const std::unique_ptr<BenchRun> run,
              BenchRun::create(kind(), request, threads, pin, limits));
  AMXT_TRY(run->limit_by_triad());
  for (const BenchShape& each : request.shapes) {
    Operands operands{};
    const int64_t bytes = place(each, nullptr, &operands);
    AMXT_TRY(check_bench_memory(kind(), each, bytes));
    AMXT_ASSIGN(const Buffer memory, Buffer::allocate(bytes, "operands of the benchmark"));
    place(each, memory.data(), &operands);
    fill(operands);
    AMXT_TRY(run->take_turns(each, operations_of(operands, run.get())));
  }
  return run->result().dump();
}

}  // namespace amxt::train
