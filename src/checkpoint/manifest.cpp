#include "checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/checksum.h"
#include "model/tensors.h"

namespace amxt::checkpoint {
namespace {

constexpr int64_t kManifestLimit = 256 << 20;
constexpr int64_t kMostCount = int64_t{1} << 62;
constexpr int64_t kSmallestChunk = 4096, kLargestChunk = 64 << 20;
// The manifest's checksum is its last line but one and covers every byte before that line.
constexpr std::string_view kChecksumLine = "\n \"checksum\": \"";
constexpr size_t kChecksumDigits = 32;

bool is_hex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// Takes the fields of one object in turn; remembers the first thing that is wrong with it.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) fail("is not an object");
  }

  const Json* take(const char* key) {
    if (error_) return nullptr;
    const auto found = object_.find(key);
    if (found == object_.end()) {
      fail(fmt::format("has no key '{}'", key));
      return nullptr;
    }
    ++taken_;
    return &*found;
  }
  int64_t whole(const char* key, int64_t least, int64_t most) {
    const Json* value = take(key);
    if (value == nullptr) return least;
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() &&
         value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) ||
        value->get<int64_t>() < least || value->get<int64_t>() > most) {
      fail(fmt::format("'{}' is not a whole number from {} to {}", key, least, most));
      return least;
    }
    return value->get<int64_t>();
  }
  double number(const char* key) {
    const Json* value = take(key);
    if (value == nullptr) return 0;
    if (!value->is_number()) fail(fmt::format("'{}' is not a number", key));
    return value->is_number() ? value->get<double>() : 0;
  }
  bool boolean(const char* key) {
    const Json* value = take(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) fail(fmt::format("'{}' is not true or false", key));
    return value->is_boolean() && value->get<bool>();
  }
  std::string string(const char* key) {
    const Json* value = take(key);
    if (value == nullptr) return {};
    if (!value->is_string()) fail(fmt::format("'{}' is not a string", key));
    return value->is_string() ? value->get<std::string>() : std::string();
  }
  std::string one_of(const char* key, std::initializer_list<std::string_view> names) {
    std::string name = string(key);
    if (!error_ && std::find(names.begin(), names.end(), name) == names.end())
      fail(fmt::format("'{}' is {}", key, quote(name)));
    return name;
  }
  const Json& object(const char* key) {
    static const Json nothing = Json::object();
    const Json* value = take(key);
    if (value != nullptr && !value->is_object()) fail(fmt::format("'{}' is not an object", key));
    return value != nullptr && value->is_object() ? *value : nothing;
  }
  const Json& array(const char* key) {
    static const Json nothing = Json::array();
    const Json* value = take(key);
    if (value != nullptr && !value->is_array()) fail(fmt::format("'{}' is not an array", key));
    return value != nullptr && value->is_array() ? *value : nothing;
  }
  void fail(std::string_view message) {
    if (!error_) error_.emplace(Code::kFormat, fmt::format("{} {}", where_, message));
  }
  // The error, or that of a key that version 1 does not have.
  Status finish() {
    if (!error_ && taken_ != object_.size())
      fail(fmt::format("has {} keys, version 1 has {}", object_.size(), taken_));
    if (error_) return std::move(*error_);
    return {};
  }

 private:
  const Json& object_;
  std::string where_;
  size_t taken_ = 0;
  std::optional<Error> error_;
};

Json schedule_json(const ScheduleState& schedule) {
  Json json;
  json["kind"] = schedule.kind;
  json["learning_rate"] = schedule.learning_rate;
  json["warmup_steps"] = schedule.warmup_steps;
  json["total_steps"] = schedule.total_steps;
  json["warmup_min_lr"] = schedule.warmup_min_lr;
  json["warmup_log"] = schedule.warmup_log;
  json["warmup_min_ratio"] = schedule.warmup_min_ratio;
  json["cosine_min_ratio"] = schedule.cosine_min_ratio;
  json["fixed_rate"] = schedule.fixed_rate ? Json(*schedule.fixed_rate) : Json();
  return json;
}

