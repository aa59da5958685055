#include "options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace command {

namespace {

// The number of a name in a list of names, or unset.
int32_t choice(const std::optional<std::string>& name, std::initializer_list<const char*> names) {
  int32_t number = 0;
  for (const char* candidate : names) {
    if (name && *name == candidate) return number;
    ++number;
  }
  return AMXT_UNSET_I32;
}

const char* stage_name(int32_t stage) {
  switch (stage) {
    case AMXT_STAGE_LOAD:
      return "loading";
    case AMXT_STAGE_RESUME:
      return "resuming";
    case AMXT_STAGE_SAVE:
      return "saving";
    case AMXT_STAGE_EXPORT:
      return "exporting";
    case AMXT_STAGE_VERIFY:
      return "verifying";
    case AMXT_STAGE_WRITE:
      return "writing";
    case AMXT_STAGE_SCAN:
      return "scanning";
    case AMXT_STAGE_TOKENIZE:
      return "tokenizing";
    default:
      return "working";
  }
}

constexpr double kShortestRateSeconds = 0.01;

std::string joined(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

CLI::Validator whole(int64_t least, int64_t most) {
  return CLI::Validator(
      [least, most](std::string& text) -> std::string {
        int64_t value = 0;
        const char* const end = text.data() + text.size();
        const auto [stop, failure] = std::from_chars(text.data(), end, value);
        const bool too_long = failure == std::errc::result_out_of_range;
        if ((failure != std::errc() && !too_long) || stop != end) {
          return text + ": must be a whole number";
        }
        if (too_long) value = text.starts_with('-') ? INT64_MIN : INT64_MAX;
        if (value < least) return fmt::format("{}: must be {} or more", text, least);
        if (value > most) return fmt::format("{}: must be at most {}", text, most);
        if (too_long) return text + ": is too large";
        text = std::to_string(value);
        return {};
      },
      "");
}

CLI::Validator real(const char* range, bool (*allowed)(double)) {
  return CLI::Validator(
      [range, allowed](std::string& text) -> std::string {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        if (text.empty() || *end != '\0') return text + ": must be a number";
        if (!std::isfinite(value) || !allowed(value)) {
          return fmt::format("{}: must be {}", text, range);
        }
        return {};
      },
      "");
}

CLI::Validator not_negative() {
  return real("0 or more", [](double value) { return value >= 0; });
}

CLI::Validator one_of(std::vector<std::string> names) {
  std::string description = "{" + joined(names) + "}";
  return CLI::Validator(
      [names = std::move(names)](std::string& text) -> std::string {
        if (std::find(names.begin(), names.end(), text) != names.end()) return {};
        return fmt::format("{}: not one of {}", text, joined(names));
      },
      std::move(description));
}

CLI::Validator size_in_bytes() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const std::string given = text;
        try {
          const std::string refused = CLI::AsSizeValue(true)(text);
          if (refused.empty() && whole(1)(text).empty()) return {};
        } catch (const CLI::ValidationError&) {
        }
        return given + ": must be a size of 1 byte or more, such as 12GiB";
      },
      "SIZE");
}

void add_common_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--threads", options.threads,
                 "Threads of each process (default: from the machine)")
      ->transform(whole(1, 1024));
  app.add_option("--log", options.log_level, "Level of the log (default: AMXTRAIN_LOG, else info)")
      ->transform(one_of({"error", "warning", "info", "debug", "off"}));
}

void add_group_options(CLI::App& app, CommonOptions& options) {
  app.add_flag("--allow-unauthenticated-data", options.allow_unauthenticated_data,
               "With AMXTRAIN_SECRET_FILE and several nodes: let data go over gloo all the same");
  app.add_option("--connect-timeout", options.connect_timeout_seconds,
                 "Seconds for all ranks to be there (default 300)")
      ->transform(whole(1, 1'000'000));
}

void add_data_options(CLI::App& app, DataOptions& options) {
  app.add_option("--data", options.paths, "Token files: .safetensors, .npy or .bin")->required();
  app.add_option("--mode", options.mode,
                 "pack: documents back to back (default); pad: one document a sample")
      ->transform(one_of({"pack", "pad"}));
  app.add_option("--separator", options.separator,
                 "Token that ends a document in .npy and .bin streams, -1 for none (default: the "
                 "model's end of text)")
      ->transform(whole(-1, INT32_MAX));
  app.add_option("--bin-dtype", options.bin_dtype, "Type of .bin tokens (default: by vocabulary)")
      ->transform(one_of({"uint16", "uint32"}));
}

