// bench layer: one decoder layer, forward with all that its backward needs kept, backward, and the gradients of its four matrices.
//
// FLOP: of the model: three products of each matrix, and attention's causal half, forward once and backward twice.
#include <cstring>

#include "base/buffer.h"
#include "base/carver.h"
#include "kernels/blocked_layout.h"
#include "model/decoder.h"
#include "store/layout.h"
#include "train/bench_kernels.h"
#include "train/bench_samples.h"

namespace amxt::train {

namespace {

using model::ModelConfig;

const BenchKind& kind() {
  constexpr int64_t kMost = 65536;
  static const BenchKind kind{"layer",
                              {{"T", kMost},
                               {"hidden", kMost},
                               {"intermediate", int64_t{1} << 18},
                               {"heads", 1024},
                               {"kv_heads", 1024},
                               {"head_dim", 256}},
                              {{512, 4096, 14336, 32, 8, 128}, {2048, 4096, 14336, 32, 8, 128}}};
  return kind;
}

Result<ModelConfig> config_of(const BenchShape& shape) {
  ModelConfig config;
  config.hidden_size = shape[1];
  config.intermediate_size = shape[2];
  config.heads = shape[3];
  config.kv_heads = shape[4];
  config.head_dim = shape[5];
  if (config.heads % config.kv_heads != 0)
    return bench_invalid(kind(), "kv_heads must divide heads");
  if (config.head_dim % 2 != 0) return bench_invalid(kind(), "head_dim must be even");
  return config;
}

// A matrix of the layer: its weight, gradient, and the pair of activations that the gradient is made of.
struct Matrix {
  int64_t N, K;
  bf16 *weight, *gradient;
  const bf16 *dy, *x;
};

struct Operands {
  int64_t T;
  int32_t *position, *document_start;
  bf16 *x, *y, *dy, *gradient, *norms, *kept_elements, *pair_elements;
  float *kept_floats, *pair_floats;
  Matrix qkv, output, gate_up, down;
  // Parts of the above.
  model::Rows rows;
  model::LayerWeights<bf16> weights;
  model::Kept<bf16> kept;
  model::LayerGradients<bf16> pairs;
};

Matrix place_matrix(int64_t N, int64_t K, Carver* carver) {
  // Random, so that one buffer serves in either order.
  const int64_t elements = kernels::BlockedShape{N, K}.elements();
  bf16* const weight = carver->take<bf16>(elements);
  return {N, K, weight, carver->take<bf16>(elements), nullptr, nullptr};
}

int64_t place(const ModelConfig& c, int64_t T, std::byte* memory, Operands* to) {
  const int64_t D = c.hidden_size, I = c.intermediate_size, Q = c.query_size();
  const model::KeptSize kept = model::kept_size(c, model::Keep::kAll);
  Carver carver(memory);
  to->T = T;
  to->qkv = place_matrix(Q + 2 * c.kv_size(), D, &carver);
  to->output = place_matrix(D, Q, &carver);
  to->gate_up = place_matrix(2 * I, D, &carver);
  to->down = place_matrix(D, I, &carver);
  to->norms = carver.take<bf16>(2 * D);
  to->position = carver.take<int32_t>(T);
  to->document_start = carver.take<int32_t>(T);
  for (bf16** rows : {&to->x, &to->y, &to->dy, &to->gradient}) *rows = carver.take<bf16>(T * D);
  to->kept_elements = carver.take<bf16>(kept.elements_per_row * T);
  to->kept_floats = carver.take<float>(kept.floats_per_row * T);
  to->pair_elements = carver.take<bf16>(model::layer_gradients_elements_per_row(c) * T);
  to->pair_floats = carver.take<float>(model::layer_gradients_floats(c));
  return carver.used();
}

// What the decoder is called with, of memory that is there.
void connect(const ModelConfig& c, Operands* to) {
  to->rows = {1, to->T, to->position, to->document_start};
  to->weights.input_norm = to->norms;
  to->weights.post_norm = to->norms + c.hidden_size;
  to->weights.qkv = to->qkv.weight;
  to->weights.output = to->output.weight;
  to->weights.gate_up = to->gate_up.weight;
  to->weights.down = to->down.weight;
  to->kept = model::place_kept(c, model::Keep::kAll, to->T, to->kept_elements, to->kept_floats);
  to->pairs = model::place_layer_gradients(c, to->T, to->pair_elements, to->pair_floats);
  const auto pair = [](Matrix* matrix, const bf16* dy, const bf16* x) {
    matrix->dy = dy;
    matrix->x = x;
  };
  pair(&to->qkv, to->pairs.dqkv, to->pairs.normed);
  pair(&to->output, to->pairs.dmiddle, to->pairs.attention);
  pair(&to->gate_up, to->pairs.dgate_up, to->pairs.normed_post);
  pair(&to->down, to->pairs.dout, to->pairs.activated);
}

void fill(const ModelConfig& c, const Operands& o) {
  const int64_t D = c.hidden_size;
  // Weights as small as those of a model, so that activations keep their size.
  uint64_t seed = 0;
  for (const Matrix* matrix : {&o.qkv, &o.output, &o.gate_up, &o.down}) {
    fill_random(matrix->weight, kernels::BlockedShape{matrix->N, matrix->K}.elements(), ++seed,
                0.02f);
  }
  fill_random(o.norms, 2 * D, ++seed);
  fill_random(o.x, o.T * D, ++seed);
  fill_random(o.dy, o.T * D, ++seed);
  for (int64_t row = 0; row < o.T; ++row) o.position[row] = static_cast<int32_t>(row);
}

struct Job {
  model::Decoder<bf16>* decoder;
  kernels::Gemm<bf16>* gemm;
  int64_t hidden;
  Operands o;

