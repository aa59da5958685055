// amxtrain bench: what the machine gives (peak), what the operations of a step take of it (gemm, attention, head, optimizer, norms, layer),
// what a training step takes (step), and what ranks take to reduce and exchange arrays (collectives).
#define AMXT_ENABLE_PREVIEW
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>

#include "bench_collectives.h"
#include "bench_kernels.h"
#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct BenchOptions {
  CommonOptions common;
  TrainerFlags flags;
  std::optional<std::string> model;
  std::string preset = "60m";
  int64_t steps = 5;
  int64_t warmup = 2;
  bool as_json = false;
};

int run_peak(const BenchOptions& options) {
  take_signals();
  const Session session(options.common);
  const Json result = json([&](char** out, amxt_error* error) {
    return amxt_preview_bench_peak(session.runtime(), out, AMXT_FOREVER, error);
  });
  if (options.as_json) {
    print_line(result.dump(2));
    return kSuccess;
  }
  print_line(fmt::format("{}, {}", counted(result.at("threads").get<int64_t>(), "thread"),
                         result.at("isa").get<std::string>()));
  print_line(fmt::format("{} {:8.1f} GB/s", padded("memory, read", 44),
                         result.at("memory_read_gb_per_second").get<double>()));
  for (const Json& product : result.at("products")) {
    const std::string name = fmt::format(
        "{} {} {}x{}x{} ({})", product.at("name").get<std::string>(),
        product.at("dtype").get<std::string>(), product.at("m").dump(), product.at("n").dump(),
        product.at("k").dump(), product.at("kernel").get<std::string>());
    print_line(
        fmt::format("{} {:8.3f} TFLOP/s", padded(name, 44), product.at("tflops").get<double>()));
  }
  return kSuccess;
}

// A folder that is gone when the benchmark ends.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    path_ = (std::filesystem::temp_directory_path() / "amxtrain-bench-XXXXXX").string();
    if (mkdtemp(path_.data()) == nullptr) {
      throw Failure(fmt::format("{}: {}", in_quotes(path_), std::strerror(errno)));
    }
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct StepResult {
  std::vector<amxt_step_metrics> steps;
  Json effective;
};

StepResult take_steps(const BenchOptions& options, const Session& session, amxt_group* group,
                      const std::string& directory) {
  const Model model = make<Model>([&](amxt_model** out, amxt_error* error) {
    return amxt_model_open(session.runtime(), directory.c_str(), out, error);
  });
  const Json info =
      json([&](char** out, amxt_error* error) { return amxt_model_info(model.get(), out, error); });
  std::string ds_config;
  const amxt_trainer_options trainer_opts = trainer_options(options.flags, ds_config);
  const Trainer trainer = make<Trainer>([&](amxt_trainer** out, amxt_error* error) {
    return amxt_trainer_create(session.runtime(), group, model.get(), &trainer_opts, out, error);
  });
  call([&](amxt_error* error) {
    return amxt_trainer_load(trainer.get(), directory.c_str(), AMXT_FOREVER, error);
  });
  // A schedule would want to know its end.
  call([&](amxt_error* error) { return amxt_trainer_set_lr(trainer.get(), 1e-5, error); });
  StepResult result;
  result.effective = json([&](char** out, amxt_error* error) {
    return amxt_trainer_options_json(trainer.get(), out, error);
  });

  amxt_batch batch = AMXT_BATCH_INIT;
  batch.sequence_length = result.effective.at("sequence_length").get<int64_t>();
  batch.samples = result.effective.at("micro_batch").get<int64_t>() *
                  result.effective.at("accumulate").get<int64_t>();
  std::mt19937 random(static_cast<uint32_t>(42 + amxt_group_rank(group)));
  std::uniform_int_distribution<int32_t> token(0, info.at("vocab_size").get<int32_t>() - 1);
  std::vector<int32_t> tokens(static_cast<size_t>(batch.samples * batch.sequence_length));
  for (int64_t step = 0; step < options.warmup + options.steps; ++step) {
    std::generate(tokens.begin(), tokens.end(), [&] { return token(random); });
    batch.tokens = tokens.data();
    amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
    call([&](amxt_error* error) {
      return amxt_trainer_step(trainer.get(), &batch, &metrics, AMXT_FOREVER, error);
    });
    if (step >= options.warmup) result.steps.push_back(metrics);
  }
  call([&](amxt_error* error) { return amxt_group_finalize(group, AMXT_SECONDS(60), error); });
  return result;
}