Dataset open_dataset(const Session& session, amxt_model* model, const DataOptions& options,
                     const std::vector<std::string>& paths, int64_t sequence_length) {
  amxt_dataset_options dataset_options = AMXT_DATASET_OPTIONS_INIT;
  dataset_options.mode = choice(options.mode, {"pack", "pad"});
  if (options.bin_dtype) {
    dataset_options.bin_dtype =
        *options.bin_dtype == "uint16" ? AMXT_DTYPE_UINT16 : AMXT_DTYPE_UINT32;
  }
  dataset_options.separator = options.separator.value_or(AMXT_UNSET_I64);
  dataset_options.sequence_length = sequence_length;
  dataset_options.model = model;
  std::vector<const char*> more;
  for (size_t i = 1; i < paths.size(); ++i) more.push_back(paths[i].c_str());
  dataset_options.extra_paths = more.data();
  dataset_options.extra_path_count = static_cast<int64_t>(more.size());
  try {
    return make<Dataset>([&](amxt_dataset** out, amxt_error* error) {
      return amxt_dataset_open(session.runtime(), paths.front().c_str(), &dataset_options, out,
                               error);
    });
  } catch (const Failure& failure) {
    // "separator 300: not a token id of a vocabulary of 256", as it was typed.
    const std::string message = failure.what();
    if (!message.starts_with("separator ")) throw;
    throw Failure("--" + message, options.separator ? kUsage : kFailure);
  }
}

void add_size_options(CLI::App& app, TrainerFlags& flags) {
  // As the library has them.
  const CLI::Validator count = whole(1, int64_t{1} << 31);
  app.add_option("--ds-config", flags.ds_config, "A DeepSpeed configuration file");
  app.add_option("--seq-len", flags.sequence_length, "Positions of a sample (default 512)")
      ->transform(count);
  app.add_option("--micro-batch", flags.micro_batch, "Samples of a micro-batch (default 1)")
      ->transform(count);
  app.add_option("--accumulate", flags.accumulate, "Micro-batches of a step (default 4)")
      ->transform(count);
  app.add_option("--wave", flags.wave,
                 "Micro-batches that pass a layer together (default: planned)")
      ->transform(count);
  app.add_option("--compute-dtype", flags.compute_dtype, "bfloat16 (default) or float32")
      ->transform(one_of({"bfloat16", "float32"}));
  app.add_option("--gradient-dtype", flags.gradient_dtype, "bfloat16 or float32 (default: planned)")
      ->transform(one_of({"bfloat16", "float32"}));
  app.add_option("--keep-forward", flags.keep_forward,
                 "What forward keeps for backward: auto (default), inputs, attention, all")
      ->transform(one_of({"auto", "inputs", "attention", "all"}));
  app.add_option("--memory-limit", flags.memory_limit,
                 "Memory of this machine to use, such as 12GiB (default: what there is)")
      ->transform(size_in_bytes());
  app.add_option("--prefetch-parameters", flags.prefetch_parameters,
                 "Several nodes: parameters fetched ahead of use (default 50000000; 0: none)")
      ->transform(whole(0));
  app.add_option("--live-parameters", flags.live_parameters,
                 "Several nodes: most of others' parameters held (default 1000000000)")
      ->transform(whole(0));
  app.add_option("--wire-dtype", flags.wire_dtype,
                 "Several nodes: gradients are sent as bfloat16 or float32 (default: as kept)")
      ->transform(one_of({"bfloat16", "float32"}));
}

void add_recipe_options(CLI::App& app, TrainerFlags& flags) {
  const CLI::Validator beta =
      real("0 or more and below 1", [](double value) { return value >= 0 && value < 1; });
  app.add_option("--lr", flags.learning_rate, "Learning rate (default 2e-5)")
      ->transform(not_negative());
  app.add_option("--warmup-steps", flags.warmup_steps, "Steps of warm-up (default 0)")
      ->transform(whole(0, kMostSteps));
  app.add_option("--schedule", flags.schedule, "linear (default), cosine or constant")
      ->transform(one_of({"linear", "cosine", "constant"}));
  app.add_option("--weight-decay", flags.weight_decay, "Weight decay (default 0.01)")
      ->transform(not_negative());
  app.add_option("--decay", flags.decay, "What decays: all (default) or matrices")
      ->transform(one_of({"all", "matrices"}));
  app.add_option("--clip", flags.clip,
                 "Largest norm of the gradient, 0 for no clipping (default 1.0)")
      ->transform(not_negative());
  app.add_option("--beta1", flags.beta1, "AdamW's first beta (default 0.9)")->transform(beta);
  app.add_option("--beta2", flags.beta2, "AdamW's second beta (default 0.999)")->transform(beta);
  app.add_option("--epsilon", flags.epsilon, "AdamW's epsilon (default 1e-8)")
      ->transform(real("above 0", [](double value) { return value > 0; }));
  app.add_option("--loss-average", flags.loss_average,
                 "tokens (default): mean over all; micro_batch: mean of means")
      ->transform(one_of({"tokens", "micro_batch"}));
  app.add_option("--nonfinite", flags.nonfinite,
                 "A value that is not finite: stop (default) or skip")
      ->transform(one_of({"stop", "skip"}));
  app.add_option("--seed", flags.seed, "Seed of the order of samples (default 42)")
      ->transform(whole(0));
  app.add_option("--log-steps", flags.log_steps, "Steps between lines (default 1)")
      ->transform(whole(1, kMostSteps));
}

