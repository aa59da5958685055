// Sections 11, 12 and 13 of the header: trainers and what becomes of them. Each blocking call is an
// operation on the trainer's engine thread.
#define AMXT_ENABLE_PREVIEW
#include "train/trainer.h"

#include <fmt/format.h>

#include <cmath>

#include "base/json.h"
#include "capi/handles.h"
#include "capi/trainer_options.h"
#include "model/tensors.h"
#include "train/host_batch.h"

using namespace amxt;
using namespace amxt::capi;

static_assert(static_cast<int32_t>(store::RowKind::kMaster) == AMXT_ROWS_WEIGHT &&
              static_cast<int32_t>(store::RowKind::kGradient) == AMXT_ROWS_GRADIENT &&
              static_cast<int32_t>(store::RowKind::kFirstMoment) == AMXT_ROWS_FIRST_MOMENT &&
              static_cast<int32_t>(store::RowKind::kSecondMoment) == AMXT_ROWS_SECOND_MOMENT &&
              static_cast<int32_t>(store::RowKind::kCompute) == AMXT_ROWS_COMPUTE_WEIGHT);
static_assert(static_cast<int32_t>(train::TrainerStatus::kCreated) == AMXT_TRAINER_CREATED &&
              static_cast<int32_t>(train::TrainerStatus::kReady) == AMXT_TRAINER_READY &&
              static_cast<int32_t>(train::TrainerStatus::kFailed) == AMXT_TRAINER_FAILED);
static_assert(static_cast<int32_t>(train::EventKind::kStep) == AMXT_EVENT_STEP &&
              static_cast<int32_t>(train::EventKind::kSave) == AMXT_EVENT_SAVE &&
              static_cast<int32_t>(train::EventKind::kEvaluate) == AMXT_EVENT_EVALUATE &&
              static_cast<int32_t>(train::EventKind::kDone) == AMXT_EVENT_DONE);
static_assert(static_cast<int32_t>(train::RunVerdict::kContinue) == AMXT_RUN_CONTINUE &&
              static_cast<int32_t>(train::RunVerdict::kPause) == AMXT_RUN_PAUSE &&
              static_cast<int32_t>(train::RunVerdict::kStop) == AMXT_RUN_STOP);

namespace {

// Runs work(limits) on the engine thread and waits for it; all ranks call `name`.
template <typename Work>
Status on_engine(amxt_trainer* trainer, const char* name, int64_t timeout_ns, int32_t stage,
                 Work&& work) {
  if (trainer->engine->is_current_thread())
    return Error(Code::kInvalidState, "a blocking call inside a callback of the same trainer");
  const Deadline deadline = Deadline::after(timeout_ns);
  AMXT_ASSIGN(const auto alike, AlikeCall::begin(trainer->group, comm::CollectiveCall{name}));
  return trainer->engine->run(
      [&](const std::atomic<bool>& cancel) -> Status {
        trainer->stage = stage;
        return during(name, work(train::CallLimits{deadline, &cancel}));
      },
      deadline);
}

Status tell_progress(const amxt_trainer* trainer, const checkpoint::ProgressReport& report) {
  const std::string name(report.name);
  amxt_progress progress = AMXT_PROGRESS_INIT;
  progress.stage = trainer->stage;
  progress.item = report.item;
  progress.item_count = report.items;
  progress.item_done_bytes = report.item_done;
  progress.item_total_bytes = report.item_total;
  progress.done_bytes = report.done;
  progress.total_bytes = report.total;
  progress.item_name = name.c_str();
  if (trainer->progress(&progress, trainer->progress_user_data) == 0) return {};
  return Error(Code::kUser, "the progress callback ended the call");
}

Status create(amxt_runtime* runtime, amxt_group* group, amxt_model* model,
              const amxt_trainer_options* given_options, amxt_trainer** out) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(usable(group, "group"));
  if (group->is_part) {
    return Error(Code::kUnsupported, "a group made by amxt_group_split() trains no model");
  }
  AMXT_TRY(usable(model, "model"));
  AMXT_TRY(require(out, "trainer"));
  AMXT_ASSIGN(const amxt_trainer_options options, read_trainer_options(given_options));
  train::TrainerSetup setup;
  AMXT_ASSIGN(setup.given, train_options(options));
  setup.log = runtime->state->log;
  setup.group = group->group;
  setup.model = model->directory;
  if (options.ds_config != nullptr) setup.ds_config = options.ds_config;
  setup.ds_config_name = text_or(options.ds_config_name, "ds_config");
  setup.threads = runtime->state->threads.value_or(0);
  setup.pin = runtime->state->pin;