Status parse_schedule(const Json& json, ScheduleState* schedule) {
  Fields fields(json, "'schedule'");
  schedule->kind = fields.string("kind");
  schedule->learning_rate = fields.number("learning_rate");
  schedule->warmup_steps = fields.whole("warmup_steps", 0, kMostCount);
  schedule->total_steps = fields.whole("total_steps", 0, kMostCount);
  schedule->warmup_min_lr = fields.number("warmup_min_lr");
  schedule->warmup_log = fields.boolean("warmup_log");
  schedule->warmup_min_ratio = fields.number("warmup_min_ratio");
  schedule->cosine_min_ratio = fields.number("cosine_min_ratio");
  const Json* fixed = fields.take("fixed_rate");
  if (fixed != nullptr && fixed->is_number()) {
    schedule->fixed_rate = fixed->get<double>();
  } else if (fixed != nullptr && !fixed->is_null()) {
    fields.fail("'fixed_rate' is neither null nor a number");
  }
  return fields.finish();
}

Json optimizer_json(const OptimizerState& optimizer) {
  Json json;
  json["type"] = optimizer.type;
  json["beta1"] = optimizer.beta1;
  json["beta2"] = optimizer.beta2;
  json["epsilon"] = optimizer.epsilon;
  json["weight_decay"] = optimizer.weight_decay;
  json["decay"] = optimizer.decay;
  json["clip"] = optimizer.clip;
  json["loss_average"] = optimizer.loss_average;
  json["updates"] = optimizer.updates;
  return json;
}

Status parse_optimizer(const Json& json, OptimizerState* optimizer) {
  Fields fields(json, "'optimizer'");
  optimizer->type = fields.one_of("type", {"adamw"});
  optimizer->beta1 = fields.number("beta1");
  optimizer->beta2 = fields.number("beta2");
  optimizer->epsilon = fields.number("epsilon");
  optimizer->weight_decay = fields.number("weight_decay");
  optimizer->decay = fields.one_of("decay", {"all", "matrices"});
  optimizer->clip = fields.number("clip");
  optimizer->loss_average = fields.one_of("loss_average", {"tokens", "micro_batch"});
  optimizer->updates = fields.whole("updates", 0, kMostCount);
  return fields.finish();
}

Json data_json(const DataState& data) {
  Json json;
  json["order"] = data.order;
  json["seed"] = data.seed;
  json["position"] = data.position;
  json["samples"] = data.samples;
  json["sequence_length"] = data.sequence_length;
  json["mode"] = data.mode;
  json["fingerprint"] = fmt::format("{:016x}", data.fingerprint);
  json["global_batch"] = data.global_batch;
  return json;
}

Status parse_data(const Json& json, DataState* data) {
  Fields fields(json, "'data'");
  data->order = fields.string("order");
  data->seed = fields.whole("seed", INT64_MIN, INT64_MAX);
  data->position = fields.whole("position", 0, kMostCount);
  data->samples = fields.whole("samples", 0, kMostCount);
  data->sequence_length = fields.whole("sequence_length", 0, kMostCount);
  data->mode = fields.one_of("mode", {"", "pack", "pad"});
  data->global_batch = fields.whole("global_batch", 0, kMostCount);
  const std::string fingerprint = fields.string("fingerprint");
  if (is_hex(fingerprint, 16)) {
    std::from_chars(fingerprint.data(), fingerprint.data() + fingerprint.size(), data->fingerprint,
                    16);
  } else {
    fields.fail("'fingerprint' is not 16 hex digits");
  }
  return fields.finish();
}

Status parse_file(const Json& json, size_t index, ManifestFile* file) {
  Fields fields(json, fmt::format("'files'[{}]", index));
  file->name = fields.string("path");
  file->bytes = fields.whole("bytes", 8, kMostCount);
  file->checksum = fields.string("checksum");
  if (!is_plain_name(file->name))
    fields.fail(fmt::format("'path' is {}, not a plain file name", quote(file->name)));
  if (!is_hex(file->checksum, kChecksumDigits)) fields.fail("'checksum' is not 32 hex digits");
  return fields.finish();
}

