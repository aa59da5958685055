#include "train/step.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "base/text.h"
#include "kernels/rows.h"

namespace amxt::train {
namespace {

using model::Role;

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Hands out 64-byte-aligned pieces of `base`; with a null base it only adds up.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += aligned(count * static_cast<int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(at);
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

int64_t vocabulary_width(const model::ModelConfig& c) {
  return std::min(c.vocab_size, model::kVocabularyBlock);
}

// Elements that a micro-batch's place in the arena holds: a layer's pairs, or the head's, or the gradient of the embedding.
int64_t slot_elements_per_row(const model::ModelConfig& c) {
  return std::max(model::layer_gradients_elements_per_row(c), c.hidden_size + vocabulary_width(c));
}

// A layer's vector gradients and the final norm's.
int64_t slot_floats_of(const model::ModelConfig& c) {
  return model::layer_gradients_floats(c) + c.hidden_size;
}

// Rows of a matrix of K columns whose gradient is summed at a time: whole panels.
int64_t gradient_block_rows(int64_t K) {
  return std::max<int64_t>(1, kGradientBlockBytes / 4 / K / store::kPanelRows) * store::kPanelRows;
}

int64_t gradient_block_bytes(int64_t widest) {
  return std::max(kGradientBlockBytes, store::kPanelRows * widest * 4);
}

constexpr int64_t kLastWordsNs = 1'000'000'000;

// Rows of the embedding that the tokens of a node can need.
int64_t embedding_rows(const model::ModelConfig& c, int64_t tokens) {
  return std::min(c.vocab_size, tokens);
}

struct ProcessMemory {
  int64_t private_bytes = 0, pss_bytes = 0, peak_rss_bytes = 0;
};

ProcessMemory process_memory() {
  ProcessMemory memory;
  int64_t shared_bytes = 0;
  std::ifstream file("/proc/self/smaps_rollup");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const int64_t bytes = std::atoll(line.c_str() + colon + 1) * 1024;
    const std::string_view key = std::string_view(line).substr(0, colon);
    if (key == "Pss") memory.pss_bytes = bytes;
    if (key == "Pss_Shmem") shared_bytes = bytes;
  }
  // By kind of memory, not by who has touched a page so far: a shared page that one rank alone has read is shared all the same.
  memory.private_bytes = memory.pss_bytes - shared_bytes;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  memory.peak_rss_bytes = usage.ru_maxrss * int64_t{1024};
  return memory;
}

}  // namespace

template <typename E>
int64_t StepRunner<E>::arena_bytes(const model::ModelConfig& config,
                                   const EffectiveOptions& options, int ranks, int world,
                                   int64_t wave, const store::Layout& layout) {
  const int64_t rows = options.micro_batch * options.sequence_length, slots = ranks * wave;
  Carver carver(nullptr);
  carver.take<std::byte>(StepControl::shared_bytes(ranks));
  carver.take<std::byte>(world * record_bytes(options));
  carver.take<double>(layout.panels());
  carver.take<int32_t>(world * (1 + wave * rows));
  carver.take<float>(slots * slot_floats_of(config));
  carver.take<E>(slots * rows * slot_elements_per_row(config));
  if (world > ranks) {
    carver.take<double>(layout.panels());
    carver.take<E>(embedding_rows(config, slots * rows) * config.hidden_size);
  }
  return carver.used();
}

template <typename E>
int64_t StepRunner<E>::record_bytes(const EffectiveOptions& options) {
  return aligned(static_cast<int64_t>(sizeof(Mailbox)) + 2 * options.accumulate * 8);
}

template <typename E>
int64_t StepRunner<E>::kept_bytes(const model::ModelConfig& config, const EffectiveOptions& options,
                                  int64_t wave, model::Keep keep) {
  const int64_t rows = options.micro_batch * options.sequence_length;
  const model::KeptSize size = model::kept_size(config, keep);
  Carver carver(nullptr);
  carver.take<E>((config.layers + 1) * wave * rows * config.hidden_size);
  carver.take<E>(config.layers * wave * rows * size.elements_per_row);
  carver.take<float>(config.layers * wave * rows * size.floats_per_row);
  carver.take<E>(wave * rows * config.hidden_size);
  carver.take<float>(wave * rows * config.hidden_size);
  carver.take<float>(4 * wave * rows);
  carver.take<float>(options.accumulate * rows);
  carver.take<E>(config.hidden_size);
  if (config.tie_word_embeddings && wave < options.accumulate)
    carver.take<E>(options.accumulate * rows * config.hidden_size);
  return carver.used();
}

template <typename E>
int64_t StepRunner<E>::scratch_bytes(const model::ModelConfig& config,
                                     const EffectiveOptions& options, int threads) {
  const int64_t rows = options.micro_batch * options.sequence_length;
  const int64_t widest =
      std::max({config.hidden_size, config.intermediate_size, config.query_size()});
  return model::Decoder<E>::scratch_bytes_needed(config, rows, options.sequence_length, threads) +
         model::Head<E>::scratch_bytes_needed(config, rows) + aligned(gradient_block_bytes(widest));
}

template <typename E>
Result<std::unique_ptr<StepRunner<E>>> StepRunner<E>::create(const Parts& parts,
                                                             Deadline deadline) {
  std::unique_ptr<StepRunner> runner(new StepRunner(parts));
  const model::ModelConfig& config = *parts.config;
  const EffectiveOptions& options = *parts.options;
  const int64_t rows = runner->micro_rows(), wave = parts.plan->wave;
  AMXT_ASSIGN(runner->decoder_, model::Decoder<E>::create(config, parts.pool, parts.isa, parts.gemm,
                                                          rows, options.sequence_length));
  AMXT_ASSIGN(runner->head_,
              model::Head<E>::create(config, parts.pool, parts.isa, parts.gemm, rows));
  AMXT_ASSIGN(runner->kept_, Buffer::allocate(kept_bytes(config, options, wave, parts.plan->keep),
                                              "kept activations"));
  const int64_t widest =
      std::max({config.hidden_size, config.intermediate_size, config.query_size()});
  AMXT_ASSIGN(runner->work_,
              Buffer::allocate(gradient_block_bytes(widest), "a block of a weight's gradient"));
  AMXT_ASSIGN(runner->shared_, parts.group->share("the arena of a step",
                                                  arena_bytes(config, options, runner->ranks(),
                                                              runner->world(), wave, *parts.layout),
                                                  deadline));
  AMXT_TRY(runner->carve());
  if (runner->has_nodes()) AMXT_TRY(runner->join_nodes(deadline));
  return runner;
}

template <typename E>
Status StepRunner<E>::carve() {
  const model::ModelConfig& config = *p_.config;
  const int64_t rows = micro_rows(), wave = p_.plan->wave, slots = ranks() * wave,
                accumulate = p_.options->accumulate;
  Carver shared(shared_.data());
  control_ = std::make_unique<StepControl>(
      shared.template take<std::byte>(StepControl::shared_bytes(ranks())), p_.group);
  record_stride_ = record_bytes(*p_.options);
  records_ = shared.template take<std::byte>(world() * record_stride_);
  squares_ = shared.template take<double>(p_.layout->panels());
  token_stride_ = 1 + wave * rows;
  tokens_ = shared.template take<int32_t>(world() * token_stride_);
  slot_float_count_ = slot_floats_of(config);
  floats_ = shared.template take<float>(slots * slot_float_count_);
  slot_elements_ = rows * slot_elements_per_row(config);
  arena_ = shared.template take<E>(slots * slot_elements_);
  if (has_nodes()) {
    packed_ = shared.template take<double>(p_.layout->panels());
    embedding_ = shared.template take<E>(embedding_rows(config, slots * rows) * config.hidden_size);
  }

  kept_size_ = model::kept_size(config, p_.plan->keep);
  Carver kept(kept_.data());
  inputs_ = kept.template take<E>((config.layers + 1) * wave * rows * config.hidden_size);
  kept_elements_ = kept.template take<E>(config.layers * wave * rows * kept_size_.elements_per_row);
  kept_floats_ = kept.template take<float>(config.layers * wave * rows * kept_size_.floats_per_row);
  gradient_ = kept.template take<E>(wave * rows * config.hidden_size);
  dnormed_ = kept.template take<float>(wave * rows * config.hidden_size);
  loss_rows_ = kept.template take<float>(4 * wave * rows);
  scale_ = kept.template take<float>(accumulate * rows);
  norm_ = kept.template take<E>(config.hidden_size);
  if (defers_embedding()) deferred_ = kept.template take<E>(accumulate * rows * config.hidden_size);
  block_ = work_.template as<float>();
  embedding_rows_.reserve(static_cast<size_t>(slots * rows));
  return {};
}

template <typename E>
E* StepRunner<E>::slot(int local_rank, int64_t index) const {
  return arena_ + (local_rank * p_.plan->wave + index) * slot_elements_;
}

template <typename E>
float* StepRunner<E>::slot_floats(int local_rank, int64_t index) const {
  return floats_ + (local_rank * p_.plan->wave + index) * slot_float_count_;
}

template <typename E>
E* StepRunner<E>::input(int64_t layer, int64_t index) const {
  return inputs_ + (layer * p_.plan->wave + index) * micro_rows() * p_.config->hidden_size;
}

template <typename E>
model::Kept<E> StepRunner<E>::kept(int64_t layer, int64_t index, int64_t row_count) const {
  const int64_t at = (layer * p_.plan->wave + index) * micro_rows();
  return model::place_kept(*p_.config, p_.plan->keep, row_count,
                           kept_elements_ + at * kept_size_.elements_per_row,
                           kept_floats_ + at * kept_size_.floats_per_row);
}

template <typename E>
model::Rows StepRunner<E>::rows(const Batch& batch, int64_t accumulation) const {
  const int64_t first = accumulation * p_.options->micro_batch;
  model::Rows rows;
  rows.samples = std::min(p_.options->micro_batch, batch.samples - first);
  rows.sequence = batch.sequence;
  rows.position = batch.position.data() + first * batch.sequence;
  rows.document_start = batch.document_start.data() + first * batch.sequence;
  return rows;
}

template <typename E>
model::LossRows StepRunner<E>::loss_rows(const Batch& batch, int64_t accumulation,
                                         int64_t index) const {
  const int64_t wave_rows = p_.plan->wave * micro_rows(), at = index * micro_rows();
  model::LossRows loss;
  loss.target = batch.target.data() + accumulation * p_.options->micro_batch * batch.sequence;
  loss.maximum = loss_rows_ + at;
  loss.sum = loss_rows_ + wave_rows + at;
  loss.target_logit = loss_rows_ + 2 * wave_rows + at;
  loss.lse = loss_rows_ + 3 * wave_rows + at;
  return loss;
}

template <typename E>
int64_t StepRunner<E>::micro_batches(const Batch& batch) const {
  return (batch.samples + p_.options->micro_batch - 1) / p_.options->micro_batch;
}

template <typename E>
Status StepRunner<E>::check_batch(const Batch& batch, bool whole) const {
  const int64_t most = p_.options->micro_batch * p_.options->accumulate;
  if (whole ? batch.samples != most : batch.samples > most) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("the batch has {} samples; a step takes {}{} (micro-batch {} x accumulate {})",
                    batch.samples, whole ? "" : "at most ", most, p_.options->micro_batch,
                    p_.options->accumulate));
  }
  if (batch.sequence < (batch.samples > 0 ? 1 : 0) ||
      batch.sequence > p_.options->sequence_length) {
    return Error(Code::kInvalidArgument,
                 fmt::format("the batch has rows of {} positions; the trainer takes 1 to {}",
                             batch.sequence, p_.options->sequence_length));
  }
  return {};
}

