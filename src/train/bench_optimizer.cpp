// bench optimizer: what follows the backward of a step: norm of the gradients, clip factor, AdamW on split weights (store/parameters).
//
// Its limit updates the very same memory in place, so that pages, huge or not, are the same. With bf16 gradients a parameter has 14 bytes,
// and either touches 28: the stream reads and writes each once; AdamW reads and writes 12, and the gradient is read twice.
#include <algorithm>
#include <cmath>

#include "base/buffer.h"
#include "base/carver.h"
#include "kernels/optimizer.h"
#include "train/bench_kernels.h"
#include "train/bench_samples.h"

namespace amxt::train {

namespace {

// What a task of the step takes.
constexpr int64_t kChunk = 128 * 1024;

const BenchKind& kind() {
  static const BenchKind kind{
      "optimizer", {{"parameters", int64_t{1} << 36}}, {{int64_t{128} << 20}}};
  return kind;
}

struct State {
  int64_t count;
  bf16* weight;
  uint16_t* low;
  float *m, *v;
  bf16* gradient;
  double* squares;  // of each chunk
};

int64_t place(int64_t count, std::byte* memory, State* to) {
  Carver carver(memory);
  to->count = count;
  to->weight = carver.take<bf16>(count);
  to->low = carver.take<uint16_t>(count);
  to->m = carver.take<float>(count);
  to->v = carver.take<float>(count);
  to->gradient = carver.take<bf16>(count);
  to->squares = carver.take<double>((count + kChunk - 1) / kChunk);
  return carver.used();
}

double norm(ThreadPool& pool, Isa isa, const State& s) {
  pool.run_blocks(s.count, kChunk, [&](int64_t begin, int64_t end) {
    bool finite = true;
    s.squares[begin / kChunk] =
        kernels::sum_of_squares(isa, end - begin, s.gradient + begin, &finite);
  });
  double sum = 0;
  for (int64_t chunk = 0; chunk * kChunk < s.count; ++chunk) sum += s.squares[chunk];
  return std::sqrt(sum);
}

void update(ThreadPool& pool, Isa isa, const State& s, const kernels::AdamwStep& step) {
  pool.run_blocks(s.count, kChunk, [&](int64_t begin, int64_t end) {
    kernels::adamw_split(isa, end - begin, s.weight + begin, s.low + begin, s.m + begin,
                         s.v + begin, s.gradient + begin, step);
  });
}

kernels::AdamwStep step_after(double gradient_norm) {
  kernels::AdamwStep step;
  step.learning_rate = 1e-5;
  step.weight_decay = 0.01;
  step.bias_correction1 = 1 - step.beta1;
  step.bias_correction2 = 1 - step.beta2;
  step.gradient_scale = static_cast<float>(std::min(1.0, 1.0 / (gradient_norm + 1e-6)));
  return step;
}

std::vector<Contender> parts_of(const State& s, BenchRun* run) {
  ThreadPool& pool = *run->pool();
  const Isa isa = run->isa();
  const double count = static_cast<double>(s.count);
  const auto whole = [=, &pool]() -> Status {
    update(pool, isa, s, step_after(norm(pool, isa, s)));
    return {};
  };
  const auto norm_alone = [=, &pool]() -> Status {
    norm(pool, isa, s);
    return {};
  };
  const auto adamw_alone = [=, &pool]() -> Status {
    update(pool, isa, s, step_after(1));
    return {};
  };
  std::vector<Contender> contenders;
  contenders.push_back({Json{{"form", "norm, clip, AdamW"}}, 0, 28 * count, whole});
  contenders.push_back({Json{{"form", "norm"}}, 0, 2 * count, norm_alone});
  contenders.push_back({Json{{"form", "AdamW"}}, 0, 26 * count, adamw_alone});
  return contenders;
}

}  // namespace

Result<std::string> bench_optimizer(std::string_view options, int threads, bool pin,
                                    const BenchLimits& limits) {
  AMXT_ASSIGN(const BenchRequest request, parse_bench_request(kind(), options));
  AMXT_ASSIGN(const std::unique_ptr<BenchRun> run,
              BenchRun::create(kind(), request, threads, pin, limits));
  const int64_t largest = (*std::max_element(request.shapes.begin(), request.shapes.end()))[0];
  State state{};
  const int64_t bytes = place(largest, nullptr, &state);
  AMXT_TRY(check_bench_memory(kind(), {largest}, bytes));
  AMXT_ASSIGN(const Buffer memory, Buffer::allocate(bytes, "state of the benchmark"));
  place(largest, memory.data(), &state);
  fill_random(state.weight, largest, 1, 0.02f);
  fill_random(state.gradient, largest, 2, 1e-3f);
  // A mask of zero: everything is written, nothing changes.
  run->limit_by({"update in place", BenchLimit::Unit::kBytes, 2.0 * static_cast<double>(bytes),
                 [&]() -> Status {
                   kernels::update_stream(*run->pool(), bytes, 0, memory.data());
                   return {};
                 }});
  for (const BenchShape& each : request.shapes) {
    state.count = each[0];
    AMXT_TRY(run->take_turns(each, parts_of(state, run.get())));
  }
  Json json = run->result();
  for (Json& row : json["rows"]) {
    row["mparam_per_second"] =
        row.at("parameters").get<double>() / row.at("seconds").get<double>() * 1e-6;
  }
  return json.dump();
}

}  // namespace amxt::train