  auto trainer = std::make_unique<amxt_trainer>();
  trainer->runtime = runtime->state;
  trainer->group = group->group;
  trainer->progress = options.progress;
  trainer->progress_user_data = options.progress_user_data;
  if (options.progress != nullptr) {
    setup.progress = [raw = trainer.get()](const checkpoint::ProgressReport& report) {
      return tell_progress(raw, report);
    };
  }
  AMXT_ASSIGN(trainer->engine, train::Engine::create());
  trainer->runtime->add(trainer->engine.get());
  const int64_t timeout_ns = given(options.timeout_ns).value_or(AMXT_FOREVER);
  Status status =
      on_engine(trainer.get(), "trainer create", timeout_ns, AMXT_STAGE_LOAD,
                [&](const train::CallLimits& limits) -> Status {
                  AMXT_ASSIGN(trainer->trainer, train::Trainer::create(std::move(setup), limits));
                  return {};
                });
  if (!status) {
    amxt_trainer_destroy(trainer.release());
    return status;
  }
  *out = trainer.release();
  return {};
}

amxt_step_metrics convert(const train::StepMetrics& metrics) {
  amxt_step_metrics result = AMXT_STEP_METRICS_INIT;
  result.world_size = metrics.world_size;
  result.skipped = metrics.skipped ? 1 : 0;
  result.step = metrics.step;
  result.epoch = metrics.epoch;
  result.loss = metrics.loss;
  result.grad_norm = metrics.grad_norm;
  result.learning_rate = metrics.learning_rate;
  result.tokens = metrics.tokens;
  result.seconds = metrics.seconds;
  result.tokens_per_second = metrics.tokens_per_second;
  result.model_tflops = metrics.model_tflops;
  result.peak_rss_bytes = metrics.peak_rss_bytes;
  result.peak_pss_bytes_all_ranks = metrics.peak_pss_bytes_all_ranks;
  result.wire_bytes = metrics.wire_bytes;
  result.wire_wait_seconds = metrics.wire_wait_seconds;
  return result;
}

amxt_evaluation convert(const train::Evaluation& evaluation) {
  amxt_evaluation result = AMXT_EVALUATION_INIT;
  result.loss = evaluation.loss;
  result.perplexity = evaluation.perplexity;
  result.tokens = evaluation.tokens;
  result.samples = evaluation.samples;
  result.seconds = evaluation.seconds;
  return result;
}

Result<train::Batch> read_batch(const amxt_batch* batch) {
  AMXT_TRY(require(batch, "batch"));
  AMXT_TRY(check_struct(*batch, "amxt_batch"));
  return train::make_batch({.samples = batch->samples,
                            .sequence = batch->sequence_length,
                            .tokens = batch->tokens,
                            .labels = batch->labels,
                            .weights = batch->weights,
                            .document_starts = batch->document_starts,
                            .lengths = batch->lengths});
}

Status check_metrics(const amxt_step_metrics* metrics) {
  if (metrics == nullptr) return {};
  return check_struct(*metrics, "amxt_step_metrics");
}

using TakeStep = Result<train::StepMetrics> (train::Trainer::*)(const train::Batch&,
                                                                const train::CallLimits&);

Status step(amxt_trainer* trainer, const amxt_batch* given_batch, amxt_step_metrics* metrics,
            int64_t timeout_ns, TakeStep take) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(check_metrics(metrics));
  AMXT_ASSIGN(const train::Batch batch, read_batch(given_batch));
  return on_engine(trainer, "trainer step", timeout_ns, AMXT_STAGE_LOAD,
                   [&](const train::CallLimits& limits) -> Status {
                     AMXT_ASSIGN(const train::StepMetrics taken,
                                 (trainer->trainer.get()->*take)(batch, limits));
                     if (metrics != nullptr) write_struct(metrics, convert(taken));
                     return {};
                   });
}