// Loss weights per micro-batch, and what the metrics count.
template <typename E>
void StepRunner<E>::publish_counts(const Batch& batch) {
  Mailbox& own = box(me());
  own = {};
  own.tokens = batch.tokens;
  own.bad_micro_batch = own.bad_layer = own.bad_tensor = -1;
  own.micro_rows = p_.options->micro_batch * batch.sequence;
  own.micro_batches = micro_batches(batch);
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    double sum = 0;
    if (a < micro_batches(batch)) {
      const model::Rows r = rows(batch, a);
      const float* from = batch.weight.data() + a * p_.options->micro_batch * batch.sequence;
      for (int64_t i = 0; i < r.count(); ++i) {
        sum += from[i];
        own.counted += from[i] != 0;
      }
    }
    weight(me(), a) = sum;
    loss(me(), a) = 0;
  }
}

// d(objective) / d(loss of a row).
template <typename E>
void StepRunner<E>::set_scales(const Batch& batch) {
  const int64_t all = p_.options->accumulate * world();
  double total = 0;
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) total += weight(rank, a);
  }
  for (int64_t a = 0; a < micro_batches(batch); ++a) {
    const bool by_tokens = p_.options->loss_average == LossAverage::kTokens;
    const double divisor = by_tokens ? total : weight(me(), a) * static_cast<double>(all);
    const float factor = divisor > 0 ? static_cast<float>(1.0 / divisor) : 0.0f;
    const int64_t first = a * p_.options->micro_batch * batch.sequence, n = rows(batch, a).count();
    for (int64_t i = 0; i < n; ++i)
      scale_[a * micro_rows() + i] = batch.weight[static_cast<size_t>(first + i)] * factor;
  }
}