Status parse_tensor(const Json& json, size_t index, int64_t files, ManifestTensor* tensor) {
  Fields fields(json, fmt::format("'tensors'[{}]", index));
  tensor->name = fields.string("name");
  tensor->rows = fields.whole("rows", 1, kMostCount);
  tensor->columns = fields.whole("columns", 1, kMostCount);
  tensor->vector = fields.boolean("vector");
  int64_t bytes = 0;
  if (__builtin_mul_overflow(tensor->rows, tensor->columns, &bytes) ||
      __builtin_mul_overflow(bytes, int64_t{4}, &bytes)) {
    fields.fail(fmt::format("of shape [{}, {}] overflows 64 bits", tensor->rows, tensor->columns));
  }
  if (tensor->vector && tensor->rows != 1) fields.fail("is a vector of more than one row");
  // Each part: [file, first row, end].
  int64_t row = 0;
  for (const Json& part : fields.array("parts")) {
    const bool numbers = part.is_array() && part.size() == 3 &&
                         std::all_of(part.begin(), part.end(), [](const Json& n) {
                           return n.is_number_unsigned() && n.get<uint64_t>() < uint64_t{1} << 62;
                         });
    if (!numbers) {
      fields.fail("'parts' has a member that is not [file, first row, end]");
      break;
    }
    const ManifestPart parsed{part[0].get<int64_t>(), part[1].get<int64_t>(),
                              part[2].get<int64_t>()};
    if (parsed.file >= files)
      fields.fail(fmt::format("'parts' names file {} of {}", parsed.file, files));
    if (parsed.row_begin != row || parsed.row_end <= row || parsed.row_end > tensor->rows) {
      fields.fail(fmt::format("'parts' has rows {} to {} of {} where row {} is next",
                              parsed.row_begin, parsed.row_end, tensor->rows, row));
    }
    row = parsed.row_end;
    tensor->parts.push_back(parsed);
  }
  if (row != tensor->rows) fields.fail(fmt::format("'parts' has {} of {} rows", row, tensor->rows));
  return fields.finish();
}

// The version decides what all else means: it is looked at before anything else.
Status check_version(const Json& json) {
  if (!json.is_object() || !json.contains("format") || json["format"] != kFormatName) {
    return Error(Code::kFormat,
                 fmt::format("not the manifest of a checkpoint: no 'format' of '{}'", kFormatName));
  }
  const auto version = json.find("version");
  if (version == json.end() || !version->is_number_integer())
    return Error(Code::kFormat, "'version' is not a whole number");
  if (*version != kFormatVersion) {
    return Error(Code::kUnsupported, fmt::format("format version {}, this library reads version {}",
                                                 version->dump(), kFormatVersion));
  }
  return {};
}

Status check_checksum(std::string_view text, std::string* checksum) {
  const size_t line = text.rfind(kChecksumLine);
  const size_t digits = line == std::string_view::npos ? line : line + kChecksumLine.size();
  if (line == std::string_view::npos ||
      text.substr(std::min(text.size(), digits + kChecksumDigits)) != "\"\n}\n") {
    return Error(Code::kFormat, "does not end with the line of its 'checksum'");
  }
  *checksum = text.substr(digits, kChecksumDigits);
  if (checksum128(text.substr(0, line + 1)) != *checksum) {
    return Error(Code::kCorrupt, "the text is not what was written: its checksum differs");
  }
  return {};
}

Result<Manifest> parse_text(std::string_view text) {
  AMXT_ASSIGN(const Json json, parse_json(text));
  AMXT_TRY(check_version(json));
  Manifest manifest;
  AMXT_TRY(check_checksum(text, &manifest.checksum));
  TrainingState& training = manifest.training;
  Fields fields(json, "the manifest");
  fields.take("format");
  fields.take("version");
  training.step = fields.whole("step", 0, kMostCount);
  training.total_steps = fields.whole("total_steps", 0, kMostCount);
  training.compute_dtype = fields.one_of("compute_dtype", {"bfloat16", "float32"});
  manifest.world_size = static_cast<int>(fields.whole("world_size", 1, 1 << 20));
  manifest.chunk_bytes = fields.whole("chunk_bytes", kSmallestChunk, kLargestChunk);
  manifest.parameters = fields.whole("parameters", 1, kMostCount);
  manifest.config_hash = fields.string("config_hash");
  const Json& schedule = fields.object("schedule");
  const Json& optimizer = fields.object("optimizer");
  const Json& data = fields.object("data");
  manifest.model = fields.object("model");
  manifest.config_text = fields.string("config");
  const Json& files = fields.array("files");
  const Json& tensors = fields.array("tensors");
  fields.take("checksum");
  AMXT_TRY(fields.finish());
  AMXT_TRY(parse_schedule(schedule, &training.schedule));
  AMXT_TRY(parse_optimizer(optimizer, &training.optimizer));
  AMXT_TRY(parse_data(data, &training.data));
  if (config_hash(manifest.model) != manifest.config_hash)
    return Error(Code::kCorrupt, "'config_hash' is not that of 'model'");
  manifest.files.resize(files.size());
  for (size_t i = 0; i < files.size(); ++i) AMXT_TRY(parse_file(files[i], i, &manifest.files[i]));
  manifest.tensors.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    AMXT_TRY(parse_tensor(tensors[i], i, static_cast<int64_t>(files.size()), &manifest.tensors[i]));
  }
  return manifest;
}

}  // namespace