Status step_async(amxt_trainer* trainer, const amxt_batch* given_batch, amxt_step_metrics* metrics,
                  amxt_op** out) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(require(out, "op"));
  AMXT_TRY(check_metrics(metrics));
  AMXT_ASSIGN(train::Batch made, read_batch(given_batch));
  auto batch = std::make_shared<const train::Batch>(std::move(made));
  auto op = std::make_unique<amxt_op>();
  op->engine_thread = trainer->engine->thread_id();
  AMXT_ASSIGN(auto alike, AlikeCall::begin(trainer->group, comm::CollectiveCall{"trainer step"}));
  op->operation = trainer->engine->submit([trainer, batch, metrics, alike = std::move(alike)](
                                              const std::atomic<bool>& cancel) -> Status {
    AMXT_ASSIGN(const train::StepMetrics taken,
                trainer->trainer->step(*batch, {Deadline::never(), &cancel}));
    if (metrics != nullptr) write_struct(metrics, convert(taken));
    return {};
  });
  *out = op.release();
  return {};
}

Status forward(amxt_trainer* trainer, const amxt_batch* given_batch, float* logprobs, int64_t count,
               int64_t timeout_ns) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(require(logprobs, "logprobs"));
  AMXT_ASSIGN(const train::Batch batch, read_batch(given_batch));
  const auto size = static_cast<int64_t>(batch.token.size());
  if (count != size) {
    return Error(Code::kInvalidArgument,
                 fmt::format("count is {}; {} samples of {} positions are {}", count, batch.samples,
                             batch.sequence, size));
  }
  std::vector<float> predicted(batch.token.size());
  AMXT_TRY(on_engine(trainer, "trainer forward", timeout_ns, AMXT_STAGE_LOAD,
                     [&](const train::CallLimits& limits) {
                       return trainer->trainer->forward(batch, predicted, limits);
                     }));
  train::to_label_positions(batch, predicted, std::span(logprobs, predicted.size()));
  return {};
}

// A data set cut to the trainer's length, if it has none of its own.
Result<std::shared_ptr<const io::Dataset>> bind(const amxt_trainer* trainer,
                                                const amxt_dataset* dataset,
                                                std::string_view name) {
  AMXT_TRY(usable(dataset, name));
  const io::DatasetOptions& options = dataset->data->options();
  if (options.sequence_length > 0) return dataset->data;
  AMXT_ASSIGN(std::unique_ptr<io::Dataset> cut,
              dataset->data->at(trainer->trainer->options().sequence_length, options.mode));
  return std::shared_ptr<const io::Dataset>(std::move(cut));
}

Status evaluate(amxt_trainer* trainer, amxt_dataset* dataset, amxt_evaluation* evaluation,
                int64_t timeout_ns) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(require(evaluation, "evaluation"));
  AMXT_TRY(check_struct(*evaluation, "amxt_evaluation"));
  AMXT_ASSIGN(const std::shared_ptr<const io::Dataset> data, bind(trainer, dataset, "dataset"));
  return on_engine(trainer, "trainer evaluate", timeout_ns, AMXT_STAGE_LOAD,
                   [&](const train::CallLimits& limits) -> Status {
                     AMXT_ASSIGN(const train::Evaluation result,
                                 trainer->trainer->evaluate(*data, limits));
                     write_struct(evaluation, convert(result));
                     return {};
                   });
}