template <typename E>
void StepRunner<E>::embed(const Batch& batch, int64_t first, int64_t count) {
  int64_t done = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    if (has_nodes()) {
      head_->embed(n, places_.data() + done, embedding_, input(0, i));
    } else {
      const int32_t* token =
          batch.token.data() + (first + i) * p_.options->micro_batch * batch.sequence;
      head_->embed(n, token, p_.parameters->tensor(p_.layout->embedding()), input(0, i));
    }
    done += n;
  }
}

template <typename E>
Status StepRunner<E>::forward_layers(const Batch& batch, int64_t first, int64_t count, bool keep) {
  embed(batch, first, count);
  for (int64_t layer = 0; layer < p_.config->layers; ++layer) {
    AMXT_TRY(poll());
    const int64_t deal = p_.layout->layer_deal(layer);
    AMXT_ASSIGN(const E* const there, p_.parameters->acquire(deal, [this] { return poll(); }));
    const model::LayerWeights<E> weights = p_.parameters->layer_weights(layer, there);
    for (int64_t i = 0; i < count; ++i) {
      const model::Rows r = rows(batch, first + i);
      const model::Kept<E> kept_here = keep ? kept(layer, i, r.count()) : model::Kept<E>{};
      AMXT_TRY(decoder_->forward(weights, r, input(layer, i), input(layer + 1, i), kept_here));
    }
    p_.parameters->release(deal);
  }
  AMXT_ASSIGN(const E* const norm,
              p_.parameters->acquire(p_.layout->norm_deal(), [this] { return poll(); }));
  std::copy_n(norm, p_.config->hidden_size, norm_);
  p_.parameters->release(p_.layout->norm_deal());
  return {};
}

template <typename E>
Status StepRunner<E>::head_forward(const Batch& batch, int64_t first, int64_t count) {
  const int64_t V = p_.config->vocab_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    head_->normalise(n, input(p_.config->layers, i), norm_, slot(local_me(), i));
    head_->begin(n, loss_rows(batch, first + i, i));
  }
  for (int64_t block = 0; block * model::kVocabularyBlock < V; ++block) {
    AMXT_TRY(poll());
    const int64_t row = block * model::kVocabularyBlock, deal = p_.layout->head_deal(block);
    AMXT_ASSIGN(const E* const head, p_.parameters->acquire(deal, [this] { return poll(); }));
    for (int64_t i = 0; i < count; ++i) {
      AMXT_TRY(head_->forward_block(rows(batch, first + i).count(), slot(local_me(), i), head, row,
                                    std::min(model::kVocabularyBlock, V - row),
                                    loss_rows(batch, first + i, i)));
    }
    p_.parameters->release(deal);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t a = first + i, n = rows(batch, a).count();
    const model::LossRows of = loss_rows(batch, a, i);
    head_->finish(n, of);
    const float* counts = batch.weight.data() + a * p_.options->micro_batch * batch.sequence;
    double sum = 0;
    for (int64_t row = 0; row < n; ++row) {
      if (counts[row] != 0)
        sum += static_cast<double>(counts[row]) *
               (static_cast<double>(of.lse[row]) - static_cast<double>(of.target_logit[row]));
    }
    loss(me(), a) = sum;
    Mailbox& own = box(me());
    if (!std::isfinite(sum) && own.bad_micro_batch < 0) {
      own.bad_micro_batch = a;
      own.bad_layer = find_bad_layer(i);
    }
  }
  return {};
}

