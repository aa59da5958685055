// bench head: head and loss as the step drives them: the vocabulary block by block, forward to the loss, then the gradients of logits,
// input and weight. Counted are three products; that the logits are computed twice is the price of the memory that is not there.
#include <algorithm>
#include <random>

#include "base/buffer.h"
#include "base/carver.h"
#include "kernels/blocked_layout.h"
#include "model/head.h"
#include "store/layout.h"
#include "train/bench_kernels.h"
#include "train/bench_samples.h"

namespace amxt::train {

namespace {

const BenchKind& kind() {
  static const BenchKind kind{"head",
                              {{"T", 65536}, {"vocab", int64_t{1} << 22}, {"hidden", 65536}},
                              {{512, 128256, 4096}}};
  return kind;
}

// What the operation is given and gives, and (dlogits, dnormed, and the rows of the loss) what it takes besides.
struct Operands {
  int64_t rows, vocab, hidden, width;
  bf16 *normed, *weight, *dweight;
  bf16* dlogits;
  float *dnormed, *scale;
  int32_t* target;
  model::LossRows loss;
  int64_t extra_bytes;
};

int64_t place(const model::ModelConfig& config, int64_t T, std::byte* memory, Operands* to) {
  to->rows = T;
  to->vocab = config.vocab_size;
  to->hidden = config.hidden_size;
  to->width = model::vocabulary_width(config);
  Carver carver(memory);
  to->normed = carver.take<bf16>(T * to->hidden);
  // Random, so that one buffer serves in either order; a block of rows lies at the same place in both.
  const int64_t weights = kernels::BlockedShape{to->vocab, to->hidden}.elements();
  to->weight = carver.take<bf16>(weights);
  to->dweight = carver.take<bf16>(weights);
  to->target = carver.take<int32_t>(T);
  to->scale = carver.take<float>(T);
  const int64_t given = carver.used();
  to->dlogits = carver.take<bf16>(T * to->width);
  to->dnormed = carver.take<float>(T * to->hidden);
  to->loss.target = to->target;
  to->loss.maximum = carver.take<float>(T);
  to->loss.sum = carver.take<float>(T);
  to->loss.target_logit = carver.take<float>(T);
  to->loss.lse = carver.take<float>(T);
  to->extra_bytes = carver.used() - given;
  return carver.used();
}

void fill(const Operands& o) {
  fill_random(o.normed, o.rows * o.hidden, 1);
  fill_random(o.weight, o.vocab * o.hidden, 2, 0.02f);
  std::mt19937_64 random(3);
  for (int64_t row = 0; row < o.rows; ++row) {
    o.target[row] = static_cast<int32_t>(random() % static_cast<uint64_t>(o.vocab));
    o.scale[row] = 1.0f / static_cast<float>(o.rows);
  }
}

struct Job {
  model::Head<bf16>* head;
  kernels::Gemm<bf16>* gemm;
  int64_t gemm_bytes;
  Operands o;

  template <typename Block>
  Status for_blocks(Block block) const {
    for (int64_t first = 0; first < o.vocab; first += model::kVocabularyBlock) {
      AMXT_TRY(block(first, std::min(model::kVocabularyBlock, o.vocab - first)));
    }
    return {};
  }
  Status forward() const {
    head->begin(o.rows, o.loss);
    AMXT_TRY(for_blocks([&](int64_t first, int64_t count) {
      return head->forward_block(o.rows, o.normed, o.weight + first * o.hidden, first, count,
                                 o.loss);
    }));
    head->finish(o.rows, o.loss);
    return {};
  }
  Status backward() const {
    return for_blocks([&](int64_t first, int64_t count) -> Status {
      AMXT_TRY(head->backward_block(o.rows, o.normed, o.weight + first * o.hidden, first, count,
                                    o.loss, o.scale, o.dlogits, o.width, o.dnormed, first == 0));
      return gemm->grad_weight_rounded(o.rows, count, o.hidden, o.dlogits, o.width, o.normed,
                                       o.hidden, o.dweight + first * o.hidden, o.hidden);
    });
  }
};

std::vector<Contender> directions_of(const Job& job) {
  const Operands& o = job.o;
  const double product =
                   2.0 * static_cast<double>(o.rows * o.hidden) * static_cast<double>(o.vocab),
               activations = 2.0 * static_cast<double>(o.rows * o.hidden),
               weights = 2.0 * static_cast<double>(o.vocab * o.hidden);
  const auto both = [job]() -> Status {
    AMXT_TRY(job.forward());
    return job.backward();
  };
  const int64_t extra = job.head->scratch_bytes() + o.extra_bytes + job.gemm_bytes,
                logits = 4 * o.rows * o.vocab;
  const auto named = [&](const char* form) {
    return Json{{"form", form}, {"implementation", job.gemm->name()}};
  };
  Json row = named("forward and backward");
  row["extra_bytes"] = extra;
  row["logits_bytes"] = logits;
  row["extra_to_logits"] = static_cast<double>(extra) / static_cast<double>(logits);
  std::vector<Contender> contenders;
  contenders.push_back(
      {named("forward"), product, activations + weights, [job] { return job.forward(); }});
  contenders.push_back({row, 3 * product, 2 * activations + 3 * weights, both});
  return contenders;
}

}  // namespace

Result<std::string> bench_head(std::string_view options, int threads, bool pin,
                               const BenchLimits& limits) {
  AMXT_ASSIGN(const BenchRequest request, parse_bench_request(kind(), options));
  AMXT_ASSIGN(const std::unique_ptr<BenchRun> run,
              BenchRun::create(kind(), request, threads, pin, limits));
  AMXT_TRY(run->limit_by_compute());
  for (const BenchShape& each : request.shapes) {
    model::ModelConfig config;
    config.vocab_size = each[1];
    config.hidden_size = each[2];
    const store::Layout::Order order = store::Layout::order_for(config, true);
    AMXT_ASSIGN(const auto gemm, kernels::Gemm<bf16>::create(run->pool(), run->isa(), order));
    Job job{nullptr, gemm.get(), 0, {}};
    const int64_t bytes = place(config, each[0], nullptr, &job.o);
    AMXT_TRY(check_bench_memory(kind(), each, bytes));
    AMXT_ASSIGN(const Buffer memory, Buffer::allocate(bytes, "operands of the benchmark"));
    place(config, each[0], memory.data(), &job.o);
    fill(job.o);
    AMXT_ASSIGN(const auto head,
                model::Head<bf16>::create(config, run->pool(), run->isa(), gemm.get(), each[0]));
    job.head = head.get();
    job.gemm_bytes = kernels::Gemm<bf16>::scratch_bytes_needed(order, job.o.rows, job.o.rows,
                                                               job.o.width, job.o.hidden, threads);
    AMXT_TRY(run->take_turns(each, directions_of(job)));
  }
  return run->result().dump();
}

}  // namespace amxt::train
