// amxtrain eval: loss and perplexity of a model on a data set.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct EvalOptions {
  CommonOptions common;
  TrainerFlags flags;
  DataOptions data;
  std::string model;
  bool as_json = false;
};

void evaluate(const EvalOptions& options, const Session& session, amxt_group* group) {
  const bool first = amxt_group_rank(group) == 0;
  const Model model = make<Model>([&](amxt_model** out, amxt_error* error) {
    return amxt_model_open(session.runtime(), options.model.c_str(), out, error);
  });
  call([&](amxt_error* error) { return amxt_model_check(model.get(), error); });
  const int64_t length = options.flags.sequence_length.value_or(AMXT_UNSET_I64);
  const Dataset data = open_dataset(session, model.get(), options.data, options.data.paths, length);

  ItemProgress progress(!first);
  std::string ds_config;
  amxt_trainer_options trainer_opts = trainer_options(options.flags, ds_config);
  trainer_opts.forward_only = 1;
  trainer_opts.progress = ItemProgress::callback;
  trainer_opts.progress_user_data = &progress;
  const Trainer trainer = make<Trainer>([&](amxt_trainer** out, amxt_error* error) {
    return amxt_trainer_create(session.runtime(), group, model.get(), &trainer_opts, out, error);
  });
  call([&](amxt_error* error) {
    return amxt_trainer_load(trainer.get(), options.model.c_str(), AMXT_FOREVER, error);
  });
  amxt_evaluation result = AMXT_EVALUATION_INIT;
  call([&](amxt_error* error) {
    return amxt_trainer_evaluate(trainer.get(), data.get(), &result, AMXT_FOREVER, error);
  });
  call([&](amxt_error* error) { return amxt_group_finalize(group, AMXT_SECONDS(60), error); });

  if (!first) return;
  if (options.as_json) {
    print_line(Json{{"loss", result.loss},
                    {"perplexity", result.perplexity},
                    {"tokens", result.tokens},
                    {"samples", result.samples},
                    {"seconds", result.seconds}}
                   .dump(2));
  } else {
    print_line(fmt::format("loss {:.6f}  perplexity {:.4f}  ({} in {}, {:.1f} s)", result.loss,
                           result.perplexity, counted(result.tokens, "token"),
                           counted(result.samples, "sample"), result.seconds));
  }
  if (!std::isfinite(result.loss)) throw Failure("the loss is not finite");
}

int run_eval(const EvalOptions& options) {
  take_signals();
  const Session session(options.common);
  const Group group = join_group(session);
  try {
    evaluate(options, session, group.get());
  } catch (const Failure& failure) {
    amxt_group_abort(group.get(), failure.what(), nullptr);
    throw;
  }
  return kSuccess;
}

}  // namespace

Run add_eval(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Gives loss and perplexity of a model on data");
  auto options = std::make_shared<EvalOptions>();
  eval->add_option("--model", options->model, "Model directory")->required();
  add_data_options(*eval, options->data);
  add_size_options(*eval, options->flags);
  eval->add_flag("--json", options->as_json, "Print JSON");
  add_common_options(*eval, options->common);
  add_group_options(*eval, options->common);
  return [options] { return run_eval(*options); };
}

}  // namespace command