// The first layer whose output is not finite, `layers` when all are (then the head made it), for a message only.
template <typename E>
int64_t StepRunner<E>::find_bad_layer(int64_t index) const {
  const int64_t n = micro_rows() * p_.config->hidden_size;
  for (int64_t layer = 0; layer <= p_.config->layers; ++layer) {
    const E* x = input(layer, index);
    for (int64_t i = 0; i < n; ++i) {
      if (!std::isfinite(to_float(x[i]))) return layer - 1;
    }
  }
  return p_.config->layers;
}

template <typename E>
Status StepRunner<E>::head_backward(const Batch& batch, int64_t first, int64_t count,
                                    bool first_wave) {
  const int rank = local_me();
  const int64_t D = p_.config->hidden_size, V = p_.config->vocab_size,
                width = vocabulary_width(*p_.config);
  const auto normed = [&](int r, int64_t i) -> const E* { return slot(r, i); };
  const auto dlogits = [&](int r, int64_t i) -> const E* {
    return slot(r, i) + local_box(r).micro_rows * D;
  };
  for (int64_t block = 0; block * model::kVocabularyBlock < V; ++block) {
    const int64_t row = block * model::kVocabularyBlock, deal = p_.layout->head_deal(block),
                  n_rows = std::min(model::kVocabularyBlock, V - row);
    AMXT_ASSIGN(const E* const head, p_.parameters->acquire(deal, [this] { return poll(); }));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t a = first + i, n = rows(batch, a).count();
      AMXT_TRY(head_->backward_block(n, slot(rank, i), head, row, n_rows, loss_rows(batch, a, i),
                                     scale_ + a * micro_rows(), slot(rank, i) + n * D, width,
                                     dnormed_ + i * micro_rows() * D, block == 0));
    }
    p_.parameters->release(deal);
    AMXT_TRY(control_->barrier());
    AMXT_TRY(deal_gradient(
        deal, first_wave, [&](const store::OwnedRange& range, const GradientRows& to) {
          return matrix_gradient(range, to, count, normed, dlogits, width, range.row_begin - row);
        }));
    AMXT_TRY(control_->barrier());
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    head_->norm_backward(n, input(p_.config->layers, i), norm_, dnormed_ + i * micro_rows() * D,
                         gradient_ + i * micro_rows() * D,
                         slot_floats(rank, i) + model::layer_gradients_floats(*p_.config));
  }
  return {};
}

template <typename E>
Status StepRunner<E>::layers_backward(const Batch& batch, int64_t first, int64_t count,
                                      bool first_wave) {
  const int64_t D = p_.config->hidden_size;
  for (int64_t layer = p_.config->layers - 1; layer >= 0; --layer) {
    const int64_t deal = p_.layout->layer_deal(layer);
    AMXT_ASSIGN(const E* const there, p_.parameters->acquire(deal, [this] { return poll(); }));
    const model::LayerWeights<E> weights = p_.parameters->layer_weights(layer, there);
    for (int64_t i = 0; i < count; ++i) {
      AMXT_TRY(poll());
      const model::Rows r = rows(batch, first + i);
      AMXT_TRY(decoder_->backward(
          weights, r, input(layer, i), kept(layer, i, r.count()), gradient_ + i * micro_rows() * D,
          model::place_layer_gradients(*p_.config, r.count(), slot(local_me(), i),
                                       slot_floats(local_me(), i))));
    }
    p_.parameters->release(deal);
    AMXT_TRY(control_->barrier());
    AMXT_TRY(deal_gradient(deal, first_wave,
                           [&](const store::OwnedRange& range, const GradientRows& to) {
                             return layer_part(range, to, count);
                           }));
    if (layer == p_.config->layers - 1) {
      AMXT_TRY(deal_gradient(p_.layout->norm_deal(), first_wave,
                             [&](const store::OwnedRange& range, const GradientRows& to) {
                               return norm_part(range, to, count);
                             }));
    }
    AMXT_TRY(control_->barrier());
  }
  return {};
}

template <typename E>
Status StepRunner<E>::deal_gradient(int64_t deal, bool first_wave, Compute compute) {
  if (has_nodes()) return deal_parts(deal, first_wave, compute);
  for (const store::OwnedRange& range : p_.layout->ranges(me(), deal)) {
    GradientRows to;
    to.add = !first_wave;
    if (p_.parameters->gradients_are_bf16()) {
      to.as_bf16 = p_.parameters->gradient_bf16(range);
    } else {
      to.as_float = p_.parameters->gradient_float(range);
    }
    AMXT_TRY(compute(range, to));
  }
  return {};
}

