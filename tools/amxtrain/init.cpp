// amxtrain init: a model directory with random weights.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct InitOptions {
  CommonOptions common;
  std::optional<std::string> preset, config;
  std::string out;
  std::optional<int64_t> seed, shard_bytes;
  bool as_json = false;
};

int run_init(const InitOptions& options) {
  take_signals();
  const Session session(options.common);
  const std::string config =
      options.preset ? preset_config(*options.preset) : read_file(*options.config);

  ItemProgress progress;
  amxt_write_random_options write = AMXT_WRITE_RANDOM_OPTIONS_INIT;
  write.seed = options.seed.value_or(AMXT_UNSET_I64);
  write.shard_bytes = options.shard_bytes.value_or(AMXT_UNSET_I64);
  write.config_name = options.preset ? options.preset->c_str() : options.config->c_str();
  write.progress = ItemProgress::callback;
  write.progress_user_data = &progress;
  const double begin = now();
  call([&](amxt_error* error) {
    return amxt_model_write_random(session.runtime(), config.c_str(), options.out.c_str(), &write,
                                   AMXT_FOREVER, error);
  });
  const double seconds = now() - begin;

  const Model model = make<Model>([&](amxt_model** out, amxt_error* error) {
    return amxt_model_open(session.runtime(), options.out.c_str(), out, error);
  });
  Json info =
      json([&](char** out, amxt_error* error) { return amxt_model_info(model.get(), out, error); });
  if (options.as_json) {
    info["seconds"] = seconds;
    print_line(info.dump(2));
  } else {
    print_line(fmt::format("{}: {} in {}, {} in {:.1f} s", options.out,
                           counted(info.at("parameters").get<int64_t>(), "parameter"),
                           counted(info.at("tensors").get<int64_t>(), "tensor"),
                           bytes_text(info.at("bytes").get<double>()), seconds));
  }
  return kSuccess;
}

}  // namespace

Run add_init(CLI::App& app) {
  CLI::App* init = app.add_subcommand("init", "Writes a model directory with random weights");
  auto options = std::make_shared<InitOptions>();
  CLI::Option_group* source = init->add_option_group("configuration");
  source->add_option("--preset", options->preset, "tiny, 60m, 300m, 1b or 8b");
  source->add_option("--config", options->config, "A config.json");
  source->require_option(1);
  init->add_option("--out", options->out, "Directory to write")->required();
  init->add_option("--seed", options->seed, "Seed of the weights (default 42)")
      ->transform(whole(0));
  init->add_option("--shard-size", options->shard_bytes,
                   "Most bytes of a file, such as 300MB (default 5GB)")
      ->transform(size_in_bytes());
  init->add_flag("--json", options->as_json, "Print JSON");
  add_common_options(*init, options->common);
  return [options] { return run_init(*options); };
}

}  // namespace command
