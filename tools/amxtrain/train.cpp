// amxtrain train: fine-tunes a model directory, alone or as one of the ranks that a launcher started.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct TrainOptions {
  CommonOptions common;
  TrainerFlags flags;
  DataOptions data;
  std::vector<std::string> eval_data;
  std::string model;
  std::optional<std::string> output, resume, metrics, profile;
  std::optional<int64_t> steps, save_steps, eval_steps, keep;
  std::optional<double> epochs;
  bool no_save = false;
  bool dry_run = false;
  bool reschedule = false;
};

// Prints what a run tells, on rank 0; the other ranks are silent.
class Reporter {
 public:
  explicit Reporter(bool first) : first_(first) {}

  void trainer(const amxt_trainer* trainer) { trainer_ = trainer; }

  // `effective`: the options of the trainer.
  void header(const TrainOptions& options, const Json& effective, amxt_dataset* data) {
    if (!first_) return;
    auto number = [&](const char* key) { return count_text(effective.value(key, int64_t{0})); };
    auto row = [](std::string_view name, const std::string& value) {
      print_line(fmt::format("  {} {}", padded(name, 28), value));
    };
    print_line(fmt::format("===== Running training: {} =====", options.model));
    int64_t samples = 0;
    call([&](amxt_error* error) {
      return amxt_dataset_count(data, effective.at("sequence_length").get<int64_t>(), &samples,
                                error);
    });
    row("examples", count_text(samples));
    row("sequence length", number("sequence_length"));
    row("ranks", number("world_size"));
    row("micro-batch", number("micro_batch"));
    row("accumulation", number("accumulate"));
    row("batch, all ranks", counted(effective.value("global_batch", int64_t{0}), "example"));
    const int64_t total = effective.value("total_steps", int64_t{0});
    if (total > 0) row("optimizer steps", count_text(total));
    row("trainable parameters", number("trainable_parameters"));
  }

  // Stages of memory that are over and not told yet.
  void memory() {
    if (!first_ || trainer_ == nullptr) return;
    const Json report = json([&](char** out, amxt_error* error) {
      return amxt_trainer_memory_report(trainer_, nullptr, out, error);
    });
    const Json& stages = report.at("stages");
    for (; stages_told_ < stages.size(); ++stages_told_) {
      const Json& stage = stages[stages_told_];
      auto bytes = [&](const char* key) { return bytes_text(stage.value(key, 0.0)); };
      print_line(fmt::format(
          "memory {} rank: {} private, {} shared; all ranks: {} private, {} shared",
          padded(stage.at("stage").get<std::string>() + ":", 16), bytes("rank_private_bytes"),
          bytes("rank_shared_bytes"), bytes("all_private_bytes"), bytes("all_shared_bytes")));
    }
  }

  static int32_t callback(const amxt_event* event, void* user_data) {
    auto* reporter = static_cast<Reporter*>(user_data);
    try {
      if (reporter->first_) reporter->report(*event);
    } catch (const std::exception&) {
      return -1;
    }
    return AMXT_RUN_CONTINUE;
  }

 private:
  void report(const amxt_event& event) {
    switch (event.kind) {
      case AMXT_EVENT_STEP:
        report_step(event, *event.metrics);
        break;
      case AMXT_EVENT_SAVE:
        print_line(fmt::format("saved {}", event.path));
        break;
      case AMXT_EVENT_EVALUATE:
        print_line(fmt::format("evaluation after step {}: loss {:.4f}  perplexity {:.4f}  ({})",
                               event.step, event.evaluation->loss, event.evaluation->perplexity,
                               counted(event.evaluation->tokens, "token")));
        break;
      case AMXT_EVENT_DONE:
        show_bar("");
        if (event.path != nullptr) print_line(fmt::format("final model in {}", event.path));
        break;
      default:
        break;
    }
  }

  void report_step(const amxt_event& event, const amxt_step_metrics& metrics) {
    if (first_step_ < 0) first_step_ = event.step;
    seconds_ += metrics.seconds;
    const auto done = static_cast<double>(event.step - first_step_ + 1);
    const double eta = seconds_ / done * static_cast<double>(event.total_steps - event.step);
    const std::string figures = fmt::format(
        "loss {:.4f}  grad_norm {:.4f}  lr {:.3g}  {:.0f} tokens/s  {:.3f} TFLOP/s", metrics.loss,
        metrics.grad_norm, metrics.learning_rate, metrics.tokens_per_second, metrics.model_tflops);
    if (event.show != 0) {
      print_line(fmt::format("step {}/{}  epoch {:.2f}  {}{}  eta {}", event.step,
                             event.total_steps, metrics.epoch, figures,
                             metrics.skipped != 0 ? "  skipped" : "", duration_text(eta)));
    }
    show_bar(bar_text(fmt::format("{}/{}", event.step, event.total_steps),
                      static_cast<double>(event.step), static_cast<double>(event.total_steps),
                      fmt::format("eta {}  loss {:.4f}  {:.0f} tokens/s", duration_text(eta),
                                  metrics.loss, metrics.tokens_per_second)));
    memory();
  }