template <typename E>
Status StepRunner<E>::matrix_gradient(const store::OwnedRange& range, const GradientRows& to,
                                      int64_t count, Locator x, Locator dy, int64_t lddy,
                                      int64_t first_column) {
  const int64_t K = p_.layout->specs()[static_cast<size_t>(range.tensor)].columns;
  const int64_t block_rows = gradient_block_rows(K);
  for (int64_t row = 0; row < range.rows(); row += block_rows) {
    const int64_t n = std::min(block_rows, range.rows() - row);
    float* const sum = to.as_float == nullptr ? block_ : to.as_float + row * K;
    bool add = to.add;
    for (int64_t i = 0; i < count; ++i) {
      for (int rank = 0; rank < ranks(); ++rank) {
        AMXT_TRY(p_.gemm->grad_weight(local_box(rank).micro_rows, n, K,
                                      dy(rank, i) + first_column + row, lddy, x(rank, i), K, sum, K,
                                      add));
        add = true;
      }
    }
    if (to.as_float == nullptr) {
      bf16* rounded = to.as_bf16 + row * K;
      p_.pool->run_blocks(n * K, int64_t{1} << 15, [&](int64_t begin, int64_t end) {
        kernels::convert(p_.isa, end - begin, block_ + begin, rounded + begin);
      });
    }
  }
  return {};
}

template <typename E>
void StepRunner<E>::vector_gradient(const store::OwnedRange& range, const GradientRows& to,
                                    int64_t count, FunctionRef<void(int, int64_t, float*)> add) {
  const int64_t n = p_.layout->specs()[static_cast<size_t>(range.tensor)].columns;
  float* const sum = to.as_float == nullptr ? block_ : to.as_float;
  if (!to.add) std::fill_n(sum, n, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    for (int rank = 0; rank < ranks(); ++rank) add(rank, i, sum);
  }
  if (to.as_float == nullptr) kernels::convert(p_.isa, n, sum, to.as_bf16);
}

template <typename E>
Status StepRunner<E>::layer_part(const store::OwnedRange& range, const GradientRows& to,
                                 int64_t count) {
  const model::ModelConfig& c = *p_.config;
  const int64_t D = c.hidden_size, Q = c.query_size(), KV = c.kv_size(), I = c.intermediate_size,
                W = Q + 2 * KV;
  const auto pairs = [&](int rank, int64_t i) {
    return model::place_layer_gradients(c, local_box(rank).micro_rows, slot(rank, i),
                                        slot_floats(rank, i));
  };
  const auto normed = [&](int r, int64_t i) -> const E* { return pairs(r, i).normed; };
  const auto dqkv = [&](int r, int64_t i) -> const E* { return pairs(r, i).dqkv; };
  const auto attention = [&](int r, int64_t i) -> const E* { return pairs(r, i).attention; };
  const auto dmiddle = [&](int r, int64_t i) -> const E* { return pairs(r, i).dmiddle; };
  const auto normed_post = [&](int r, int64_t i) -> const E* { return pairs(r, i).normed_post; };
  const auto dgate_up = [&](int r, int64_t i) -> const E* { return pairs(r, i).dgate_up; };
  const auto activated = [&](int r, int64_t i) -> const E* { return pairs(r, i).activated; };
  const auto dout = [&](int r, int64_t i) -> const E* { return pairs(r, i).dout; };
  // Gradient of a bias: the column sums of dY.
  const int64_t columns = p_.layout->specs()[static_cast<size_t>(range.tensor)].columns;
  const auto bias = [&](Locator dy, int64_t ld, int64_t column) -> Status {
    vector_gradient(range, to, count, [&](int rank, int64_t i, float* sum) {
      kernels::sum_rows(p_.isa, local_box(rank).micro_rows, columns, dy(rank, i) + column, ld, sum);
    });
    return {};
  };
  const auto norm = [&](FunctionRef<const float*(int, int64_t)> partial) -> Status {
    vector_gradient(range, to, count, [&](int rank, int64_t i, float* sum) {
      kernels::accumulate(p_.isa, columns, partial(rank, i), sum);
    });
    return {};
  };
  const auto matrix = [&](Locator x, Locator dy, int64_t ld, int64_t column) -> Status {
    return matrix_gradient(range, to, count, x, dy, ld, column + range.row_begin);
  };
  AMXT_TRY(poll());
  switch (p_.layout->specs()[static_cast<size_t>(range.tensor)].role) {
    case Role::kQuery:
      return matrix(normed, dqkv, W, 0);
    case Role::kKey:
      return matrix(normed, dqkv, W, Q);
    case Role::kValue:
      return matrix(normed, dqkv, W, Q + KV);
    case Role::kOutput:
      return matrix(attention, dmiddle, D, 0);
    case Role::kGate:
      return matrix(normed_post, dgate_up, 2 * I, 0);
    case Role::kUp:
      return matrix(normed_post, dgate_up, 2 * I, I);
    case Role::kDown:
      return matrix(activated, dout, D, 0);
    case Role::kQueryBias:
      return bias(dqkv, W, 0);
    case Role::kKeyBias:
      return bias(dqkv, W, Q);
    case Role::kValueBias:
      return bias(dqkv, W, Q + KV);
    case Role::kOutputBias:
      return bias(dmiddle, D, 0);
    case Role::kGateBias:
      return bias(dgate_up, 2 * I, 0);
    case Role::kUpBias:
      return bias(dgate_up, 2 * I, I);
    case Role::kDownBias:
      return bias(dout, D, 0);
    case Role::kInputNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dinput_norm; });
    case Role::kPostNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dpost_norm; });
    case Role::kQueryNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dquery_norm; });
    case Role::kKeyNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dkey_norm; });
    default:
      return Error(Code::kInternal,
                   fmt::format("tensor {} is not a layer's",
                               p_.layout->specs()[static_cast<size_t>(range.tensor)].name));
  }
}

