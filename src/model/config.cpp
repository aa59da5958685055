#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "base/file.h"
#include "base/text.h"
#include "model/config_keys.h"

namespace amxt::model {
namespace {

constexpr int64_t kConfigLimit = 16 << 20;

// Bounds that keep every product of sizes, times 16 bytes per parameter, below 2^63:
// layers x (4 query_size + 3 intermediate) x hidden < 2^12 x 2^25 x 2^20, vocabulary x hidden < 2^51.
constexpr int64_t kVocabLimit = (int64_t{1} << 31) - 1;
constexpr int64_t kHiddenLimit = int64_t{1} << 20;
constexpr int64_t kWidthLimit = int64_t{1} << 22;
constexpr int64_t kLayerLimit = int64_t{1} << 12;
constexpr int64_t kHeadLimit = int64_t{1} << 16;
constexpr int64_t kPositionLimit = int64_t{1} << 40;

// Where the four graphs differ, and what transformers takes for a key that the file leaves out.
struct Family {
  std::string_view type;
  std::string_view architecture;
  int64_t kv_heads;  // 0: as many as heads
  int64_t head_dim;  // 0: hidden_size / heads
  int64_t max_positions;
  std::optional<int64_t> eos;
  bool has_attention_bias;  // the key is read
  bool has_mlp_bias;
  bool qkv_bias;  // always
  bool qk_norm;
};

constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", 0, 0, 2048, 2, true, true, false, false},
    {"mistral", "MistralForCausalLM", 8, 0, 131072, 2, false, false, false, false},
    {"qwen2", "Qwen2ForCausalLM", 32, 0, 32768, std::nullopt, false, false, true, false},
    {"qwen3", "Qwen3ForCausalLM", 32, 128, 32768, std::nullopt, true, false, false, true},
};
constexpr int64_t kMistralWindow = 4096;

std::string value_text(const Json& value) {
  return quote(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

// null, false, 0, "", [], {}
bool is_inert(const Json& value) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

// One object of the file. Remembers which keys were asked for, so that the rest can be judged.
class Keys {
 public:
  Keys(const Json& object, std::string_view file, std::string prefix = "")
      : object_(object), file_(file), prefix_(std::move(prefix)) {}

  Error fail(std::string_view key, std::string_view message, Code code = Code::kFormat) const {
    return Error(code, fmt::format("{}: key {} {}", quote(file_), quote(prefix_ + std::string(key)),
                                   message));
  }
  std::string warning(std::string_view key, std::string_view message) const {
    return fmt::format("{}: key {} {}", quote(file_), quote(prefix_ + std::string(key)), message);
  }
  const Json& object() const { return object_; }
  std::string_view file() const { return file_; }
  bool was_read(const std::string& key) const { return read_.contains(key); }

  // Null when the key is absent or null.
  const Json* get(std::string_view key) {
    read_.emplace(key);
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool holds(std::string_view key) const { return object_.contains(key); }

  Result<int64_t> integer(std::string_view key, std::optional<int64_t> otherwise, int64_t least,
                          int64_t most) {
    const Json* value = get(key);
    if (!value) {
      if (otherwise) return *otherwise;
      return fail(key, "is missing");
    }
    const bool whole = value->is_number_integer();
    const bool fits = whole && !(value->is_number_unsigned() &&
                                 value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
    if (!whole) return fail(key, fmt::format("is {}, not a whole number", value_text(*value)));
    if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most) {
      return fail(key, fmt::format("is {}, not from {} to {}", value_text(*value), least, most));
    }
    return value->get<int64_t>();
  }

  Result<double> number(std::string_view key, std::optional<double> otherwise, double least,
                        double most) {
    const Json* value = get(key);
    if (!value) {
      if (otherwise) return *otherwise;
      return fail(key, "is missing");
    }
    if (!value->is_number())
      return fail(key, fmt::format("is {}, not a number", value_text(*value)));
    const double x = value->get<double>();
    if (!(x >= least && x <= most)) {
      return fail(key,
                  fmt::format("is {}, not from {:g} to {:g}", value_text(*value), least, most));
    }
    return x;
  }

  Result<bool> boolean(std::string_view key, bool otherwise) {
    const Json* value = get(key);
    if (!value) return otherwise;
    if (!value->is_boolean())
      return fail(key, fmt::format("is {}, not true or false", value_text(*value)));
    return value->get<bool>();
  }

  Result<std::string> string(std::string_view key, std::optional<std::string> otherwise) {
    const Json* value = get(key);
    if (!value) {
      if (otherwise) return *otherwise;
      return fail(key, "is missing");
    }
    if (!value->is_string())
      return fail(key, fmt::format("is {}, not a string", value_text(*value)));
    return value->get<std::string>();
  }

 private:
  const Json& object_;
  std::string_view file_;
  std::string prefix_;
  std::set<std::string, std::less<>> read_;
};

Result<const Family*> read_family(Keys& keys) {
  AMXT_ASSIGN(const std::string type, keys.string("model_type", std::nullopt));
  std::string supported;
  for (const Family& family : kFamilies) {
    if (family.type == type) return &family;
    supported += fmt::format("{}{}", supported.empty() ? "" : ", ", family.type);
  }
  return keys.fail(
      "model_type",
      fmt::format("is {}, which is not supported; supported are {}", quote(type), supported),
      Code::kUnsupported);
}

// A classifier or embedder has another head than lm_head.
Status check_architectures(Keys& keys, const Family& family) {
  const Json* value = keys.get("architectures");
  if (!value) return {};
  if (!value->is_array())
    return keys.fail("architectures", fmt::format("is {}, not a list", value_text(*value)));
  for (const Json& name : *value) {
    if (name.is_string() && name.get_ref<const std::string&>() == family.architecture) continue;
    return keys.fail(
        "architectures",
        fmt::format("has {}, only {} is supported", value_text(name), family.architecture),
        Code::kUnsupported);
  }
  return {};
}

Status check_refused(const Keys& keys) {
  for (const auto& [key, value] : keys.object().items()) {
    const RefusedKey* refused = find_refused_key(key);
    if (!refused || is_inert(value)) continue;
    if (refused->neutral != 0 && value.is_number() && value.get<double>() == refused->neutral)
      continue;
    return keys.fail(key, fmt::format("is {}: {}", value_text(value), refused->reason),
                     Code::kUnsupported);
  }
  return {};
}

Status check_activation(Keys& keys) {
  for (const char* key : {"hidden_act", "hidden_activation"}) {
    AMXT_ASSIGN(const std::string name, keys.string(key, "silu"));
    if (name == "silu" || name == "swish") continue;
    return keys.fail(key, fmt::format("is {}, only 'silu' is supported", quote(name)),
                     Code::kUnsupported);
  }
  return {};
}

// A bias that this family's graph can't have.
Status refuse_bias(Keys& keys, std::string_view key, const Family& family) {
  AMXT_ASSIGN(const bool bias, keys.boolean(key, false));
  if (!bias) return {};
  return keys.fail(key, fmt::format("is true, which {} does not have", family.type),
                   Code::kUnsupported);
}

Status read_biases(Keys& keys, const Family& family, ModelConfig& config) {
  config.qkv_bias = family.qkv_bias;
  config.qk_norm = family.qk_norm;
  if (family.has_attention_bias) {
    AMXT_ASSIGN(config.qkv_bias, keys.boolean("attention_bias", false));
    config.output_bias = config.qkv_bias;
  } else {
    AMXT_TRY(refuse_bias(keys, "attention_bias", family));
  }
  if (family.has_mlp_bias) {
    AMXT_ASSIGN(config.mlp_bias, keys.boolean("mlp_bias", false));
  } else {
    AMXT_TRY(refuse_bias(keys, "mlp_bias", family));
  }
  return {};
}

Status read_heads(Keys& keys, const Family& family, ModelConfig& config) {
  AMXT_ASSIGN(config.heads, keys.integer("num_attention_heads", std::nullopt, 1, kHeadLimit));
  // Null means one per head everywhere; only a key left out takes the family's default.
  const bool by_default = !keys.holds("num_key_value_heads") && family.kv_heads > 0;
  AMXT_ASSIGN(config.kv_heads,
              keys.integer("num_key_value_heads", by_default ? family.kv_heads : config.heads, 1,
                           kHeadLimit));
  if (config.heads % config.kv_heads != 0) {
    return keys.fail("num_key_value_heads",
                     fmt::format("is {}, which does not divide num_attention_heads {}",
                                 config.kv_heads, config.heads));
  }
  if (!keys.get("head_dim") && family.head_dim == 0 && config.hidden_size % config.heads != 0) {
    return keys.fail(
        "num_attention_heads",
        fmt::format("is {}, which does not divide hidden_size {}, and head_dim is missing",
                    config.heads, config.hidden_size));
  }
  const int64_t otherwise =
      family.head_dim > 0 ? family.head_dim : config.hidden_size / config.heads;
  AMXT_ASSIGN(config.head_dim, keys.integer("head_dim", otherwise, 1, kHeadLimit));
  if (config.head_dim % 2 != 0) {
    return keys.fail("head_dim",
                     fmt::format("is {}; the rotation needs an even number", config.head_dim));
  }
  if (config.query_size() > kWidthLimit) {
    return keys.fail("head_dim", fmt::format("is {}: times {} heads it exceeds {}", config.head_dim,
                                             config.heads, kWidthLimit));
  }
  return {};
}

// True when layer_types is given; all of them must be full attention then.
Result<bool> check_layer_types(Keys& keys, int64_t layers) {
  const Json* types = keys.get("layer_types");
  if (!types) return false;
  if (!types->is_array())
    return keys.fail("layer_types", fmt::format("is {}, not a list", value_text(*types)));
  for (size_t layer = 0; layer < types->size(); ++layer) {
    const Json& type = (*types)[layer];
    if (type.is_string() && type.get_ref<const std::string&>() == "full_attention") continue;
    return keys.fail("layer_types",
                     fmt::format("has {} for layer {}, only 'full_attention' is supported",
                                 value_text(type), layer),
                     Code::kUnsupported);
  }
  if (static_cast<int64_t>(types->size()) != layers) {
    return keys.fail("layer_types",
                     fmt::format("has {} entries for {} layers", types->size(), layers));
  }
  return true;
}

Status read_window(Keys& keys, const Family& family, ModelConfig& config) {
  AMXT_ASSIGN(const bool full, check_layer_types(keys, config.layers));
  const int64_t least =
      family.type == "mistral" ? 1 : 0;  // a window of nothing there, no window elsewhere
  AMXT_ASSIGN(const int64_t window, keys.integer("sliding_window", 0, least, kPositionLimit));
  AMXT_ASSIGN(const bool used, keys.boolean("use_sliding_window", false));
  AMXT_ASSIGN(const int64_t first, keys.integer("max_window_layers", 28, 0, kPositionLimit));
  if (family.type == "mistral") {
    config.sliding_window = keys.holds("sliding_window") ? window : kMistralWindow;
    return {};
  }
  if (family.type == "llama") {
    if (window == 0 && !used) return {};
    return keys.fail(window ? "sliding_window" : "use_sliding_window",
                     fmt::format("is {}: llama has no attention window",
                                 window ? fmt::format("{}", window) : "true"),
                     Code::kUnsupported);
  }
  // transformers takes 4096 for a sliding_window that is left out.
  const bool windowed = window > 0 || !keys.holds("sliding_window");
  if (!used || full || !windowed || first >= config.layers) return {};
  return keys.fail("use_sliding_window",
                   fmt::format("is true: layers from {} (max_window_layers) on have an attention "
                               "window, which is not implemented",
                               first),
                   Code::kUnsupported);
}

Status read_rope_type(Keys& inner, Rope& rope) {
  AMXT_ASSIGN(const std::string legacy, inner.string("type", "default"));
  AMXT_ASSIGN(const std::string type, inner.string("rope_type", legacy));
  if (inner.get("type") && legacy != type) {
    return inner.fail("type",
                      fmt::format("is {}, but rope_type is {}", quote(legacy), quote(type)));
  }
  if (type == "default") {
    rope.type = RopeType::kDefault;
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
  } else {
    return inner.fail(inner.holds("rope_type") ? "rope_type" : "type",
                      fmt::format("is {}, supported are default, linear and llama3", quote(type)),
                      Code::kUnsupported);
  }
  return {};
}

// `outside`: the key beside rope_parameters, which transformers lets win; 0 when it is not there.
Status read_llama3(Keys& inner, int64_t outside, ModelConfig& config) {
  Rope& rope = config.rope;
  AMXT_ASSIGN(rope.low_freq_factor, inner.number("low_freq_factor", std::nullopt, 1e-6, 1e6));
  AMXT_ASSIGN(rope.high_freq_factor, inner.number("high_freq_factor", std::nullopt, 1e-6, 1e6));
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    return inner.fail("high_freq_factor", fmt::format("is {:g}, not more than low_freq_factor {:g}",
                                                      rope.high_freq_factor, rope.low_freq_factor));
  }
  AMXT_ASSIGN(const int64_t inside,
              inner.integer("original_max_position_embeddings", config.max_position_embeddings, 1,
                            kPositionLimit));
  rope.original_max_position_embeddings = outside > 0 ? outside : inside;
  return {};
}

Status check_nested_rope(const Keys& inner) {
  for (const auto& [key, value] : inner.object().items()) {
    if (!value.is_object()) continue;
    return inner.fail(key, "is an object: rotations per layer type are not implemented",
                      Code::kUnsupported);
  }
  return {};
}

Status check_partial_rotation(Keys& keys) {
  AMXT_ASSIGN(const double part, keys.number("partial_rotary_factor", 1, -1e300, 1e300));
  if (part == 1) return {};
  return keys.fail("partial_rotary_factor",
                   fmt::format("is {:g}: rotation of a part of each head is not implemented", part),
                   Code::kUnsupported);
}

Status check_rope_keys(const Keys& inner, ModelConfig& config) {
  for (const auto& [key, value] : inner.object().items()) {
    if (inner.was_read(key)) continue;
    if (!is_inert(value)) {
      // These belong to types that were refused or, like the factor of "default", are not looked at.
      const bool unused = key == "factor" || key == "low_freq_factor" ||
                          key == "high_freq_factor" || key == "original_max_position_embeddings";
      if (!unused)
        return inner.fail(key, fmt::format("is {}, and no such key is known", value_text(value)),
                          Code::kUnsupported);
    }
    config.warnings.push_back(inner.warning(key, "has no effect with this rope type"));
  }
  return {};
}

// transformers 4 wrote rope_scaling and, beside it, rope_theta; transformers 5 writes rope_parameters with all of them.
// As there: rope_scaling first, then rope_parameters; a value inside the object before one outside.
Status read_rope(Keys& keys, ModelConfig& config) {
  static const Json kEmpty = Json::object();
  const Json* object = &kEmpty;
  std::string name = "rope_parameters";
  for (const char* candidate : {"rope_parameters", "rope_scaling"}) {
    const Json* value = keys.get(candidate);
    if (!value) continue;
    if (!value->is_object())
      return keys.fail(candidate, fmt::format("is {}, not an object", value_text(*value)));
    if (value->empty()) continue;
    object = value;
    name = candidate;
  }
  Keys inner(*object, keys.file(), name + ".");
  AMXT_TRY(check_nested_rope(inner));
  AMXT_TRY(read_rope_type(inner, config.rope));
  AMXT_ASSIGN(const double theta, keys.number("rope_theta", 10000, 1e-3, 1e30));
  AMXT_ASSIGN(config.rope.theta, inner.number("rope_theta", theta, 1e-3, 1e30));
  AMXT_TRY(check_partial_rotation(keys));
  AMXT_TRY(check_partial_rotation(inner));
  if (config.rope.type != RopeType::kDefault) {
    AMXT_ASSIGN(config.rope.factor, inner.number("factor", std::nullopt, 1e-6, 1e6));
  }
  AMXT_ASSIGN(const int64_t outside,
              keys.integer("original_max_position_embeddings", 0, 1, kPositionLimit));
  if (config.rope.type == RopeType::kLlama3) AMXT_TRY(read_llama3(inner, outside, config));
  return check_rope_keys(inner, config);
}

Status read_tokens(Keys& keys, const Family& family, ModelConfig& config) {
  const Json* value = keys.get("eos_token_id");
  if (!value) {
    if (!keys.holds("eos_token_id") && family.eos && *family.eos < config.vocab_size) {
      config.eos_token_ids.push_back(*family.eos);
    }
    return {};
  }
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : list) {
    const bool valid = id.is_number_integer() && id.get<double>() >= 0 && id.get<double>() < 0x1p31;
    if (!valid)
      return keys.fail("eos_token_id", fmt::format("has {}, not a token id", value_text(id)));
    if (id.get<int64_t>() >= config.vocab_size) {
      config.warnings.push_back(
          keys.warning("eos_token_id", fmt::format("has {}, beyond the vocabulary of {}: not used",
                                                   id.get<int64_t>(), config.vocab_size)));
      continue;
    }
    config.eos_token_ids.push_back(id.get<int64_t>());
  }
  return {};
}

Status read_sizes(Keys& keys, const Family& family, ModelConfig& config) {
  AMXT_ASSIGN(config.vocab_size, keys.integer("vocab_size", std::nullopt, 1, kVocabLimit));
  AMXT_ASSIGN(config.hidden_size, keys.integer("hidden_size", std::nullopt, 1, kHiddenLimit));
  AMXT_ASSIGN(config.intermediate_size,
              keys.integer("intermediate_size", std::nullopt, 1, kWidthLimit));
  AMXT_ASSIGN(config.layers, keys.integer("num_hidden_layers", std::nullopt, 1, kLayerLimit));
  AMXT_ASSIGN(config.max_position_embeddings,
              keys.integer("max_position_embeddings", family.max_positions, 1, kPositionLimit));
  AMXT_ASSIGN(config.rms_norm_eps, keys.number("rms_norm_eps", 1e-6, 0, 1));
  AMXT_ASSIGN(config.initializer_range, keys.number("initializer_range", 0.02, 0, 1));
  AMXT_ASSIGN(config.tie_word_embeddings, keys.boolean("tie_word_embeddings", false));
  return {};
}

Status check_unknown(const Keys& keys, ModelConfig& config) {
  for (const auto& [key, value] : keys.object().items()) {
    if (keys.was_read(key) || is_indifferent_key(key) || find_refused_key(key)) continue;
    if (!is_inert(value)) {
      return keys.fail(key, fmt::format("is {}, and no such key is known", value_text(value)),
                       Code::kUnsupported);
    }
    config.warnings.push_back(
        keys.warning(key, fmt::format("is not known; ignored, for it is {}", value_text(value))));
  }
  return {};
}

}  // namespace

Result<ModelConfig> parse_config(std::string_view text, std::string_view file) {
  auto parsed = parse_json(text);
  if (!parsed) return std::move(parsed).error().in(quote(file));
  if (!parsed->is_object())
    return Error(Code::kFormat, fmt::format("{}: not a JSON object", quote(file)));

  ModelConfig config;
  Keys keys(*parsed, file);
  AMXT_ASSIGN(const Family* family, read_family(keys));
  config.model_type = family->type;
  AMXT_TRY(check_architectures(keys, *family));
  AMXT_TRY(check_refused(keys));
  AMXT_TRY(check_activation(keys));
  AMXT_TRY(read_sizes(keys, *family, config));
  AMXT_TRY(read_heads(keys, *family, config));
  AMXT_TRY(read_biases(keys, *family, config));
  AMXT_TRY(read_window(keys, *family, config));
  AMXT_TRY(read_rope(keys, config));
  AMXT_TRY(read_tokens(keys, *family, config));
  AMXT_TRY(check_unknown(keys, config));
  config.text = text;
  return config;
}

Result<ModelConfig> read_config(const std::string& directory) {
  const std::string path = join_path(directory, "config.json");
  AMXT_ASSIGN(const std::string text, read_text_file(path, kConfigLimit));
  return parse_config(text, path);
}

}  // namespace amxt::model