void print_steps(const BenchOptions& options, const StepResult& result) {
  std::vector<amxt_step_metrics> by_speed = result.steps;
  std::sort(by_speed.begin(), by_speed.end(),
            [](const auto& a, const auto& b) { return a.seconds < b.seconds; });
  const amxt_step_metrics& median = by_speed[by_speed.size() / 2];
  if (!options.as_json) {
    print_line(fmt::format(
        "{:.0f} tokens/s, {:.3f} TFLOP/s, {:.3f} s a step (median of {}; fastest {:.3f}, "
        "slowest {:.3f}), {} peak of all ranks",
        median.tokens_per_second, median.model_tflops, median.seconds, by_speed.size(),
        by_speed.front().seconds, by_speed.back().seconds,
        bytes_text(static_cast<double>(median.peak_pss_bytes_all_ranks))));
    return;
  }
  Json steps = Json::array();
  for (const amxt_step_metrics& step : result.steps) {
    steps.push_back({{"seconds", step.seconds},
                     {"tokens", step.tokens},
                     {"tokens_per_second", step.tokens_per_second},
                     {"model_tflops", step.model_tflops},
                     {"loss", step.loss}});
  }
  print_line(Json{{"tokens_per_second", median.tokens_per_second},
                  {"model_tflops", median.model_tflops},
                  {"seconds", median.seconds},
                  {"peak_rss_bytes", median.peak_rss_bytes},
                  {"peak_pss_bytes_all_ranks", median.peak_pss_bytes_all_ranks},
                  {"world_size", median.world_size},
                  {"steps", steps},
                  {"options", result.effective}}
                 .dump(2));
}

int run_step(const BenchOptions& options) {
  take_signals();
  const Session session(options.common);
  const Group group = join_group(session);
  if (!options.model && amxt_group_size(group.get()) > 1) {
    throw Failure("several ranks need --model, a directory that all of them see", kUsage);
  }
  std::optional<TemporaryFolder> folder;
  std::string directory = options.model.value_or("");
  if (!options.model) {
    folder.emplace();
    directory = folder->path() + "/model";
    const std::string config = preset_config(options.preset);
    call([&](amxt_error* error) {
      return amxt_model_write_random(session.runtime(), config.c_str(), directory.c_str(), nullptr,
                                     AMXT_FOREVER, error);
    });
  }
  try {
    const StepResult result = take_steps(options, session, group.get(), directory);
    if (amxt_group_rank(group.get()) == 0) print_steps(options, result);
  } catch (const Failure& failure) {
    amxt_group_abort(group.get(), failure.what(), nullptr);
    throw;
  }
  return kSuccess;
}

}  // namespace

Run add_bench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand(
      "bench",
      "Measures the machine (peak), the operations of a step (gemm, attention, head, optimizer, "
      "norms, layer), training (step) or its ranks (collectives)");
  auto options = std::make_shared<BenchOptions>();
  bench->require_subcommand(1);
  CLI::App* peak = bench->add_subcommand("peak", "Matrix products and memory, as fast as they go");
  const auto kernels = add_kernel_benches(*bench, options->common);
  CLI::App* step = bench->add_subcommand("step", "Training steps on random tokens");
  CLI::App* collectives =
      bench->add_subcommand("collectives", "Reductions and exchanges between ranks");
  auto between = std::make_shared<CollectivesBench>();
  collectives->add_flag("--json", between->as_json, "Print JSON, an object a line");
  collectives
      ->add_option("--ranks", between->ranks, "Ranks to start when no launcher did (default 2)")
      ->transform(whole(1, 64));
  collectives->add_option("--bytes", between->sizes, "Bytes of an array (default 4 KiB to 256 MiB)")
      ->delimiter(',')
      ->transform(whole(4, int64_t{1} << 36));
  collectives->add_option("--repeat", between->repeat, "Measurements of each (default 7)")
      ->transform(whole(1, 10'000));
  add_common_options(*collectives, options->common);
  add_group_options(*collectives, options->common);
  for (CLI::App* each : {peak, step}) {
    each->add_flag("--json", options->as_json, "Print JSON");
    add_common_options(*each, options->common);
  }
  add_group_options(*step, options->common);
  step->add_option("--model", options->model,
                   "Model directory (default: random weights of a preset)");
  step->add_option("--preset", options->preset, "tiny, 60m (default), 300m, 1b or 8b");
  step->add_option("--steps", options->steps, "Steps that are measured (default 5)")
      ->transform(whole(1, int64_t{1} << 30));
  step->add_option("--warmup", options->warmup, "Steps before that (default 2)")
      ->transform(whole(0, int64_t{1} << 30));
  add_size_options(*step, options->flags);
  return [options, between, kernels, peak, collectives] {
    for (const auto& [parser, kernel] : kernels) {
      if (parser->parsed()) return run_kernel_bench(options->common, *kernel);
    }
    if (collectives->parsed()) return run_collectives(options->common, *between);
    return peak->parsed() ? run_peak(*options) : run_step(*options);
  };
}

}  // namespace command
