// amxtrain plan: the memory that training would need, before anything is allocated.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct PlanOptions {
  CommonOptions common;
  TrainerFlags flags;
  std::string model;
  int32_t ranks = 1, nodes = 1;
  bool as_json = false;
};

int run_plan(const PlanOptions& options) {
  const Session session(options.common);
  std::string ds_config;
  const amxt_trainer_options trainer = trainer_options(options.flags, ds_config);
  const Model model = make<Model>([&](amxt_model** out, amxt_error* error) {
    return amxt_model_open(session.runtime(), options.model.c_str(), out, error);
  });
  amxt_plan_options plan_options = AMXT_PLAN_OPTIONS_INIT;
  plan_options.ranks = options.ranks * options.nodes;
  plan_options.nodes = options.nodes;
  if (options.common.threads) plan_options.threads = *options.common.threads;
  if (options.flags.memory_limit) plan_options.node_memory_bytes = *options.flags.memory_limit;
  const Plan plan = make<Plan>([&](amxt_plan** out, amxt_error* error) {
    return amxt_plan_create(session.runtime(), model.get(), &trainer, &plan_options, out, error);
  });
  const Json result =
      json([&](char** out, amxt_error* error) { return amxt_plan_json(plan.get(), out, error); });
  if (options.as_json) {
    print_line(result.dump(2));
  } else {
    const std::string ranks = counted(options.ranks, "rank");
    print_line(fmt::format(
        "{}: {} on {}, {} a step", options.model,
        counted(result.at("parameters").get<int64_t>(), "parameter"),
        options.nodes == 1 ? ranks : fmt::format("{} of {}", counted(options.nodes, "node"), ranks),
        counted(result.at("waves").get<int64_t>(), "wave")));
    for (const Json& note : result.at("notes")) print_line("  " + note.get<std::string>());
    print_plan(result);
  }
  call([&](amxt_error* error) { return amxt_plan_fits(plan.get(), error); });
  return kSuccess;
}

}  // namespace

Run add_plan(CLI::App& app) {
  CLI::App* plan = app.add_subcommand("plan", "Tells what memory training would need");
  auto options = std::make_shared<PlanOptions>();
  plan->add_option("--model", options->model, "Model directory; config.json is enough")->required();
  plan->add_option("--ranks", options->ranks, "Processes on each machine (default 1)")
      ->transform(whole(1, 1024));
  plan->add_option("--nodes", options->nodes, "Machines (default 1)")->transform(whole(1, 1024));
  add_size_options(*plan, options->flags);
  plan->add_flag("--json", options->as_json, "Print JSON");
  add_common_options(*plan, options->common);
  return [options] { return run_plan(*options); };
}

}  // namespace command