  bool first_;
  const amxt_trainer* trainer_ = nullptr;
  size_t stages_told_ = 0;
  int64_t first_step_ = -1;
  double seconds_ = 0;
};

const char* text_or_null(const std::optional<std::string>& text) {
  return text ? text->c_str() : nullptr;
}

amxt_run_options run_options(const TrainOptions& options, amxt_dataset* eval_data,
                             Reporter& reporter) {
  amxt_run_options run = AMXT_RUN_OPTIONS_INIT;
  run.save = options.no_save ? 0 : 1;
  run.steps = options.steps.value_or(AMXT_UNSET_I64);
  run.epochs = options.epochs.value_or(AMXT_UNSET_F64);
  run.save_steps = options.save_steps.value_or(AMXT_UNSET_I64);
  run.keep = options.keep.value_or(AMXT_UNSET_I64);
  run.eval_steps = options.eval_steps.value_or(AMXT_UNSET_I64);
  run.eval_data = eval_data;
  run.output = text_or_null(options.output);
  run.resume = text_or_null(options.resume);
  run.metrics_path = text_or_null(options.metrics);
  run.profile_path = text_or_null(options.profile);
  run.event = Reporter::callback;
  run.event_user_data = &reporter;
  return run;
}

// The memory that training needs, part by part.
void tell_plan(const Session& session, amxt_group* group, amxt_model* model,
               const amxt_trainer_options& trainer) {
  amxt_plan_options plan_options = AMXT_PLAN_OPTIONS_INIT;
  plan_options.ranks = amxt_group_size(group);
  plan_options.nodes = amxt_group_node_count(group);
  const Plan plan = make<Plan>([&](amxt_plan** out, amxt_error* error) {
    return amxt_plan_create(session.runtime(), model, &trainer, &plan_options, out, error);
  });
  print_plan(
      json([&](char** out, amxt_error* error) { return amxt_plan_json(plan.get(), out, error); }));
}

void finish(amxt_group* group) {
  call([&](amxt_error* error) { return amxt_group_finalize(group, AMXT_SECONDS(60), error); });
}

// The checkpoint to resume from; says by which options an output that holds checkpoints is left whole.
std::optional<std::string> prepare(const TrainOptions& options, amxt_trainer* trainer,
                                   amxt_dataset* data, const amxt_run_options& run) {
  try {
    return optional_text([&](char** out, amxt_error* error) {
      return amxt_trainer_prepare(trainer, data, &run, out, AMXT_FOREVER, error);
    });
  } catch (const Failure& failure) {
    const bool holds_some = failure.status() == AMXT_E_EXISTS && !options.resume &&
                            std::filesystem::is_directory(options.output.value_or(""));
    throw holds_some ? failure.with(" (--resume latest, or another --output)") : failure;
  }
}

void train(const TrainOptions& options, const Session& session, amxt_group* group) {
  const bool first = amxt_group_rank(group) == 0;
  Reporter reporter(first);
  ItemProgress progress(!first);
  const int64_t length = options.flags.sequence_length.value_or(AMXT_UNSET_I64);

  const Model model = make<Model>([&](amxt_model** out, amxt_error* error) {
    return amxt_model_open(session.runtime(), options.model.c_str(), out, error);
  });
  call([&](amxt_error* error) { return amxt_model_check(model.get(), error); });
  const Dataset data = open_dataset(session, model.get(), options.data, options.data.paths, length);
  Dataset eval_data;
  if (!options.eval_data.empty()) {
    eval_data = open_dataset(session, model.get(), options.data, options.eval_data, length);
  }
  std::string ds_config;
  amxt_trainer_options trainer_opts = trainer_options(options.flags, ds_config);
  trainer_opts.reschedule = options.reschedule ? 1 : 0;
  trainer_opts.total_steps = options.steps.value_or(AMXT_UNSET_I64);
  trainer_opts.progress = ItemProgress::callback;
  trainer_opts.progress_user_data = &progress;
  const amxt_run_options run = run_options(options, eval_data.get(), reporter);

  if (options.dry_run && first) tell_plan(session, group, model.get(), trainer_opts);

  const Trainer trainer = make<Trainer>([&](amxt_trainer** out, amxt_error* error) {
    return amxt_trainer_create(session.runtime(), group, model.get(), &trainer_opts, out, error);
  });
  const std::optional<std::string> checkpoint = prepare(options, trainer.get(), data.get(), run);
  const Json effective = json([&](char** out, amxt_error* error) {
    return amxt_trainer_options_json(trainer.get(), out, error);
  });
  if (first && options.resume && !checkpoint) {
    print_line(
        fmt::format("nothing to resume in {}: starting afresh", options.output.value_or("")));
  }
  reporter.header(options, effective, data.get());
  if (options.dry_run) {
    if (first) print_line(fmt::format("would begin with {}", checkpoint.value_or(options.model)));
    finish(group);
    return;
  }

  if (checkpoint) {
    if (first) print_line(fmt::format("resuming from {}", *checkpoint));
    // Of the directory, so that one that turns out broken makes way for the one before it.
    const std::string& path = *options.resume == "latest" ? *options.output : *checkpoint;
    call([&](amxt_error* error) {
      return amxt_trainer_resume(trainer.get(), path.c_str(), AMXT_FOREVER, error);
    });
  } else {
    call([&](amxt_error* error) {
      return amxt_trainer_load(trainer.get(), options.model.c_str(), AMXT_FOREVER, error);
    });
  }
  reporter.trainer(trainer.get());
  reporter.memory();
  call([&](amxt_error* error) {
    return amxt_trainer_run(trainer.get(), data.get(), &run, AMXT_FOREVER, error);
  });
  finish(group);
}

