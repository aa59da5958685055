#include "train/trainer_core.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "base/text.h"
#include "checkpoint/agreement.h"
#include "train/order.h"

namespace amxt::train {
namespace {

StepControl::Limits step_limits(const CallLimits& limits) {
  return {limits.deadline, limits.cancel};
}

Status check_tokens(const Batch& batch, int64_t vocab_size) {
  for (size_t i = 0; i < batch.token.size(); ++i) {
    if (batch.token[i] >= 0 && batch.token[i] < vocab_size) continue;
    const auto at = static_cast<int64_t>(i);
    return Error(Code::kInvalidArgument,
                 fmt::format("token {} of sample {}, position {}, is not in the vocabulary of {}",
                             batch.token[i], at / batch.sequence, at % batch.sequence, vocab_size));
  }
  // Labels come after: without labels of their own they are tokens, one position on.
  for (size_t i = 0; i < batch.target.size(); ++i) {
    if (batch.target[i] < vocab_size) continue;
    const auto at = static_cast<int64_t>(i);
    return Error(
        Code::kInvalidArgument,
        fmt::format("label {} of sample {}, position {}, is not in the vocabulary of {}",
                    batch.target[i], at / batch.sequence, at % batch.sequence + 1, vocab_size));
  }
  return {};
}

using Facts = std::vector<std::pair<std::string, std::string>>;

Result<Facts> facts_from(const std::string& text) {
  AMXT_ASSIGN(const Json json, parse_json(text));
  return json.get<Facts>();
}

std::string value_of(const Facts& facts, const std::string& name) {
  const auto fact = std::find_if(facts.begin(), facts.end(),
                                 [&](const auto& each) { return each.first == name; });
  return fact == facts.end() ? "none" : quote(fact->second);
}

}  // namespace

TrainerCore::TrainerCore(TrainerParts parts)
    : parts_(std::move(parts)),
      layout_(parts_.setup.model->config(), parts_.setup.group->size(),
              store::Layout::order_for(parts_.setup.model->config(),
                                       parts_.options.compute_type == ComputeType::kBFloat16)) {
  state_.total_steps = parts_.options.schedule.total_steps;
}

Status TrainerCore::require_ready() const {
  std::lock_guard lock(mutex_);
  if (state_.status == TrainerStatus::kCreated)
    return Error(Code::kInvalidState, "the trainer has no weights yet: load or resume first");
  if (state_.status == TrainerStatus::kFailed) {
    return Error(
        Code::kInvalidState,
        "a step failed after its commit: the state is not whole; resume from a checkpoint");
  }
  return {};
}

Status TrainerCore::check_same_model(const model::ModelConfig& other,
                                     const std::string& path) const {
  const std::vector<model::TensorSpec> theirs = model::tensor_specs(other);
  const std::vector<model::TensorSpec>& ours = layout_.specs();
  const auto differs = [&](const std::string& what) {
    return Error(Code::kMismatch,
                 fmt::format("{}: another model than the trainer's: {}", quote(path), what));
  };
  for (size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) {
    if (ours[i].name != theirs[i].name)
      return differs(
          fmt::format("tensor {} in place of {}", quote(theirs[i].name), quote(ours[i].name)));
    if (ours[i].rows != theirs[i].rows || ours[i].columns != theirs[i].columns) {
      return differs(fmt::format("tensor {} is [{}, {}], not [{}, {}]", quote(ours[i].name),
                                 theirs[i].rows, theirs[i].columns, ours[i].rows, ours[i].columns));
    }
  }
  if (ours.size() != theirs.size())
    return differs(fmt::format("{} tensors, not {}", theirs.size(), ours.size()));
  return {};
}

// A schedule that falls to zero has no rate before its horizon is known.
Status TrainerCore::require_rate() const {
  std::lock_guard lock(mutex_);
  const Schedule& schedule = parts_.options.schedule;
  if (rate_override_ || schedule.total_steps > 0 || schedule.kind == ScheduleKind::kConstant ||
      schedule.kind == ScheduleKind::kWarmup)
    return {};
  return Error(
      Code::kInvalidState,
      fmt::format("the schedule {} falls to its end, which is not known: give total_steps, "
                  "or the schedule constant",
                  schedule_name(schedule.kind)));
}

double TrainerCore::rate_of_next_step() const {
  if (rate_override_) return *rate_override_;
  return parts_.options.schedule.rate(state_.step);
}

TrainerState TrainerCore::state() const {
  std::lock_guard lock(mutex_);
  TrainerState state = state_;
  state.learning_rate = rate_of_next_step();
  state.epoch = samples_of_epoch_ > 0
                    ? static_cast<double>(state.position) / static_cast<double>(samples_of_epoch_)
                    : 0;
  return state;
}

Status TrainerCore::set_learning_rate(std::optional<double> rate) {
  if (rate && !(*rate >= 0 && *rate <= kMostLearningRate)) {
    return Error(Code::kInvalidArgument,
                 fmt::format("the learning rate is {}; it is 0 to 1000", *rate));
  }
  std::lock_guard lock(mutex_);
  rate_override_ = rate;
  return {};
}

Status TrainerCore::record_memory(const std::string& stage, const CallLimits& limits) {
  AMXT_ASSIGN(const std::vector<ProcessMemory> all, exchange_memory(step_limits(limits)));
  MemoryStage record;
  record.stage = stage;
  int64_t pss = 0;
  for (const ProcessMemory& rank : all) {
    record.all_private_bytes += rank.private_bytes;
    pss += rank.pss_bytes;
  }
  const ProcessMemory& mine = all[static_cast<size_t>(group().rank())];
  record.rank_private_bytes = mine.private_bytes;
  record.rank_shared_bytes = std::max<int64_t>(0, mine.pss_bytes - mine.private_bytes);
  record.all_shared_bytes = std::max<int64_t>(0, pss - record.all_private_bytes);
  record.rank_peak_rss_bytes = mine.peak_rss_bytes;
  std::lock_guard lock(mutex_);
  peak_pss_all_ranks_ = std::max(peak_pss_all_ranks_, pss);
  record.all_peak_pss_bytes = peak_pss_all_ranks_;
  memory_.push_back(std::move(record));
  return {};
}

std::vector<MemoryStage> TrainerCore::memory_report() const {
  std::lock_guard lock(mutex_);
  return memory_;
}

Result<StepMetrics> TrainerCore::take_step(const Batch& batch, bool commit,
                                           const CallLimits& limits, Status ready) {
  AMXT_TRY(require_ready());
  if (ready) ready = check_tokens(batch, config().vocab_size);
  if (ready && commit) ready = require_rate();
  StepInput input;
  if (!ready) input.refused = std::move(ready).error();
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    input.step = state_.step + 1;
    input.update = updates_ + 1;
    input.learning_rate = rate_of_next_step();
    input.commit = commit;
    first = memory_.empty() || memory_.back().stage != "step";
  }
  Result<StepResult> result =
      during(fmt::format("step {}", input.step), run_step(batch, input, step_limits(limits)));
  if (!result) return std::move(result).error();
  if (result->counted == 0 && leads()) {
    log().warning(
        fmt::format("step {}: no position of its samples has a target that counts", input.step));
  }
  StepMetrics metrics;
  metrics.step = input.step;
  metrics.loss = result->loss;
  metrics.grad_norm = result->grad_norm;
  metrics.learning_rate = input.learning_rate;
  metrics.tokens = result->tokens;
  metrics.seconds = result->seconds;
  metrics.skipped = result->skipped;
  metrics.world_size = group().size();
  metrics.wire_wait_seconds = result->wire_wait_seconds;
  for (size_t i = 0; group().node_count() > 1 && i < result->wire.size(); ++i) {
    const store::Traffic::Use& use = result->wire[i];
    metrics.wire_bytes += use.sent_bytes;
    metrics.traffic.push_back({result->transport, store::stream_name(static_cast<store::Stream>(i)),
                               use.sent_bytes, static_cast<double>(use.wait_ns) * 1e-9});
  }
  if (metrics.seconds > 0) {
    metrics.tokens_per_second = static_cast<double>(metrics.tokens) / metrics.seconds;
    metrics.model_tflops =
        metrics.tokens_per_second * model::flops_per_token(config(), batch.sequence) * 1e-12;
  }
  if (commit) {
    std::lock_guard lock(mutex_);
    state_.step = input.step;
    state_.position += parts_.options.global_batch();
    if (!result->skipped) ++updates_;
    peak_pss_all_ranks_ = std::max(peak_pss_all_ranks_, result->pss_bytes);
    if (samples_of_epoch_ > 0)
      metrics.epoch = static_cast<double>(state_.position) / static_cast<double>(samples_of_epoch_);
    metrics.peak_pss_bytes_all_ranks = peak_pss_all_ranks_;
    metrics.peak_rss_bytes = result->peak_rss_bytes;
  }
  if (commit && first) {
    const bool second = !memory_report().empty() && memory_report().back().stage == "first step";
    // The step is taken: neither its deadline nor a cancel may make it an error now.
    AMXT_TRY(record_memory(second ? "step" : "first step", {}));
  }
  return metrics;
}