  Status forward() const { return decoder->forward(o.weights, o.rows, o.x, o.y, o.kept); }
  Status backward() const {
    std::memcpy(o.gradient, o.dy, static_cast<size_t>(o.T * hidden) * sizeof(bf16));
    AMXT_TRY(decoder->backward(o.weights, o.rows, o.x, o.kept, o.gradient, o.pairs));
    for (const Matrix* m : {&o.qkv, &o.output, &o.gate_up, &o.down}) {
      AMXT_TRY(
          gemm->grad_weight_rounded(o.T, m->N, m->K, m->dy, m->N, m->x, m->K, m->gradient, m->K));
    }
    return {};
  }
};

std::vector<Contender> directions_of(const ModelConfig& c, const Job& job) {
  double weights = 0;
  for (const Matrix* matrix : {&job.o.qkv, &job.o.output, &job.o.gate_up, &job.o.down}) {
    weights += static_cast<double>(matrix->N * matrix->K);
  }
  const double T = static_cast<double>(job.o.T);
  const double forward = 2 * T * weights + 2 * T * (T + 1) * static_cast<double>(c.query_size());
  const double rows = 2 * 2 * T * static_cast<double>(c.hidden_size);
  const auto both = [job]() -> Status {
    AMXT_TRY(job.forward());
    return job.backward();
  };
  std::vector<Contender> contenders;
  contenders.push_back({Json{{"form", "forward"}, {"implementation", job.gemm->name()}}, forward,
                        2 * weights + rows, [job] { return job.forward(); }});
  contenders.push_back(
      {Json{{"form", "forward and backward"}, {"implementation", job.gemm->name()}}, 3 * forward,
       6 * weights + 2 * rows, both});
  return contenders;
}

}  // namespace

Result<std::string> bench_layer(std::string_view options, int threads, bool pin,
                                const BenchLimits& limits) {
  AMXT_ASSIGN(const BenchRequest request, parse_bench_request(kind(), options));
  for (const BenchShape& each : request.shapes) AMXT_TRY(config_of(each));
  AMXT_ASSIGN(const std::unique_ptr<BenchRun> run,
              BenchRun::create(kind(), request, threads, pin, limits));
  AMXT_TRY(run->limit_by_compute());
  for (const BenchShape& each : request.shapes) {
    AMXT_ASSIGN(const ModelConfig config, config_of(each));
    AMXT_ASSIGN(const auto gemm,
                kernels::Gemm<bf16>::create(run->pool(), run->isa(),
                                            store::Layout::order_for(config, true)));
    Job job{nullptr, gemm.get(), config.hidden_size, {}};
    const int64_t T = each[0], bytes = place(config, T, nullptr, &job.o);
    AMXT_TRY(check_bench_memory(kind(), each, bytes));
    AMXT_ASSIGN(const Buffer memory, Buffer::allocate(bytes, "operands of the benchmark"));
    place(config, T, memory.data(), &job.o);
    connect(config, &job.o);
    fill(config, job.o);
    AMXT_ASSIGN(const auto decoder,
                model::Decoder<bf16>::create(config, run->pool(), run->isa(), gemm.get(), T, T));
    job.decoder = decoder.get();
    AMXT_TRY(run->take_turns(each, directions_of(config, job)));
  }
  return run->result().dump();
}

}  // namespace amxt::train