template <typename E>
Status StepRunner<E>::norm_part(const store::OwnedRange& range, const GradientRows& to,
                                int64_t count) {
  vector_gradient(range, to, count, [&](int rank, int64_t i, float* sum) {
    kernels::accumulate(p_.isa, p_.config->hidden_size,
                        slot_floats(rank, i) + model::layer_gradients_floats(*p_.config), sum);
  });
  return {};
}

// Counts places over the node's micro-batches of the wave, in order of k: the row of the embedding's gradient at one.
template <typename E>
const E* StepRunner<E>::source_of(uint64_t place, int64_t count) const {
  auto left = static_cast<int64_t>(place);
  for (int64_t i = 0; i < count; ++i) {
    for (int rank = 0; rank < ranks(); ++rank) {
      const int64_t n = local_box(rank).micro_rows;
      if (left < n) return slot(rank, i) + left * p_.config->hidden_size;
      left -= n;
    }
  }
  return nullptr;
}

// The tokens of the wave, of all ranks: those of the node, and of every other node.
template <typename E>
Status StepRunner<E>::gather_tokens(const Batch& batch, int64_t first, int64_t count) {
  int32_t* to = tokens_of(me());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    to = std::copy_n(batch.token.data() + (first + i) * p_.options->micro_batch * batch.sequence, n,
                     to);
  }
  token_count(me()) = static_cast<int32_t>(to - tokens_of(me()));
  if (has_nodes()) AMXT_TRY(exchange_tokens());
  AMXT_TRY(control_->barrier());
  if (has_nodes()) find_needed();
  return {};
}

// Each rank adds, in order of k and position, the gradients of the tokens whose embedding rows it owns.
template <typename E>
Status StepRunner<E>::embedding_backward(const Batch& batch, int64_t first, int64_t count,
                                         bool first_wave, const E* gradient) {
  const int64_t D = p_.config->hidden_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    std::memcpy(slot(local_me(), i), gradient + i * micro_rows() * D,
                static_cast<size_t>(n * D) * sizeof(E));
  }
  if (!has_nodes() || defers_embedding()) {
    AMXT_TRY(gather_tokens(batch, first, count));
  } else {
    AMXT_TRY(control_->barrier());
  }
  if (has_nodes()) {
    AMXT_TRY(embedding_parts(count, first_wave));
    return control_->barrier();
  }
  const bool as_bf16 = p_.parameters->gradients_are_bf16();
  const bool add_to_head = p_.layout->tied();
  for (int64_t block = 0; block < p_.layout->vocabulary_blocks(); ++block) {
    for (const store::OwnedRange& range :
         p_.layout->ranges(me(), p_.layout->embedding_deal(block))) {
      if (first_wave && !add_to_head) {
        if (as_bf16) {
          std::fill_n(p_.parameters->gradient_bf16(range), range.rows() * D, bf16{0});
        } else {
          std::fill_n(p_.parameters->gradient_float(range), range.rows() * D, 0.0f);
        }
      }
      embedding_rows_.clear();
      uint64_t place = 0;
      for (int64_t i = 0; i < count; ++i) {
        for (int rank = 0; rank < ranks(); ++rank) {
          const int64_t n = local_box(rank).micro_rows;
          const int32_t* token = tokens_of(rank_of(rank)) + i * n;
          for (int64_t t = 0; t < n; ++t, ++place) {
            if (token[t] < range.row_begin || token[t] >= range.row_end) continue;
            embedding_rows_.push_back(static_cast<uint64_t>(token[t] - range.row_begin) << 32 |
                                      place);
          }
        }
      }
      std::sort(embedding_rows_.begin(), embedding_rows_.end());
      for (size_t begin = 0; begin < embedding_rows_.size();) {
        const uint64_t row = embedding_rows_[begin] >> 32;
        float* sum =
            as_bf16 ? block_ : p_.parameters->gradient_float(range) + static_cast<int64_t>(row) * D;
        bf16* kept =
            as_bf16 ? p_.parameters->gradient_bf16(range) + static_cast<int64_t>(row) * D : nullptr;
        if (as_bf16) kernels::convert(p_.isa, D, kept, sum);
        size_t end = begin;
        for (; end < embedding_rows_.size() && embedding_rows_[end] >> 32 == row; ++end) {
          kernels::accumulate(p_.isa, D, source_of(embedding_rows_[end] & 0xFFFFFFFF, count), sum);
        }
        if (as_bf16) kernels::convert(p_.isa, D, sum, kept);
        begin = end;
      }
    }
  }
  return control_->barrier();
}