Result<StepMetrics> TrainerCore::step(const Batch& batch, const CallLimits& limits) {
  return take_step(batch, true, limits);
}

Result<StepMetrics> TrainerCore::gradients(const Batch& batch, const CallLimits& limits) {
  return take_step(batch, false, limits);
}

Status TrainerCore::forward(const Batch& batch, std::span<float> log_probabilities,
                            const CallLimits& limits) {
  AMXT_TRY(require_ready());
  std::optional<Error> refused;
  if (Status tokens = check_tokens(batch, config().vocab_size); !tokens)
    refused = std::move(tokens).error();
  const int64_t most = parts_.options.micro_batch * parts_.options.accumulate;
  for (int64_t first = 0; first < batch.samples; first += most) {
    const int64_t n = std::min(most, batch.samples - first);
    Batch part;
    part.resize(n, batch.sequence);
    const auto copy = [&](const auto& from, auto& to) {
      std::copy_n(from.begin() + first * batch.sequence, n * batch.sequence, to.begin());
    };
    copy(batch.token, part.token);
    copy(batch.target, part.target);
    copy(batch.document_start, part.document_start);
    copy(batch.position, part.position);
    copy(batch.weight, part.weight);
    float* to =
        log_probabilities.empty() ? nullptr : log_probabilities.data() + first * batch.sequence;
    AMXT_ASSIGN([[maybe_unused]] const LossSums sums,
                run_forward(part, to, step_limits(limits), refused));
  }
  return {};
}