Result<train::RunVerdict> tell_event(const train::Event& event, amxt_event_fn callback,
                                     void* user_data) {
  amxt_event told = AMXT_EVENT_INIT;
  told.kind = static_cast<int32_t>(event.kind);
  told.show = event.show ? 1 : 0;
  told.step = event.step;
  told.total_steps = event.total_steps;
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  amxt_evaluation evaluation = AMXT_EVALUATION_INIT;
  if (event.metrics != nullptr) {
    metrics = convert(*event.metrics);
    told.metrics = &metrics;
  }
  if (event.evaluation != nullptr) {
    evaluation = convert(*event.evaluation);
    told.evaluation = &evaluation;
  }
  if (!event.path.empty()) told.path = event.path.c_str();
  const int32_t verdict = callback(&told, user_data);
  if (verdict >= AMXT_RUN_CONTINUE && verdict <= AMXT_RUN_STOP) {
    return static_cast<train::RunVerdict>(verdict);
  }
  return Error(Code::kUser, fmt::format("the event callback ended the run with {}", verdict));
}

// A run's options; `eval_data` keeps what they point to.
struct BoundRun {
  train::RunOptions options;
  std::shared_ptr<const io::Dataset> eval_data;
};

Result<BoundRun> read_run(const amxt_trainer* trainer, const amxt_run_options* given_options) {
  AMXT_ASSIGN(
      const amxt_run_options options,
      read_struct<amxt_run_options>(given_options, AMXT_RUN_OPTIONS_INIT, "amxt_run_options"));
  BoundRun run;
  AMXT_ASSIGN(const std::optional<bool> save, given_flag(options.save, "amxt_run_options.save"));
  AMXT_ASSIGN(run.options.steps, given_count(options.steps, 1, "amxt_run_options.steps"));
  AMXT_ASSIGN(const std::optional<int64_t> save_steps,
              given_count(options.save_steps, 0, "amxt_run_options.save_steps"));
  AMXT_ASSIGN(const std::optional<int64_t> keep,
              given_count(options.keep, 1, "amxt_run_options.keep"));
  AMXT_ASSIGN(const std::optional<int64_t> eval_steps,
              given_count(options.eval_steps, 1, "amxt_run_options.eval_steps"));
  run.options.epochs = given(options.epochs);
  if (run.options.epochs &&
      !(*run.options.epochs > 0 && *run.options.epochs <= train::kMostEpochs)) {
    return Error(Code::kInvalidArgument,
                 fmt::format("amxt_run_options.epochs is {}, not above 0 and at most 1000000",
                             *run.options.epochs));
  }
  if (run.options.epochs && run.options.steps) {
    return Error(Code::kInvalidArgument, "amxt_run_options: steps and epochs are both set");
  }
  run.options.save = save.value_or(true);
  run.options.save_steps = save_steps.value_or(run.options.save_steps);
  run.options.keep = keep.value_or(run.options.keep);
  run.options.eval_steps = eval_steps.value_or(run.options.eval_steps);
  run.options.output = text_or(options.output, "");
  run.options.resume = text_or(options.resume, "");
  run.options.metrics_path = text_or(options.metrics_path, "");
  run.options.profile_path = text_or(options.profile_path, "");
  run.options.model_directory = text_or(options.model_directory, "");
  if (options.eval_data != nullptr) {
    AMXT_ASSIGN(run.eval_data, bind(trainer, options.eval_data, "amxt_run_options.eval_data"));
    run.options.eval_data = run.eval_data.get();
  }
  if (options.event != nullptr) {
    run.options.event = [callback = options.event,
                         user_data = options.event_user_data](const train::Event& event) {
      return tell_event(event, callback, user_data);
    };
  }
  return run;
}

Status prepare(amxt_trainer* trainer, amxt_dataset* dataset, const amxt_run_options* options,
               char** resume_from, int64_t timeout_ns) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(require(resume_from, "resume_from"));
  AMXT_ASSIGN(const std::shared_ptr<const io::Dataset> data, bind(trainer, dataset, "dataset"));
  AMXT_ASSIGN(const BoundRun run, read_run(trainer, options));
  std::optional<std::string> checkpoint;
  AMXT_TRY(on_engine(trainer, "trainer prepare", timeout_ns, AMXT_STAGE_RESUME,
                     [&](const train::CallLimits& limits) -> Status {
                       AMXT_ASSIGN(checkpoint,
                                   trainer->trainer->prepare(*data, run.options, limits));
                       return {};
                     }));
  char* text = nullptr;
  if (checkpoint) {
    AMXT_ASSIGN(text, copy_text(*checkpoint));
  }
  *resume_from = text;
  return {};
}