int64_t Manifest::bytes() const {
  int64_t sum = 0;
  for (const ManifestFile& file : files) sum += file.bytes;
  return sum;
}

Json model_identity(const model::ModelConfig& config) {
  Json json;
  json["model_type"] = config.model_type;
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_hidden_layers"] = config.layers;
  json["num_attention_heads"] = config.heads;
  json["num_key_value_heads"] = config.kv_heads;
  json["head_dim"] = config.head_dim;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["qkv_bias"] = config.qkv_bias;
  json["output_bias"] = config.output_bias;
  json["mlp_bias"] = config.mlp_bias;
  json["qk_norm"] = config.qk_norm;
  const model::Rope& rope = config.rope;
  json["rope_type"] = rope.type == model::RopeType::kDefault  ? "default"
                      : rope.type == model::RopeType::kLinear ? "linear"
                                                              : "llama3";
  json["rope_theta"] = rope.theta;
  if (rope.type != model::RopeType::kDefault) json["rope_factor"] = rope.factor;
  if (rope.type == model::RopeType::kLlama3) {
    json["rope_low_freq_factor"] = rope.low_freq_factor;
    json["rope_high_freq_factor"] = rope.high_freq_factor;
    json["rope_original_max_position_embeddings"] = rope.original_max_position_embeddings;
  }
  return json;
}

std::string config_hash(const Json& identity) { return checksum128(identity.dump()); }

std::string file_name(int rank, int world_size) {
  return fmt::format("rank-{:05}-of-{:05}.safetensors", rank, world_size);
}

std::string step_name(int64_t step) { return fmt::format("step-{:06}", step); }

std::optional<int64_t> step_of_name(std::string_view name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const auto [end, failure] =
      std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
  if (failure != std::errc() || step < 0 || step_name(step) != name) return std::nullopt;
  return step;
}

std::string part_name(Part part, std::string_view tensor, int64_t row_begin, int64_t row_end) {
  constexpr const char* kNames[kParts] = {"master", "m", "v"};
  return fmt::format("{}/{}/{}-{}", kNames[static_cast<int>(part)], tensor, row_begin, row_end);
}

int64_t chunk_rows(int64_t chunk_bytes, int64_t columns) {
  return std::max<int64_t>(1, chunk_bytes / (columns * 4));
}

Manifest plan_manifest(const TrainingState& training, const model::ModelConfig& config,
                       const store::Layout& layout) {
  Manifest manifest;
  manifest.training = training;
  manifest.world_size = layout.owners();
  manifest.model = model_identity(config);
  manifest.config_hash = config_hash(manifest.model);
  manifest.parameters = model::parameter_count(config);
  manifest.config_text = config.text;
  for (int owner = 0; owner < layout.owners(); ++owner)
    manifest.files.push_back({file_name(owner, layout.owners()), 0, ""});
  for (const model::TensorSpec& spec : layout.specs())
    manifest.tensors.push_back({spec.name, spec.rows, spec.columns, spec.vector, {}});
  for (int owner = 0; owner < layout.owners(); ++owner) {
    for (const store::OwnedRange& range : layout.ranges(owner, -1)) {
      manifest.tensors[static_cast<size_t>(range.tensor)].parts.push_back(
          {owner, range.row_begin, range.row_end});
    }
  }
  for (ManifestTensor& tensor : manifest.tensors) {
    std::sort(
        tensor.parts.begin(), tensor.parts.end(),
        [](const ManifestPart& a, const ManifestPart& b) { return a.row_begin < b.row_begin; });
  }
  return manifest;
}

