// Section 9 of the header: plans.
#include "train/plan.h"

#include <fmt/format.h>

#include "base/cpu.h"
#include "base/json.h"
#include "capi/handles.h"
#include "capi/trainer_options.h"
#include "model/tensors.h"
#include "train/ds_config.h"

using namespace amxt;
using namespace amxt::capi;

namespace {

// `notes` gets what the ds_config's reader has to say.
Result<train::EffectiveOptions> settle(const amxt_trainer_options& options, int64_t world_size,
                                       std::vector<std::string>* notes) {
  AMXT_ASSIGN(const train::TrainOptions given_options, train_options(options));
  if (options.ds_config == nullptr) {
    return train::resolve(given_options, nullptr, world_size, notes);
  }
  AMXT_ASSIGN(
      const train::DsConfig file,
      train::parse_ds_config(options.ds_config, text_or(options.ds_config_name, "ds_config")));
  for (const train::DsNote& note : file.notes) notes->push_back(note.text);
  return train::resolve(given_options, &file, world_size, notes);
}

Status create(amxt_runtime* runtime, const amxt_model* model,
              const amxt_trainer_options* given_trainer, const amxt_plan_options* given_options,
              amxt_plan** out) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(usable(model, "model"));
  AMXT_TRY(require(out, "plan"));
  AMXT_ASSIGN(const amxt_trainer_options trainer, read_trainer_options(given_trainer));
  AMXT_ASSIGN(
      const amxt_plan_options options,
      read_struct<amxt_plan_options>(given_options, AMXT_PLAN_OPTIONS_INIT, "amxt_plan_options"));
  const int32_t ranks = given(options.ranks).value_or(1), nodes = given(options.nodes).value_or(1);
  if (ranks < 1 || nodes < 1 || ranks < nodes) {
    return Error(Code::kInvalidArgument,
                 fmt::format("amxt_plan_options: {} ranks on {} nodes", ranks, nodes));
  }
  const int32_t threads = given(options.threads)
                              .value_or(runtime->state->threads.value_or(
                                  default_threads((ranks + nodes - 1) / nodes, nullptr)));
  if (threads < 1) {
    return Error(Code::kInvalidArgument, fmt::format("amxt_plan_options.threads is {}", threads));
  }
  AMXT_ASSIGN(const std::optional<int64_t> memory,
              given_count(options.node_memory_bytes, 1, "amxt_plan_options.node_memory_bytes"));
  std::vector<std::string> notes;
  AMXT_ASSIGN(const train::EffectiveOptions effective, settle(trainer, ranks, &notes));
  const model::ModelConfig& config = model->directory->config();
  auto plan = std::make_unique<amxt_plan>();
  AMXT_ASSIGN(plan->plan, train::make_plan(config, effective, train::even_nodes(ranks, nodes),
                                           threads, memory));
  plan->parameters = model::parameter_count(config);
  plan->json = train::plan_json(config, effective, plan->plan, notes);
  *out = plan.release();
  return {};
}

Status summary(const amxt_plan* plan, amxt_plan_totals* totals) {
  AMXT_TRY(usable(plan, "plan"));
  AMXT_TRY(require(totals, "totals"));
  AMXT_TRY(check_struct(*totals, "amxt_plan_totals"));
  const train::MemoryPlan& parts = plan->plan;
  amxt_plan_totals result = AMXT_PLAN_TOTALS_INIT;
  result.fits = train::fits(parts) ? 1 : 0;
  result.ranks = parts.world;
  result.parameters = plan->parameters;
  result.waves = parts.waves;
  result.weight_bytes = parts.weights + parts.window;
  result.optimizer_bytes = (parts.low_bits + parts.moments) * parts.ranks;
  result.gradient_bytes = parts.gradients * parts.ranks;
  result.activation_bytes = parts.arena + parts.kept * parts.ranks;
  result.other_bytes = (parts.exchange + parts.scratch + parts.overhead) * parts.ranks;
  result.peak_bytes_per_rank = parts.peak_bytes_per_rank();
  result.peak_bytes_per_node = parts.peak_bytes_per_node();
  result.limit_bytes = parts.limit_bytes;
  write_struct(totals, result);
  return {};
}

}  // namespace

extern "C" {

amxt_status amxt_plan_create(amxt_runtime* runtime, const amxt_model* model,
                             const amxt_trainer_options* trainer_options,
                             const amxt_plan_options* options, amxt_plan** plan, amxt_error* err) {
  return guarded(err, [&] { return create(runtime, model, trainer_options, options, plan); });
}

amxt_status amxt_plan_summary(const amxt_plan* plan, amxt_plan_totals* totals, amxt_error* err) {
  return guarded(err, [&] { return summary(plan, totals); });
}

amxt_status amxt_plan_json(const amxt_plan* plan, char** json, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(plan, "plan"));
    AMXT_TRY(require(json, "json"));
    AMXT_ASSIGN(*json, copy_text(plan->json));
    return {};
  });
}

amxt_status amxt_plan_fits(const amxt_plan* plan, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(plan, "plan"));
    return train::fits(plan->plan);
  });
}

void amxt_plan_destroy(amxt_plan* plan) { delete plan; }

}  // extern "C"
