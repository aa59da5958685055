#include "train/ds_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/json.h"
#include "base/text.h"
#include "train/ds_config_keys.h"

namespace amxt::train {
namespace {

// A line of errors stays a line.
constexpr size_t kMostErrors = 8;
constexpr double kMostExact = 9007199254740992;  // 2^53

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return out;
}

// A value in a message, in short.
std::string shown(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 4) return "an array";
  return quote(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

bool is_text(const Json& value, std::string_view text) {
  return value.is_string() && value.get_ref<const std::string&>() == text;
}

bool is_off(const Json& value) {
  if (value.is_null() || value == false || is_text(value, "auto") || is_text(value, "none")) {
    return true;
  }
  if (value.is_number()) return value.get<double>() <= 1;
  return (value.is_object() || value.is_array() || value.is_string()) &&
         (value.is_string() ? value.get_ref<const std::string&>().empty() : value.empty());
}

bool is_disabled(const Json& value) {
  if (!value.is_object()) return is_off(value);
  const auto enabled = value.find("enabled");
  return enabled == value.end() || is_off(*enabled);
}

class Parser {
 public:
  explicit Parser(std::string_view file) { config_.file = file; }

  Result<DsConfig> parse(const Json& json) {
    if (!json.is_object()) return error(Code::kFormat, "not a JSON object");
    section(DsSection::kTop, "", json);
    if (!wrong_.empty()) return error(Code::kFormat, listed(wrong_));
    if (!refused_.empty()) return error(Code::kUnsupported, "refused: " + listed(refused_));
    write_notes();
    return std::move(config_);
  }

 private:
  Error error(Code code, const std::string& message) const {
    return Error(code, fmt::format("{}: {}", quote(config_.file), message));
  }

  static std::string listed(const std::vector<std::string>& all) {
    const size_t shown_count = std::min(all.size(), kMostErrors);
    std::string text = fmt::format(
        "{}", fmt::join(all.begin(), all.begin() + static_cast<ptrdiff_t>(shown_count), "; "));
    if (all.size() > shown_count) text += fmt::format("; and {} more", all.size() - shown_count);
    return text;
  }

  void wrong(const std::string& path, const std::string& message) {
    wrong_.push_back(fmt::format("{}: {}", path, message));
  }
  void refuse(const std::string& path, const std::string& message) {
    refused_.push_back(fmt::format("{}: {}", path, message));
  }
  void honour(const std::string& path) { honoured_.push_back(path); }
  void accept(const std::string& path, std::string_view why) {
    for (auto& [reason, paths] : accepted_) {
      if (reason == why) return paths.push_back(path);
    }
    accepted_.push_back({std::string(why), {path}});
  }

  // Goes through an object by the table of its section.
  void section(DsSection name, const std::string& prefix, const Json& object) {
    for (const auto& [key, value] : object.items()) {
      const std::string path = prefix.empty() ? key : prefix + "." + key;
      const auto keys = ds_keys(name);
      const auto known = std::find_if(keys.begin(), keys.end(), [&k = key](const DsKey& candidate) {
        return candidate.name == k;
      });
      if (known == keys.end()) {
        unknown(name, prefix, key);
      } else {
        use(name, *known, path, value);
      }
    }
  }

  void unknown(DsSection name, const std::string& prefix, const std::string& key) {
    const std::string where = prefix.empty() ? "" : " in " + prefix;
    // Only what will be shown is looked up: a file may have any number of them.
    const std::string_view nearest =
        wrong_.size() < kMostErrors ? nearest_ds_key(name, key) : std::string_view();
    const std::string hint = nearest.empty() ? "" : fmt::format(" (nearest: '{}')", nearest);
    wrong_.push_back(fmt::format("unknown key {}{}{}", quote(key), where, hint));
  }

  void use(DsSection name, const DsKey& key, const std::string& path, const Json& value) {
    switch (key.use) {
      case DsUse::kAccept:
        return accept(path, key.why);
      case DsUse::kOff:
      case DsUse::kDisabled: {
        const bool off = key.use == DsUse::kOff ? is_off(value) : is_disabled(value);
        if (off) return accept(path, "off, as it always is here");
        return refuse(path, fmt::format("is not supported: {}", key.why));
      }
      case DsUse::kSection:
        return sub_section(key.name, path, value);
      default:
        return read(name, key.name, path, value);
    }
  }

  void sub_section(std::string_view key, const std::string& path, const Json& value) {
    // optimizer() and scheduler() read it, for they know the type.
    if (value.is_null() || key == "params") return;
    if (!value.is_object()) return wrong(path, "must be an object");
    if (key == "optimizer") return optimizer(path, value);
    if (key == "scheduler") return scheduler(path, value);
    section(key == "fp16"                ? DsSection::kFp16
            : key == "zero_optimization" ? DsSection::kZero
            : key == "offload_param"     ? DsSection::kOffloadParam
            : key == "offload_optimizer" ? DsSection::kOffloadOptimizer
            : key == "data_types"        ? DsSection::kDataTypes
                                         : DsSection::kBf16,
            path, value);
  }

  // A value that code reads.
  void read(DsSection name, std::string_view key, const std::string& path, const Json& value) {
    switch (name) {
      case DsSection::kTop:
        return read_top(key, path, value);
      case DsSection::kBf16:
        return flag(path, value, config_.bf16);
      case DsSection::kFp16:
        return read_fp16(path, value);
      case DsSection::kZero:
        if (key.ends_with("prefetch_bucket_size"))
          return size(path, value, config_.prefetch_parameters);
        if (key.ends_with("max_live_parameters")) return size(path, value, config_.live_parameters);
        return read_stage(path, value);
      case DsSection::kOffloadParam:
      case DsSection::kOffloadOptimizer:
        return read_device(path, value);
      case DsSection::kOptimizerParams:
        return read_optimizer(key, path, value);
      case DsSection::kSchedulerParams:
        return read_scheduler(key, path, value);
      case DsSection::kDataTypes:
        return read_gradient_type(path, value, config_.gradient_type);
      default:
        return;  // "type", read before
    }
  }

  void read_top(std::string_view key, const std::string& path, const Json& value) {
    if (key == "train_batch_size") return whole(path, value, 1, config_.train_batch_size);
    if (key == "train_micro_batch_size_per_gpu") {
      return whole(path, value, 1, config_.micro_batch);
    }
    if (key == "gradient_accumulation_steps") return whole(path, value, 1, config_.accumulate);
    if (key == "steps_per_print") return whole(path, value, 1, config_.steps_per_print);
    if (key == "gradient_clipping") return number(path, value, config_.clip);
    if (key == "communication_data_type") return read_gradient_type(path, value, config_.wire_type);
    // gradient_allreduce_op
    if (is_text(value, "mean") || value.is_null()) return accept(path, "the loss is a mean");
    refuse(path, fmt::format("{} is not supported: the loss is a mean", shown(value)));
  }

  void read_fp16(const std::string& path, const Json& value) {
    DsSetting<bool> enabled;
    flag(path, value, enabled);
    if (enabled.value.value_or(false)) {
      refuse(path, "true is not supported: mixed precision is bf16");
    }
  }

  void read_stage(const std::string& path, const Json& value) {
    DsSetting<int64_t> stage;
    whole(path, value, 0, stage);
    if (!stage.value) return;
    if (*stage.value > 3) return wrong(path, fmt::format("{} is not from 0 to 3", *stage.value));
    notes_.push_back(
        {DsClass::kHonoured,
         fmt::format("{} {}: stages 0 to 3 mean the same here: one copy of the weights "
                     "a node, everything else divided among its ranks",
                     path, *stage.value)});
  }

  void read_device(const std::string& path, const Json& value) {
    if (is_text(value, "cpu")) {
      notes_.push_back({DsClass::kAccepted, fmt::format("{} cpu: state lives in the memory of the "
                                                        "CPU anyway",
                                                        path)});
    } else if (is_text(value, "none") || is_text(value, "auto") || value.is_null()) {
      notes_.push_back({DsClass::kAccepted, fmt::format("{} {}: state lives in the memory of the "
                                                        "CPU all the same",
                                                        path, shown(value))});
    } else if (is_text(value, "nvme")) {
      refuse(path, "nvme is not supported in this version, cpu is");
    } else {
      wrong(path, fmt::format("{} is not none, cpu or nvme", shown(value)));
    }
  }

  void read_gradient_type(const std::string& path, const Json& value,
                          DsSetting<GradientType>& setting) {
    if (value.is_null()) return;
    setting.present = true;
    honour(path);
    if (is_text(value, "auto")) return;
    const std::string name = value.is_string() ? lower(value.get_ref<const std::string&>()) : "";
    if (name == "bf16" || name == "bfloat16") {
      setting.value = GradientType::kBFloat16;
    } else if (name == "fp32" || name == "float32" || name == "float") {
      setting.value = GradientType::kFloat32;
    } else if (name == "fp16" || name == "float16" || name == "half") {
      refuse(path, "fp16 is not supported: gradients are bf16 or fp32");
    } else {
      wrong(path, fmt::format("{} is not bf16, fp16 or fp32", shown(value)));
    }
  }

  // --- optimizer ---

  std::string type_of(const std::string& path, const Json& object) {
    const auto type = object.find("type");
    if (type == object.end() || type->is_null()) {
      wrong(path + ".type", "is missing");
      return "";
    }
    if (!type->is_string()) {
      wrong(path + ".type", "must be a name");
      return "";
    }
    return type->get<std::string>();
  }

  void params(DsSection name, const std::string& path, const Json& object) {
    const auto found = object.find("params");
    if (found == object.end() || found->is_null()) return;
    if (!found->is_object()) return wrong(path + ".params", "must be an object");
    section(name, path + ".params", *found);
  }

  void optimizer(const std::string& path, const Json& object) {
    config_.has_optimizer = true;
    const std::string type = type_of(path, object);
    const std::string name = lower(type);
    is_adamw_ = name == "adamw";
    if (name == "adam" || name == "adamw") {
      honour(path + ".type");
    } else if (!type.empty()) {
      refuse(path + ".type", fmt::format("{} is not supported: AdamW is", quote(type)));
    }
    section(DsSection::kOptimizer, path, object);
    params(DsSection::kOptimizerParams, path, object);
  }

  void read_optimizer(std::string_view key, const std::string& path, const Json& value) {
    if (key == "lr") return number(path, value, config_.learning_rate);
    if (key == "eps") return number(path, value, config_.epsilon);
    if (key == "weight_decay") return number(path, value, config_.weight_decay);
    if (key == "betas") return read_betas(path, value);
    if (key == "max_grad_norm") return refuse(path, "is gradient_clipping of the file");
    DsSetting<bool> setting;
    flag(path, value, setting);
    if (!setting.value) return;
    if (key == "torch_adam") config_.torch_adam = *setting.value;
    // AdamW stays AdamW whatever adam_w_mode is, there as here.
    if (key == "adam_w_mode" && !*setting.value && !is_adamw_) {
      refuse(path, "false is not supported: Adam without decoupled weight decay");
    }
    if (key == "bias_correction" && !*setting.value) {
      refuse(path, "false is not supported: moments are corrected");
    }
    if (key == "fp32_optimizer_states" && !*setting.value) {
      refuse(path, "false is not supported: moments are fp32");
    }
  }

  void read_betas(const std::string& path, const Json& value) {
    if (value.is_null()) return;
    config_.betas.present = true;
    honour(path);
    if (is_text(value, "auto")) return;
    if (!value.is_array() || value.size() != 2 || !value[0].is_number() || !value[1].is_number()) {
      return wrong(path, fmt::format("must be two numbers or \"auto\", is {}", shown(value)));
    }
    config_.betas.value = DsBetas{value[0].get<double>(), value[1].get<double>()};
  }

  // --- scheduler ---

  void scheduler(const std::string& path, const Json& object) {
    const std::string type = type_of(path, object);
    config_.schedule = ScheduleKind::kWarmup;
    if (type == "WarmupDecayLR") config_.schedule = ScheduleKind::kWarmupDecay;
    if (type == "WarmupCosineLR") config_.schedule = ScheduleKind::kWarmupCosine;
    if (type == "WarmupLR" || *config_.schedule != ScheduleKind::kWarmup) {
      honour(path + ".type");
    } else if (type == "LRRangeTest" || type == "OneCycle") {
      refuse(path + ".type", fmt::format("{} is not supported: WarmupLR, WarmupDecayLR and "
                                         "WarmupCosineLR are",
                                         type));
    } else if (!type.empty()) {
      wrong(path + ".type",
            fmt::format("{} is not WarmupLR, WarmupDecayLR or WarmupCosineLR", quote(type)));
    }
    section(DsSection::kScheduler, path, object);
    params(DsSection::kSchedulerParams, path, object);
    if (config_.schedule != ScheduleKind::kWarmup && !config_.total_steps.present) {
      wrong(path + ".params.total_num_steps", "is missing (\"auto\" takes the steps of the run)");
    }
  }

  // Whether the scheduler of this type has the parameter.
  bool has_parameter(std::string_view key) const {
    if (key == "warmup_min_lr" || key == "warmup_max_lr") {
      return config_.schedule != ScheduleKind::kWarmupCosine;
    }
    if (key == "warmup_min_ratio" || key == "cos_min_ratio") {
      return config_.schedule == ScheduleKind::kWarmupCosine;
    }
    return key != "total_num_steps" || config_.schedule != ScheduleKind::kWarmup;
  }

  void read_scheduler(std::string_view key, const std::string& path, const Json& value) {
    if (!has_parameter(key)) {
      return wrong(path, fmt::format("{} has no such parameter", schedule_name(*config_.schedule)));
    }
    if (key == "warmup_min_lr") return number(path, value, config_.warmup_min_lr);
    if (key == "warmup_max_lr") return number(path, value, config_.warmup_max_lr);
    if (key == "warmup_num_steps") return whole(path, value, 0, config_.warmup_steps);
    if (key == "total_num_steps") return whole(path, value, 1, config_.total_steps);
    if (key == "warmup_min_ratio") return number(path, value, config_.warmup_min_ratio);
    if (key == "cos_min_ratio") return number(path, value, config_.cosine_min_ratio);
    if (key == "last_batch_iteration") {
      if (value == -1) return accept(path, "a job begins with its first step");
      return refuse(path, "is not supported: --resume goes on where a checkpoint was made");
    }
    read_warmup_type(path, value);
  }

  void read_warmup_type(const std::string& path, const Json& value) {
    if (value.is_null()) return;
    config_.warmup_log.present = true;
    honour(path);
    if (is_text(value, "auto")) return;
    if (!is_text(value, "log") && !is_text(value, "linear")) {
      return wrong(path, fmt::format("{} is not log or linear", shown(value)));
    }
    config_.warmup_log.value = is_text(value, "log");
  }

  // --- values ---

  // True when there is a value to read: not null, not "auto".
  template <typename T>
  bool begin(const std::string& path, const Json& value, DsSetting<T>& out) {
    if (value.is_null()) return false;
    out.present = true;
    honour(path);
    return !is_text(value, "auto");
  }

  void flag(const std::string& path, const Json& value, DsSetting<bool>& out) {
    if (!begin(path, value, out)) return;
    if (!value.is_boolean()) {
      return wrong(path, fmt::format("must be true, false or \"auto\", is {}", shown(value)));
    }
    out.value = value.get<bool>();
  }

  void number(const std::string& path, const Json& value, DsSetting<double>& out) {
    if (!begin(path, value, out)) return;
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      return wrong(path, fmt::format("must be a number or \"auto\", is {}", shown(value)));
    }
    if (value.get<double>() < 0) {
      return wrong(path, fmt::format("{} is negative", value.get<double>()));
    }
    out.value = value.get<double>();
  }

  // 1e3 is a whole number, too.
  void whole(const std::string& path, const Json& value, int64_t least, DsSetting<int64_t>& out) {
    if (!begin(path, value, out)) return;
    const double real = value.is_number() ? value.get<double>() : 0.5;
    if (!(std::abs(real) <= kMostExact) || real != std::floor(real)) {
      return wrong(path, fmt::format("must be a whole number or \"auto\", is {}", shown(value)));
    }
    if (real < static_cast<double>(least)) {
      return wrong(path, fmt::format("{} is below {}", real, least));
    }
    out.value = static_cast<int64_t>(real);
  }

  // Parameters. DeepSpeed's users write 1e18 and the like for "no limit".
  void size(const std::string& path, const Json& value, DsSetting<int64_t>& out) {
    const double real = value.is_number() ? value.get<double>() : 0;
    const bool is_no_limit = std::isfinite(real) && real > kMostExact;
    whole(path, is_no_limit ? Json(kMostExact) : value, 0, out);
  }

  void write_notes() {
    const std::string file = quote(config_.file);
    const auto add = [&](DsClass kind, const std::string& text) {
      config_.notes.push_back({kind, fmt::format("{}: {}", file, text)});
    };
    if (!honoured_.empty()) {
      add(DsClass::kHonoured, fmt::format("honoured: {}", fmt::join(honoured_, ", ")));
    }
    for (const DsNote& note : notes_) add(note.kind, note.text);
    for (const auto& [why, paths] : accepted_) {
      add(DsClass::kAccepted,
          fmt::format("accepted, without effect: {}: {}", fmt::join(paths, ", "), why));
    }
  }

  DsConfig config_;
  bool is_adamw_ = false;
  std::vector<std::string> wrong_;
  std::vector<std::string> refused_;
  std::vector<std::string> honoured_;
  std::vector<DsNote> notes_;
  std::vector<std::pair<std::string, std::vector<std::string>>> accepted_;
};

}  // namespace

Result<DsConfig> parse_ds_config(std::string_view text, std::string_view file) {
  if (static_cast<int64_t>(text.size()) > kDsConfigLimit) {
    return Error(Code::kFormat, fmt::format("{}: {} bytes, more than the {} that it may have",
                                            quote(file), text.size(), kDsConfigLimit));
  }
  Result<Json> json = parse_json(text);
  if (!json) return std::move(json).error().in(quote(file));
  return Parser(file).parse(*json);
}

}  // namespace amxt::train