template <typename E>
Status StepRunner<E>::phase_one(const Batch& batch, const StepInput& input) {
  publish_counts(batch);
  box(me()).learning_rate = input.learning_rate;
  if (has_nodes()) AMXT_TRY(exchange_boxes());
  AMXT_TRY(control_->barrier());
  set_scales(batch);
  const int64_t wave = p_.plan->wave, accumulate = p_.options->accumulate;
  for (int64_t first = 0; first < accumulate; first += wave) {
    const int64_t count = std::min(wave, accumulate - first);
    if (has_nodes()) AMXT_TRY(begin_wave(batch, first, count, true));
    AMXT_TRY(forward_layers(batch, first, count, true));
    AMXT_TRY(head_forward(batch, first, count));
    AMXT_TRY(head_backward(batch, first, count, first == 0));
    AMXT_TRY(layers_backward(batch, first, count, first == 0));
    const int64_t wave_elements = count * micro_rows() * p_.config->hidden_size;
    if (defers_embedding()) {
      std::memcpy(deferred_ + first * micro_rows() * p_.config->hidden_size, gradient_,
                  static_cast<size_t>(wave_elements) * sizeof(E));
    } else {
      AMXT_TRY(embedding_backward(batch, first, count, first == 0, gradient_));
    }
  }
  for (int64_t first = 0; defers_embedding() && first < accumulate; first += wave) {
    AMXT_TRY(embedding_backward(batch, first, std::min(wave, accumulate - first), false,
                                deferred_ + first * micro_rows() * p_.config->hidden_size));
  }
  AMXT_TRY(p_.parameters->drain([this] { return poll(); }));
  box(me()).bad_tensor = p_.parameters->gradient_squares(*p_.pool, p_.isa, squares_);
  if (has_nodes()) {
    AMXT_TRY(exchange_boxes());
    AMXT_TRY(exchange_squares());
  }
  return control_->barrier();
}

template <typename E>
std::optional<Error> StepRunner<E>::nonfinite(const StepInput& step, double norm) const {
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) {
      const Mailbox& said = box(rank);
      if (said.bad_micro_batch != a) continue;
      const std::string where = said.bad_layer < 0 ? "the embedding"
                                : said.bad_layer >= p_.config->layers
                                    ? "the head"
                                    : fmt::format("layer {}", said.bad_layer);
      return Error(Code::kNonfinite, fmt::format("step {}: the loss of rank {}, micro-batch {}, is "
                                                 "not finite; first in the output of {}",
                                                 step.step, rank, a, where))
          .with_rank(rank);
    }
  }
  for (int rank = 0; rank < world(); ++rank) {
    if (box(rank).bad_tensor < 0) continue;
    const std::string& name = p_.layout->specs()[static_cast<size_t>(box(rank).bad_tensor)].name;
    return Error(Code::kNonfinite,
                 fmt::format("step {}: the gradient of {} (rows of rank {}) is not finite",
                             step.step, quote(name), rank))
        .with_rank(rank);
  }
  if (!std::isfinite(norm))
    return Error(Code::kNonfinite,
                 fmt::format("step {}: the norm of the gradient is not finite", step.step));
  return std::nullopt;
}

// What every rank computes from the same shared numbers in the same order.
template <typename E>
Status StepRunner<E>::agree(const StepInput& step, StepResult* result) {
  for (int rank = 1; rank < world(); ++rank) {
    const double first = box(0).learning_rate, other = box(rank).learning_rate;
    if (first == other) continue;
    return Error(Code::kMismatch, fmt::format("ranks disagree on the learning rate: rank 0 has {}, "
                                              "rank {} has {}",
                                              first, rank, other))
        .with_rank(rank);
  }
  double losses = 0, weights = 0, means = 0;
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) {
      losses += loss(rank, a);
      weights += weight(rank, a);
      if (weight(rank, a) > 0) means += loss(rank, a) / weight(rank, a);
    }
  }
  if (p_.options->loss_average == LossAverage::kTokens) {
    result->loss = weights > 0 ? losses / weights : 0;
  } else {
    result->loss = means / static_cast<double>(p_.options->accumulate * world());
  }
  double squares = 0;
  for (int64_t panel = 0; panel < p_.layout->panels(); ++panel) squares += squares_[panel];
  result->grad_norm = std::sqrt(squares);
  result->tokens = result->counted = 0;
  for (int rank = 0; rank < world(); ++rank) {
    result->tokens += box(rank).tokens;
    result->counted += box(rank).counted;
  }
  if (auto error = nonfinite(step, result->grad_norm)) {
    if (p_.options->nonfinite == Nonfinite::kStop) return std::move(*error);
    result->skipped = true;
  }
  return {};
}

template <typename E>
void StepRunner<E>::publish_memory() {
  const ProcessMemory memory = process_memory();
  Mailbox& own = box(me());
  own.private_bytes = memory.private_bytes;
  own.pss_bytes = memory.pss_bytes;
  own.peak_rss_bytes = memory.peak_rss_bytes;
}