Status run(amxt_trainer* trainer, amxt_dataset* dataset, const amxt_run_options* options,
           int64_t timeout_ns) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_ASSIGN(const std::shared_ptr<const io::Dataset> data, bind(trainer, dataset, "dataset"));
  AMXT_ASSIGN(const BoundRun bound, read_run(trainer, options));
  return on_engine(trainer, "trainer run", timeout_ns, AMXT_STAGE_SAVE,
                   [&](const train::CallLimits& limits) {
                     return trainer->trainer->run(*data, bound.options, limits);
                   });
}

Status get_state(const amxt_trainer* trainer, amxt_trainer_state* state) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(require(state, "state"));
  AMXT_TRY(check_struct(*state, "amxt_trainer_state"));
  const train::TrainerState now = trainer->trainer->state();
  amxt_trainer_state result = AMXT_TRAINER_STATE_INIT;
  result.status = static_cast<int32_t>(now.status);
  result.step = now.step;
  result.total_steps = now.total_steps;
  result.position = now.position;
  result.epoch = now.epoch;
  result.learning_rate = now.learning_rate;
  write_struct(state, result);
  return {};
}

std::string stages_json(const std::vector<train::MemoryStage>& stages) {
  Json array = Json::array();
  for (const train::MemoryStage& stage : stages) {
    Json object;
    object["stage"] = stage.stage;
    object["rank_private_bytes"] = stage.rank_private_bytes;
    object["rank_shared_bytes"] = stage.rank_shared_bytes;
    object["all_private_bytes"] = stage.all_private_bytes;
    object["all_shared_bytes"] = stage.all_shared_bytes;
    object["rank_peak_rss_bytes"] = stage.rank_peak_rss_bytes;
    object["all_peak_pss_bytes"] = stage.all_peak_pss_bytes;
    array.push_back(std::move(object));
  }
  Json report;
  report["stages"] = std::move(array);
  return report.dump();
}

Status memory_report(const amxt_trainer* trainer, amxt_memory_usage* usage, char** json) {
  AMXT_TRY(usable(trainer, "trainer"));
  if (usage != nullptr) {
    AMXT_TRY(check_struct(*usage, "amxt_memory_usage"));
  }
  const std::vector<train::MemoryStage> stages = trainer->trainer->memory_report();
  char* text = nullptr;
  if (json != nullptr) {
    AMXT_ASSIGN(text, copy_text(stages_json(stages)));
  }
  if (usage != nullptr) {
    const train::MemoryStage last = stages.empty() ? train::MemoryStage() : stages.back();
    amxt_memory_usage result = AMXT_MEMORY_USAGE_INIT;
    result.stage_count = static_cast<int32_t>(stages.size());
    result.rank_private_bytes = last.rank_private_bytes;
    result.rank_shared_bytes = last.rank_shared_bytes;
    result.all_private_bytes = last.all_private_bytes;
    result.all_shared_bytes = last.all_shared_bytes;
    result.rank_peak_rss_bytes = last.rank_peak_rss_bytes;
    result.all_peak_pss_bytes = last.all_peak_pss_bytes;
    write_struct(usage, result);
  }
  if (json != nullptr) *json = text;
  return {};
}

Status check_rows(const amxt_trainer* trainer, const char* tensor, int32_t kind, int64_t first_row,
                  int64_t rows, int64_t count) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(require(tensor, "tensor"));
  if (kind < AMXT_ROWS_WEIGHT || kind > AMXT_ROWS_COMPUTE_WEIGHT) {
    return Error(Code::kInvalidArgument, fmt::format("kind is {}, not an AMXT_ROWS_ value", kind));
  }
  if (first_row < 0 || rows < 1 || count < 0) {
    return Error(Code::kInvalidArgument,
                 fmt::format("{} rows from row {}, {} values", rows, first_row, count));
  }
  return {};
}

