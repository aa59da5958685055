// The memory of a step: how many bytes its arena, kept activations and scratch take, and where each part lies in them.
#include <algorithm>

#include "base/carver.h"
#include "train/step.h"

namespace amxt::train {
namespace {

// Elements that a micro-batch's place in the arena holds: a layer's pairs, or the head's, or the gradient of the embedding.
int64_t slot_elements_per_row(const model::ModelConfig& c) {
  return std::max(model::layer_gradients_elements_per_row(c),
                  c.hidden_size + model::vocabulary_width(c));
}

// A layer's vector gradients and the final norm's.
int64_t slot_floats_of(const model::ModelConfig& c) {
  return model::layer_gradients_floats(c) + c.hidden_size;
}

// Columns of the widest matrix: its panel must fit the block that its gradient is summed in.
int64_t widest_columns(const model::ModelConfig& c) {
  return std::max({c.hidden_size, c.intermediate_size, c.query_size()});
}

int64_t gradient_block_bytes(const model::ModelConfig& c) {
  return std::max(kGradientBlockBytes, store::kPanelRows * widest_columns(c) * 4);
}

// Rows of the embedding that the tokens of a node can need.
int64_t embedding_rows(const model::ModelConfig& c, int64_t tokens) {
  return std::min(c.vocab_size, tokens);
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
  return whole_lines(static_cast<int64_t>(sizeof(Mailbox)) + 2 * options.accumulate * 8);
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
                                     const EffectiveOptions& options, store::Layout::Order order,
                                     int64_t slots, int threads) {
  const int64_t rows = options.micro_batch * options.sequence_length;
  const int64_t most_out =
      std::max({2 * config.intermediate_size, config.query_size() + 2 * config.kv_size(),
                model::vocabulary_width(config)});
  return model::Decoder<E>::scratch_bytes_needed(config, rows, options.sequence_length, threads) +
         model::Head<E>::scratch_bytes_needed(config, rows) +
         kernels::Gemm<E>::scratch_bytes_needed(order, rows, slots * (rows + 31), most_out,
                                                widest_columns(config), threads) +
         whole_lines(gradient_block_bytes(config));
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
  AMXT_ASSIGN(runner->work_,
              Buffer::allocate(gradient_block_bytes(config), "a block of a weight's gradient"));
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

#define AMXT_INSTANTIATE(E)                                                                       \
  template int64_t StepRunner<E>::arena_bytes(const model::ModelConfig&, const EffectiveOptions&, \
                                              int, int, int64_t, const store::Layout&);           \
  template int64_t StepRunner<E>::record_bytes(const EffectiveOptions&);                          \
  template int64_t StepRunner<E>::kept_bytes(const model::ModelConfig&, const EffectiveOptions&,  \
                                             int64_t, model::Keep);                               \
  template int64_t StepRunner<E>::scratch_bytes(                                                  \
      const model::ModelConfig&, const EffectiveOptions&, store::Layout::Order, int64_t, int);    \
  template Result<std::unique_ptr<StepRunner<E>>> StepRunner<E>::create(const Parts&, Deadline);  \
  template Status StepRunner<E>::carve();                                                         \
  template model::Kept<E> StepRunner<E>::kept(int64_t, int64_t, int64_t) const;                   \
  template model::Rows StepRunner<E>::rows(const Batch&, int64_t) const;                          \
  template model::LossRows StepRunner<E>::loss_rows(const Batch&, int64_t, int64_t) const

AMXT_INSTANTIATE(float);
AMXT_INSTANTIATE(bf16);

}  // namespace amxt::train