// A wire is lost when a peer gives it up because the attempt has ended: word of that is on its way. Else the wire alone is broken, and the
// ranks that do not use it now must learn of it.
template <typename E>
Status StepRunner<E>::why_lost(const Error& error) {
  const Deadline grace = Deadline::after(kLastWordsNs);
  while (has_nodes() && !grace.passed()) {
    AMXT_TRY(poll());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (p_.group->check().ok()) p_.group->abort(error.message());
  return p_.group->check();
}

// An error of this rank ends the attempt for all; whoever is first names the cause.
template <typename E>
Error StepRunner<E>::leave(Error error) {
  Status ended = is_fatal(error) ? why_lost(error) : control_->cancel(error);
  give_up_wire();
  return ended ? std::move(error) : std::move(ended).error();
}

template <typename E>
Result<StepResult> StepRunner<E>::step(const Batch& batch, const StepInput& input,
                                       const StepControl::Limits& limits) {
  const int64_t began = monotonic_ns();
  StepResult result;
  AMXT_TRY(begin_call(limits));
  const store::Traffic::Uses before = wire_uses();
  if (input.refused) return leave(*input.refused);
  if (Status ok = check_batch(batch, true); !ok) return leave(std::move(ok).error());
  if (Status ok = phase_one(batch, input); !ok) return leave(std::move(ok).error());
  // Every rank comes to the same verdict from the same numbers: no rank needs to be told.
  if (Status ok = agree(input, &result); !ok) {
    AMXT_TRY(end_call());
    return std::move(ok).error();
  }
  if (!input.commit) {
    AMXT_TRY(end_call());
    result.seconds = static_cast<double>(monotonic_ns() - began) * 1e-9;
    return result;
  }
  if (Status ok = control_->commit(); !ok) {
    give_up_wire();
    return std::move(ok).error();
  }
  if (!result.skipped) {
    kernels::AdamwStep adamw;
    adamw.learning_rate = input.learning_rate;
    adamw.beta1 = p_.options->beta1;
    adamw.beta2 = p_.options->beta2;
    adamw.epsilon = p_.options->epsilon;
    adamw.weight_decay = p_.options->weight_decay;
    adamw.bias_correction1 = 1 - std::pow(p_.options->beta1, static_cast<double>(input.update));
    adamw.bias_correction2 = 1 - std::pow(p_.options->beta2, static_cast<double>(input.update));
    if (p_.options->clip > 0)
      adamw.gradient_scale =
          static_cast<float>(std::min(1.0, p_.options->clip / (result.grad_norm + 1e-6)));
    p_.parameters->update(
        *p_.pool, p_.isa, adamw,
        p_.options->decay == DecayScope::kAll ? store::Decay::kAll : store::Decay::kMatrices);
  }
  publish_memory();
  Mailbox& own = box(me());
  own.wire = wire_since(before);
  own.seconds = static_cast<double>(monotonic_ns() - began) * 1e-9;
  Status finished = has_nodes() ? exchange_boxes() : Status();
  if (finished) finished = control_->finish();
  if (!finished) {
    failed_after_commit_ = true;
    return std::move(finished).error();
  }
  for (int rank = 0; rank < world(); ++rank) {
    const Mailbox& said = box(rank);
    result.seconds = std::max(result.seconds, said.seconds);
    result.pss_bytes += said.pss_bytes;
    result.private_bytes += said.private_bytes;
    result.peak_rss_bytes = std::max(result.peak_rss_bytes, said.peak_rss_bytes);
    add_wire(said.wire, &result);
  }
  return result;
}

template <typename E>
auto StepRunner<E>::evaluate(const Batch& batch, float* log_probabilities,
                             const StepControl::Limits& limits, const std::optional<Error>& refused)
    -> Result<Evaluation> {
  AMXT_TRY(begin_call(limits));
  if (refused) return leave(*refused);
  const auto compute = [&]() -> Status {
    AMXT_TRY(check_batch(batch, false));
    publish_counts(batch);
    int64_t all = micro_batches(batch);
    if (has_nodes()) {
      // A rank with less to do still brings what others need.
      AMXT_TRY(exchange_boxes());
      AMXT_TRY(control_->barrier());
      for (int rank = 0; rank < world(); ++rank) all = std::max(all, box(rank).micro_batches);
    }
    const int64_t wave = p_.plan->wave;
    for (int64_t first = 0; first < all; first += wave) {
      const int64_t count = std::clamp<int64_t>(micro_batches(batch) - first, 0, wave);
      if (has_nodes()) AMXT_TRY(begin_wave(batch, first, count, false));
      AMXT_TRY(forward_layers(batch, first, count, false));
      AMXT_TRY(head_forward(batch, first, count));
      for (int64_t i = 0; log_probabilities != nullptr && i < count; ++i) {
        const model::LossRows of = loss_rows(batch, first + i, i);
        const int64_t at = (first + i) * p_.options->micro_batch * batch.sequence,
                      n = rows(batch, first + i).count();
        for (int64_t row = 0; row < n; ++row) {
          log_probabilities[at + row] =
              of.target[row] >= 0 ? of.target_logit[row] - of.lse[row] : 0.0f;
        }
      }
    }
    AMXT_TRY(p_.parameters->drain([this] { return poll(); }));
    if (has_nodes()) AMXT_TRY(exchange_boxes());
    return control_->barrier();
  };
  if (Status ok = compute(); !ok) return leave(std::move(ok).error());
  AMXT_TRY(end_call());
  Evaluation evaluation;
  for (int64_t a = 0; a < p_.options->accumulate; ++a) {
    for (int rank = 0; rank < world(); ++rank) {
      evaluation.loss_sum += loss(rank, a);
      evaluation.weight_sum += weight(rank, a);
    }
  }
  for (int rank = 0; rank < world(); ++rank) evaluation.tokens += box(rank).counted;
  return evaluation;
}

template <typename E>
auto StepRunner<E>::exchange_memory(const StepControl::Limits& limits)
    -> Result<std::vector<MemoryUse>> {
  AMXT_TRY(begin_call(limits));
  publish_memory();
  Status met = has_nodes() ? exchange_boxes() : Status();
  if (met) met = control_->barrier();
  if (!met) return leave(std::move(met).error());
  AMXT_TRY(end_call());
  std::vector<MemoryUse> all;
  for (int rank = 0; rank < world(); ++rank)
    all.push_back({box(rank).private_bytes, box(rank).pss_bytes, box(rank).peak_rss_bytes});
  return all;
}

template class StepRunner<float>;
template class StepRunner<bf16>;

}  // namespace amxt::train