amxt_trainer_options trainer_options(const TrainerFlags& flags, std::string& ds_config_text) {
  amxt_trainer_options options = AMXT_TRAINER_OPTIONS_INIT;
  if (flags.ds_config) {
    ds_config_text = read_file(*flags.ds_config);
    options.ds_config = ds_config_text.c_str();
    options.ds_config_name = flags.ds_config->c_str();
  }
  auto integer = [](const std::optional<int64_t>& value) { return value.value_or(AMXT_UNSET_I64); };
  auto real = [](const std::optional<double>& value) { return value.value_or(AMXT_UNSET_F64); };
  options.compute_dtype = choice(flags.compute_dtype, {"bfloat16", "float32"});
  options.gradient_dtype = choice(flags.gradient_dtype, {"float32", "bfloat16"});
  options.decay = choice(flags.decay, {"all", "matrices"});
  options.schedule = choice(flags.schedule, {"constant", "linear", "cosine"});
  options.loss_average = choice(flags.loss_average, {"tokens", "micro_batch"});
  options.nonfinite = choice(flags.nonfinite, {"stop", "skip"});
  options.keep = choice(flags.keep_forward, {"auto", "inputs", "attention", "all"});
  options.sequence_length = integer(flags.sequence_length);
  options.micro_batch = integer(flags.micro_batch);
  options.accumulate = integer(flags.accumulate);
  options.wave = integer(flags.wave);
  options.warmup_steps = integer(flags.warmup_steps);
  options.log_steps = integer(flags.log_steps);
  options.seed = integer(flags.seed);
  options.memory_limit_bytes = integer(flags.memory_limit);
  options.prefetch_parameters = integer(flags.prefetch_parameters);
  options.live_parameters = integer(flags.live_parameters);
  options.wire_dtype = choice(flags.wire_dtype, {"float32", "bfloat16"});
  options.learning_rate = real(flags.learning_rate);
  options.beta1 = real(flags.beta1);
  options.beta2 = real(flags.beta2);
  options.epsilon = real(flags.epsilon);
  options.weight_decay = real(flags.weight_decay);
  options.clip = real(flags.clip);
  return options;
}

std::string preset_config(const std::string& name) {
  char* raw = nullptr;
  amxt_error error = AMXT_ERROR_INIT;
  const amxt_status status = amxt_model_preset(name.c_str(), &raw, &error);
  if (status == AMXT_E_NOT_FOUND) {
    throw Failure(fmt::format("--preset {}: {}", name, error.message), kUsage);
  }
  if (status != AMXT_OK) throw Failure(error);
  const std::string text = raw;
  amxt_string_destroy(raw);
  return text;
}

int32_t ItemProgress::callback(const amxt_progress* progress, void* user_data) {
  static_cast<ItemProgress*>(user_data)->update(*progress);
  return 0;
}

void ItemProgress::update(const amxt_progress& progress) {
  if (quiet_) return;
  if (progress.stage != stage_ || progress.item != item_) {
    stage_ = progress.stage;
    item_ = progress.item;
    ended_ = false;
    begin_ = now();
  }
  const std::string label = fmt::format("{} {}/{} {}", stage_name(stage_), item_ + 1,
                                        progress.item_count, progress.item_name);
  const auto done = static_cast<double>(progress.item_done_bytes);
  const double seconds = now() - begin_;
  // Of a shorter time a rate says nothing.
  const std::string rate =
      seconds >= kShortestRateSeconds ? bytes_text(done / seconds) + "/s" : std::string();
  const bool complete =
      progress.item_total_bytes > 0 && progress.item_done_bytes >= progress.item_total_bytes;
  if (complete && !ended_) {
    ended_ = true;
    show_bar("");
    error_line(fmt::format("{}: {}{}", label, bytes_text(done), rate.empty() ? "" : " at " + rate));
  } else if (!complete && has_bar() && throttle_.due()) {
    show_bar(bar_text(label, done, static_cast<double>(progress.item_total_bytes),
                      fmt::format("{} {}", bytes_text(done), rate)));
  }
}

void print_plan(const Json& plan) {
  auto row = [](std::string_view name, std::string_view rank, std::string_view node) {
    print_line(
        fmt::format("{} {} {}", padded(name, 30), padded_left(rank, 12), padded_left(node, 12)));
  };
  auto bytes = [](const Json& value) { return bytes_text(value.get<double>()); };
  // Of the largest node.
  const auto all_ranks = plan.at("ranks").get<int64_t>(), nodes = plan.at("nodes").get<int64_t>();
  const auto ranks = static_cast<double>((all_ranks + nodes - 1) / nodes);
  row("", "a rank", nodes > 1 ? "a node" : "the node");
  for (const Json& part : plan.at("parts")) {
    const auto size = part.at("bytes").get<double>();
    const bool shared = part.at("shared").get<bool>();
    row(part.at("name").get<std::string>(), shared ? "shared" : bytes_text(size),
        bytes_text(shared ? size : size * ranks));
  }
  row("peak (shared parts divided)", bytes(plan.at("peak_bytes_per_rank")),
      bytes(plan.at("peak_bytes_per_node")));
  print_line(fmt::format("{} {} {}  {}", padded("limit", 30), padded("", 12),
                         padded_left(bytes(plan.at("limit_bytes")), 12),
                         plan.value("limit", std::string())));
}

}  // namespace command