Status TrainerCore::check_data(const io::Dataset& data) const {
  if (data.options().sequence_length != parts_.options.sequence_length) {
    return Error(Code::kInvalidArgument,
                 fmt::format("the data set has samples of {} positions, the trainer of {}",
                             data.options().sequence_length, parts_.options.sequence_length));
  }
  if (data.largest_token() >= config().vocab_size) {
    return Error(Code::kFormat,
                 fmt::format("{}: token {} is not in the model's vocabulary of {}",
                             data.options().paths.empty() ? std::string("data set")
                                                          : quote(data.options().paths.front()),
                             data.largest_token(), config().vocab_size));
  }
  return {};
}

TrainerCore::Facts TrainerCore::facts_of(const io::Dataset& data, const std::string& name) {
  return {{name, fmt::format("{:016x}", data.fingerprint())},
          {name + "'s number of samples", std::to_string(data.samples())}};
}

Status TrainerCore::agree_on_facts(Result<Facts> mine, const CallLimits& limits) const {
  const auto encoded = [&]() -> Result<std::string> {
    AMXT_ASSIGN(const Facts facts, std::move(mine));
    return Json(facts).dump();
  };
  AMXT_ASSIGN(const std::vector<std::string> all,
              checkpoint::agree(group(), encoded(), limits.deadline));
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    AMXT_ASSIGN(const Facts first, facts_from(all[0]));
    AMXT_ASSIGN(const Facts other, facts_from(all[rank]));
    // What only one of them has is a difference too.
    std::vector<std::string> names;
    for (const Facts* facts : {&first, &other}) {
      for (const auto& [name, value] : *facts) names.push_back(name);
    }
    for (const std::string& name : names) {
      const std::string ones = value_of(first, name), others = value_of(other, name);
      if (ones == others) continue;
      return Error(Code::kMismatch,
                   fmt::format("ranks disagree on {}: rank 0 has {}, rank {} has {}", name, ones,
                               rank, others))
          .with_rank(static_cast<int32_t>(rank));
    }
  }
  return {};
}