Status read_rows(amxt_trainer* trainer, const char* tensor, int32_t kind, int64_t first_row,
                 int64_t rows, float* values, int64_t count, int64_t timeout_ns) {
  AMXT_TRY(check_rows(trainer, tensor, kind, first_row, rows, count));
  if ((values == nullptr) != (count == 0)) {
    return Error(Code::kInvalidArgument, values == nullptr ? "values is NULL" : "count is 0");
  }
  if (const int64_t all = model::parameter_count(trainer->trainer->config()); count > all) {
    return Error(Code::kInvalidArgument,
                 fmt::format("count {} is more than the {} parameters of the model", count, all));
  }
  std::vector<float> read(static_cast<size_t>(count));
  AMXT_TRY(on_engine(trainer, "trainer read_rows", timeout_ns, AMXT_STAGE_LOAD,
                     [&](const train::CallLimits& limits) {
                       return trainer->trainer->read_rows(tensor, static_cast<store::RowKind>(kind),
                                                          first_row, rows, read, limits);
                     }));
  std::copy(read.begin(), read.end(), values);
  return {};
}

Status write_rows(amxt_trainer* trainer, const char* tensor, int32_t kind, int64_t first_row,
                  int64_t rows, const float* values, int64_t count, int64_t timeout_ns) {
  AMXT_TRY(check_rows(trainer, tensor, kind, first_row, rows, count));
  AMXT_TRY(require(values, "values"));
  if (kind == AMXT_ROWS_GRADIENT || kind == AMXT_ROWS_COMPUTE_WEIGHT) {
    return Error(Code::kInvalidArgument, fmt::format("kind {} can only be read", kind));
  }
  return on_engine(trainer, "trainer write_rows", timeout_ns, AMXT_STAGE_LOAD,
                   [&](const train::CallLimits& limits) {
                     return trainer->trainer->write_rows(
                         tensor, static_cast<store::RowKind>(kind), first_row, rows,
                         std::span(values, static_cast<size_t>(count)), limits);
                   });
}

// Calls that take a path and give nothing.
using PathCall = Status (train::Trainer::*)(const std::string&, const train::CallLimits&);

Status with_path(amxt_trainer* trainer, const char* call_name, const char* path,
                 std::string_view name, int32_t stage, int64_t timeout_ns, PathCall call) {
  AMXT_TRY(usable(trainer, "trainer"));
  AMXT_TRY(require(path, name));
  return on_engine(trainer, call_name, timeout_ns, stage, [&](const train::CallLimits& limits) {
    return (trainer->trainer.get()->*call)(path, limits);
  });
}

}  // namespace

extern "C" {

amxt_status amxt_trainer_create(amxt_runtime* runtime, amxt_group* group, amxt_model* model,
                                const amxt_trainer_options* options, amxt_trainer** trainer,
                                amxt_error* err) {
  return guarded(err, [&] { return create(runtime, group, model, options, trainer); });
}

amxt_status amxt_trainer_prepare(amxt_trainer* trainer, amxt_dataset* dataset,
                                 const amxt_run_options* options, char** resume_from,
                                 int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] { return prepare(trainer, dataset, options, resume_from, timeout_ns); });
}

amxt_status amxt_trainer_load(amxt_trainer* trainer, const char* directory, int64_t timeout_ns,
                              amxt_error* err) {
  return guarded(err, [&] {
    return with_path(trainer, "trainer load", directory, "directory", AMXT_STAGE_LOAD, timeout_ns,
                     &train::Trainer::load);
  });
}

amxt_status amxt_trainer_step(amxt_trainer* trainer, const amxt_batch* batch,
                              amxt_step_metrics* metrics, int64_t timeout_ns, amxt_error* err) {
  return guarded(err,
                 [&] { return step(trainer, batch, metrics, timeout_ns, &train::Trainer::step); });
}

amxt_status amxt_trainer_step_async(amxt_trainer* trainer, const amxt_batch* batch,
                                    amxt_step_metrics* metrics, amxt_op** op, amxt_error* err) {
  return guarded(err, [&] { return step_async(trainer, batch, metrics, op); });
}

amxt_status amxt_trainer_forward(amxt_trainer* trainer, const amxt_batch* batch, float* logprobs,
                                 int64_t count, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] { return forward(trainer, batch, logprobs, count, timeout_ns); });
}