std::string manifest_text(const Manifest& manifest) {
  Json json;
  json["format"] = kFormatName;
  json["version"] = kFormatVersion;
  json["step"] = manifest.training.step;
  json["total_steps"] = manifest.training.total_steps;
  json["compute_dtype"] = manifest.training.compute_dtype;
  json["world_size"] = manifest.world_size;
  json["chunk_bytes"] = manifest.chunk_bytes;
  json["parameters"] = manifest.parameters;
  json["config_hash"] = manifest.config_hash;
  json["schedule"] = schedule_json(manifest.training.schedule);
  json["optimizer"] = optimizer_json(manifest.training.optimizer);
  json["data"] = data_json(manifest.training.data);
  json["model"] = manifest.model;
  json["config"] = manifest.config_text;
  for (const ManifestFile& file : manifest.files) {
    json["files"].push_back(
        {{"path", file.name}, {"bytes", file.bytes}, {"checksum", file.checksum}});
  }
  for (const ManifestTensor& tensor : manifest.tensors) {
    Json parts = Json::array();
    for (const ManifestPart& part : tensor.parts)
      parts.push_back({part.file, part.row_begin, part.row_end});
    json["tensors"].push_back({{"name", tensor.name},
                               {"rows", tensor.rows},
                               {"columns", tensor.columns},
                               {"vector", tensor.vector},
                               {"parts", parts}});
  }
  std::string text = json.dump(1, ' ', false, Json::error_handler_t::replace);
  text.resize(text.size() - std::string_view("\n}").size());
  text += ",\n";
  const std::string checksum = checksum128(text);
  text.pop_back();  // the line begins with it
  return text.append(kChecksumLine).append(checksum).append("\"\n}\n");
}

Result<Manifest> parse_manifest(std::string_view text, std::string_view file) {
  auto manifest = parse_text(text);
  if (!manifest) return std::move(manifest).error().in(quote(file));
  return manifest;
}

Result<Manifest> read_manifest(const std::string& directory) {
  const std::string path = join_path(directory, kManifestName);
  AMXT_ASSIGN(const std::string text, read_text_file(path, kManifestLimit));
  AMXT_ASSIGN(Manifest manifest, parse_manifest(text, path));
  manifest.path = directory;
  return manifest;
}

Status check_same_model(const Manifest& manifest, const model::ModelConfig& config) {
  const Json ours = model_identity(config);
  if (config_hash(ours) == manifest.config_hash) return {};
  std::string what = "'model' differs";
  for (const auto& [key, value] : ours.items()) {
    const auto theirs = manifest.model.find(key);
    if (theirs != manifest.model.end() && *theirs == value) continue;
    what = fmt::format("'{}' is {} there and {} in the model", key,
                       theirs == manifest.model.end() ? "absent" : theirs->dump(), value.dump());
    break;
  }
  return Error(Code::kMismatch,
               fmt::format("{}: a checkpoint of another model: {}", quote(manifest.path), what));
}

Status check_same_tensors(const Manifest& manifest, const store::Layout& layout) {
  const auto differs = [&](const std::string& what) {
    return Error(Code::kMismatch,
                 fmt::format("{}: a checkpoint of another model: {}", quote(manifest.path), what));
  };
  const auto& specs = layout.specs();
  for (size_t i = 0; i < std::min(specs.size(), manifest.tensors.size()); ++i) {
    const ManifestTensor& tensor = manifest.tensors[i];
    if (tensor.name != specs[i].name)
      return differs(
          fmt::format("tensor {} in place of {}", quote(tensor.name), quote(specs[i].name)));
    if (tensor.rows != specs[i].rows || tensor.columns != specs[i].columns ||
        tensor.vector != specs[i].vector) {
      return differs(fmt::format("tensor {} is [{}, {}] there and [{}, {}] in the model",
                                 quote(tensor.name), tensor.rows, tensor.columns, specs[i].rows,
                                 specs[i].columns));
    }
  }
  if (specs.size() != manifest.tensors.size()) {
    return differs(
        fmt::format("{} tensors there and {} in the model", manifest.tensors.size(), specs.size()));
  }
  return {};
}

std::string manifest_info(const Manifest& manifest) {
  Json json;
  json["path"] = manifest.path;
  json["version"] = kFormatVersion;
  json["step"] = manifest.training.step;
  json["total_steps"] = manifest.training.total_steps;
  json["world_size"] = manifest.world_size;
  json["position"] = manifest.training.data.position;
  json["bytes"] = manifest.bytes();
  json["parameters"] = manifest.parameters;
  json["config_hash"] = manifest.config_hash;
  json["compute_dtype"] = manifest.training.compute_dtype;
  json["files"] = Json::array();
  for (const ManifestFile& file : manifest.files)
    json["files"].push_back({{"path", file.name}, {"bytes", file.bytes}});
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace amxt::checkpoint