Result<Evaluation> TrainerCore::evaluate(const io::Dataset& data, const CallLimits& limits) {
  AMXT_TRY(require_ready());
  const auto facts = [&]() -> Result<Facts> {
    AMXT_TRY(check_data(data));
    return facts_of(data, "the data to evaluate on");
  };
  AMXT_TRY(agree_on_facts(facts(), limits));
  const int64_t began = monotonic_ns();
  const int64_t micro = parts_.options.micro_batch, most = micro * parts_.options.accumulate,
                world = group().size();
  Evaluation evaluation;
  double loss = 0, weight = 0;
  for (int64_t first = 0; first < data.samples(); first += most * world) {
    Batch batch;
    // Sample k of a round as in a step; what lies past the end is left out.
    std::vector<int64_t> mine;
    for (int64_t a = 0; a < parts_.options.accumulate; ++a) {
      for (int64_t b = 0; b < micro; ++b) {
        const int64_t sample = first + (a * world + group().rank()) * micro + b;
        if (sample < data.samples()) mine.push_back(sample);
      }
    }
    batch.resize(static_cast<int64_t>(mine.size()), parts_.options.sequence_length);
    std::optional<Error> refused;
    for (size_t i = 0; i < mine.size() && !refused; ++i) {
      Result<io::SampleCounts> counts = data.read(mine[i], batch.sample(static_cast<int64_t>(i)));
      if (!counts) {
        refused = std::move(counts).error();
      } else {
        batch.tokens += counts->tokens;
      }
    }
    AMXT_ASSIGN(const LossSums sums, run_forward(batch, nullptr, step_limits(limits), refused));
    loss += sums.loss;
    weight += sums.weight;
    evaluation.tokens += sums.counted;
  }
  evaluation.samples = data.samples();
  evaluation.loss = weight > 0 ? loss / weight : 0;
  evaluation.perplexity = std::exp(evaluation.loss);
  evaluation.seconds = static_cast<double>(monotonic_ns() - began) * 1e-9;
  return evaluation;
}

Status TrainerCore::fill_batch(const io::Dataset& data, int64_t position, Batch* batch) const {
  const int64_t micro = parts_.options.micro_batch, world = group().size();
  const SampleOrder order(data.samples(), static_cast<uint64_t>(parts_.options.seed));
  batch->tokens = 0;
  for (int64_t a = 0; a < parts_.options.accumulate; ++a) {
    for (int64_t b = 0; b < micro; ++b) {
      const int64_t k = (a * world + group().rank()) * micro + b;
      AMXT_ASSIGN(const io::SampleCounts counts,
                  data.read(order.sample(position + k), batch->sample(a * micro + b)));
      batch->tokens += counts.tokens;
    }
  }
  return {};
}

std::string TrainerCore::options_json() const {
  Json json = parse_json(train::options_json(parts_.options)).value();
  {
    std::lock_guard lock(mutex_);
    json["total_steps"] = state_.total_steps;
  }
  constexpr const char* kKeep[] = {"inputs", "attention", "all"};
  json["keep"] = kKeep[static_cast<int>(parts_.plan.keep)];
  json["wave"] = parts_.plan.wave;
  json["gradient_dtype"] = parts_.plan.gradient_dtype == DType::kBF16 ? "bfloat16" : "float32";
  json["world_size"] = group().size();
  json["global_batch"] = parts_.options.global_batch();
  json["waves"] = parts_.plan.waves;
  json["trainable_parameters"] = model::parameter_count(config());
  json["threads"] = parts_.threads;
  json["cpus"] = parts_.cpus;
  json["isa"] = isa_name(parts_.isa->chosen);
  json["transport"] = group().size() == 1         ? "none"
                      : group().node_count() == 1 ? "shared memory"
                                                  : "shared memory and gloo";
  json["nodes"] = group().node_count();
  json["wire_dtype"] = parts_.plan.wire_gradient_dtype == DType::kBF16 ? "bfloat16" : "float32";
  json["notes"] = parts_.notes;
  return json.dump();
}

}  // namespace amxt::train