// An empty name is a script's unset variable, not a wish to do without.
void refuse_empty(const char* option, const std::optional<std::string>& value) {
  if (value && value->empty()) throw Failure(fmt::format("{}: its value is empty", option), kUsage);
}

int run_train(const TrainOptions& options) {
  refuse_empty("--output", options.output);
  refuse_empty("--metrics", options.metrics);
  refuse_empty("--profile", options.profile);
  refuse_empty("--resume", options.resume);
  if (!options.output && !options.no_save && !options.dry_run) {
    throw Failure("--output is required (or --no-save, or --dry-run)", kUsage);
  }
  if (options.steps && options.epochs) {
    throw Failure("--steps and --epochs exclude each other", kUsage);
  }
  if (options.eval_steps && options.eval_data.empty()) {
    throw Failure("--eval-steps needs --eval-data", kUsage);
  }
  take_signals();
  // A dry run checks that the output can be written and leaves nothing there.
  const bool passing =
      options.dry_run && options.output && access(options.output->c_str(), F_OK) != 0;
  const Session session(options.common);
  const Group group = join_group(session);
  try {
    train(options, session, group.get());
  } catch (const Failure& failure) {
    amxt_group_abort(group.get(), failure.what(), nullptr);
    throw;
  }
  if (passing) rmdir(options.output->c_str());
  return kSuccess;
}

}  // namespace

Run add_train(CLI::App& app) {
  CLI::App* train = app.add_subcommand("train", "Fine-tunes a model");
  auto options = std::make_shared<TrainOptions>();
  const CLI::Validator positive = whole(1, kMostSteps);
  train->add_option("--model", options->model, "Model directory")->required();
  add_data_options(*train, options->data);
  train->add_option("--output", options->output, "Directory of checkpoints and the final model");
  train->add_option("--steps", options->steps, "Steps, counted from the first of the job")
      ->transform(positive);
  train->add_option("--epochs", options->epochs, "Epochs, in place of steps (default 1)")
      ->transform(real("above 0 and at most 1000000",
                       [](double value) { return value > 0 && value <= 1e6; }));
  add_size_options(*train, options->flags);
  add_recipe_options(*train, options->flags);
  train
      ->add_option("--save-steps", options->save_steps,
                   "Steps between checkpoints, 0: only the last (default 100)")
      ->transform(whole(0, kMostSteps));
  train->add_option("--keep", options->keep, "Newest checkpoints that stay (default 2)")
      ->transform(positive);
  train->add_option("--eval-data", options->eval_data, "Token files to evaluate on");
  train
      ->add_option("--eval-steps", options->eval_steps,
                   "Steps between evaluations (default: at the end)")
      ->transform(positive);
  train->add_option("--resume", options->resume, "latest, or the path of a checkpoint");
  train->add_flag("--reschedule", options->reschedule, "Resume with another number of steps");
  train->add_option("--profile", options->profile,
                    "File of a Chrome trace of the third step's operations; their table is logged");
  train->add_option("--metrics", options->metrics, "File of metrics, a JSON line a step");
  train->add_flag("--no-save", options->no_save, "Write neither checkpoints nor the final model");
  train->add_flag("--dry-run", options->dry_run,
                  "Check everything and plan, but load and train nothing");
  add_common_options(*train, options->common);
  add_group_options(*train, options->common);
  return [options] { return run_train(*options); };
}

}  // namespace command