amxt_status amxt_trainer_evaluate(amxt_trainer* trainer, amxt_dataset* dataset,
                                  amxt_evaluation* evaluation, int64_t timeout_ns,
                                  amxt_error* err) {
  return guarded(err, [&] { return evaluate(trainer, dataset, evaluation, timeout_ns); });
}

amxt_status amxt_trainer_run(amxt_trainer* trainer, amxt_dataset* dataset,
                             const amxt_run_options* options, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] { return run(trainer, dataset, options, timeout_ns); });
}

amxt_status amxt_trainer_cancel(amxt_trainer* trainer, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(trainer, "trainer"));
    trainer->engine->cancel_all();
    return {};
  });
}

amxt_status amxt_trainer_get_state(const amxt_trainer* trainer, amxt_trainer_state* state,
                                   amxt_error* err) {
  return guarded(err, [&] { return get_state(trainer, state); });
}

amxt_status amxt_trainer_set_lr(amxt_trainer* trainer, double learning_rate, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(trainer, "trainer"));
    return trainer->trainer->set_learning_rate(given(learning_rate));
  });
}

amxt_status amxt_trainer_options_json(const amxt_trainer* trainer, char** json, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(trainer, "trainer"));
    AMXT_TRY(require(json, "json"));
    AMXT_ASSIGN(*json, copy_text(trainer->trainer->options_json()));
    return {};
  });
}

amxt_status amxt_trainer_memory_report(const amxt_trainer* trainer, amxt_memory_usage* usage,
                                       char** json, amxt_error* err) {
  return guarded(err, [&] { return memory_report(trainer, usage, json); });
}

amxt_status amxt_trainer_read_rows(amxt_trainer* trainer, const char* tensor, int32_t kind,
                                   int64_t first_row, int64_t rows, float* values, int64_t count,
                                   int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] {
    return read_rows(trainer, tensor, kind, first_row, rows, values, count, timeout_ns);
  });
}

amxt_status amxt_trainer_write_rows(amxt_trainer* trainer, const char* tensor, int32_t kind,
                                    int64_t first_row, int64_t rows, const float* values,
                                    int64_t count, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] {
    return write_rows(trainer, tensor, kind, first_row, rows, values, count, timeout_ns);
  });
}

void amxt_trainer_destroy(amxt_trainer* trainer) {
  if (trainer == nullptr) return;
  if (!usable(trainer, "trainer")) return;  // the threads are in another process: nothing to end
  trainer->runtime->remove(trainer->engine.get());
  trainer->engine.reset();  // before what its operations work on
  delete trainer;
}

amxt_status amxt_trainer_save(amxt_trainer* trainer, const char* output, int64_t timeout_ns,
                              amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(trainer, "trainer"));
    AMXT_TRY(require(output, "output"));
    return on_engine(trainer, "trainer save", timeout_ns, AMXT_STAGE_SAVE,
                     [&](const train::CallLimits& limits) -> Status {
                       AMXT_ASSIGN([[maybe_unused]] const std::string path,
                                   trainer->trainer->save(output, limits));
                       return {};
                     });
  });
}

amxt_status amxt_trainer_resume(amxt_trainer* trainer, const char* path, int64_t timeout_ns,
                                amxt_error* err) {
  return guarded(err, [&] {
    return with_path(trainer, "trainer resume", path, "path", AMXT_STAGE_RESUME, timeout_ns,
                     &train::Trainer::resume);
  });
}

amxt_status amxt_trainer_export(amxt_trainer* trainer, const char* directory, int64_t timeout_ns,
                                amxt_error* err) {
  return guarded(err, [&] {
    return with_path(trainer, "trainer export", directory, "directory", AMXT_STAGE_EXPORT,
                     timeout_ns, &train::Trainer::export_model);
  });
}

amxt_status amxt_preview_trainer_gradients(amxt_trainer* trainer, const amxt_batch* batch,
                                           amxt_step_metrics* metrics, int64_t timeout_ns,
                                           amxt_error* err) {
  return guarded(
      err, [&] { return step(trainer, batch, metrics, timeout_ns, &train::Trainer::gradients); });
}

}  // extern "C"
