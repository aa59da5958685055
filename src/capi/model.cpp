// Section 8 of the header: models.
#include <fmt/format.h>

#include "base/json.h"
#include "capi/handles.h"
#include "model/config.h"
#include "model/inspect.h"
#include "model/random_weights.h"
#include "model/tensors.h"

using namespace amxt;
using namespace amxt::capi;

namespace {

Status open(amxt_runtime* runtime, const char* directory, amxt_model** out) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(directory, "directory"));
  AMXT_TRY(require(out, "model"));
  AMXT_ASSIGN(model::ModelDirectory config, model::ModelDirectory::open_config(directory));
  auto model = std::make_unique<amxt_model>();
  if (Result<model::ModelDirectory> whole = model::ModelDirectory::open(directory)) {
    model->directory = std::make_shared<const model::ModelDirectory>(*std::move(whole));
  } else {
    model->problem = whole.error();
    model->directory = std::make_shared<const model::ModelDirectory>(std::move(config));
  }
  for (const std::string& warning : model->directory->warnings())
    runtime->state->log->warning(warning);
  *out = model.release();
  return {};
}

int64_t tensor_count(const amxt_model& model) {
  return model.problem ? 0 : static_cast<int64_t>(model.directory->specs().size());
}

Status info(const amxt_model* model, char** json) {
  AMXT_TRY(usable(model, "model"));
  AMXT_TRY(require(json, "json"));
  const model::ModelConfig& config = model->directory->config();
  AMXT_ASSIGN(const Json text, parse_json(config.text));
  Json object;
  object["directory"] = model->directory->path();
  object["model_type"] = config.model_type;
  object["parameters"] = model::parameter_count(config);
  object["tied"] = config.tie_word_embeddings;
  object["vocab_size"] = config.vocab_size;
  object["hidden_size"] = config.hidden_size;
  object["intermediate_size"] = config.intermediate_size;
  object["num_hidden_layers"] = config.layers;
  object["num_attention_heads"] = config.heads;
  object["num_key_value_heads"] = config.kv_heads;
  object["head_dim"] = config.head_dim;
  object["max_position_embeddings"] = config.max_position_embeddings;
  object["eos_token_id"] = config.eos_token_ids.empty() ? Json() : Json(config.eos_token_ids[0]);
  object["weights"] = !model->problem;
  object["tensors"] = tensor_count(*model);
  object["bytes"] = model->problem ? 0 : model->directory->total_bytes();
  object["config"] = text;
  AMXT_ASSIGN(*json, copy_text(object.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return {};
}

Status tensor_info(const amxt_model* model, int64_t index, amxt_tensor_info* info) {
  AMXT_TRY(usable(model, "model"));
  AMXT_TRY(require(info, "info"));
  AMXT_TRY(check_struct(*info, "amxt_tensor_info"));
  if (index < 0 || index >= tensor_count(*model)) {
    return Error(Code::kInvalidArgument,
                 fmt::format("tensor {} of {}", index, tensor_count(*model)));
  }
  const model::TensorLocation& location = model->directory->location(static_cast<size_t>(index));
  const io::TensorEntry& entry = *location.entry;
  amxt_tensor_info result = AMXT_TENSOR_INFO_INIT;
  result.dtype = static_cast<int32_t>(entry.dtype);
  result.dimensions = static_cast<int32_t>(entry.shape.size());
  std::copy_n(entry.shape.begin(), std::min<size_t>(entry.shape.size(), AMXT_MAX_DIMENSIONS),
              result.shape);
  result.bytes = entry.bytes();
  result.file_offset = entry.begin;
  result.name = entry.name.c_str();
  result.file = model->directory->files()[static_cast<size_t>(location.file)].path().c_str();
  write_struct(info, result);
  return {};
}

Status write_random(amxt_runtime* runtime, const char* config_json, const char* directory,
                    const amxt_write_random_options* given_options, int64_t timeout_ns) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(config_json, "config_json"));
  AMXT_TRY(require(directory, "directory"));
  AMXT_ASSIGN(const amxt_write_random_options options,
              read_struct<amxt_write_random_options>(given_options, AMXT_WRITE_RANDOM_OPTIONS_INIT,
                                                     "amxt_write_random_options"));
  AMXT_ASSIGN(const std::optional<int64_t> seed,
              given_count(options.seed, 0, "amxt_write_random_options.seed"));
  AMXT_ASSIGN(const std::optional<int64_t> shard_bytes,
              given_count(options.shard_bytes, 1, "amxt_write_random_options.shard_bytes"));
  model::RandomModelOptions random;
  random.config_text = config_json;
  random.config_name = text_or(options.config_name, "config");
  random.directory = directory;
  random.seed = static_cast<uint64_t>(seed.value_or(static_cast<int64_t>(random.seed)));
  random.shard_bytes = shard_bytes.value_or(random.shard_bytes);
  Call call(*runtime->state, timeout_ns, options.progress, options.progress_user_data);
  return call.outcome(model::write_random_model(random, [&](const model::WriteProgress& done) {
    const std::string name(done.file);
    amxt_progress progress = AMXT_PROGRESS_INIT;
    progress.stage = AMXT_STAGE_WRITE;
    progress.item = done.file_index;
    progress.item_count = done.files;
    progress.item_done_bytes = done.file_bytes_done;
    progress.item_total_bytes = done.file_bytes;
    progress.done_bytes = done.bytes_done;
    progress.total_bytes = done.bytes;
    progress.item_name = name.c_str();
    return call.goes_on(progress);
  }));
}

Status inspect(amxt_runtime* runtime, const char* path, const amxt_inspect_options* given_options,
               char** json, int64_t timeout_ns) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(path, "path"));
  AMXT_TRY(require(json, "json"));
  AMXT_ASSIGN(const amxt_inspect_options options,
              read_struct<amxt_inspect_options>(given_options, AMXT_INSPECT_OPTIONS_INIT,
                                                "amxt_inspect_options"));
  AMXT_ASSIGN(const std::optional<bool> scan,
              given_flag(options.scan, "amxt_inspect_options.scan"));
  Call call(*runtime->state, timeout_ns, options.progress, options.progress_user_data);
  std::string text;
  const auto work = [&]() -> Status {
    AMXT_ASSIGN(text, model::inspect(path, {.scan = scan.value_or(false)},
                                     [&](int64_t done, int64_t total) {
                                       amxt_progress progress = AMXT_PROGRESS_INIT;
                                       progress.stage = AMXT_STAGE_SCAN;
                                       progress.item_count = 1;
                                       progress.item_done_bytes = progress.done_bytes = done;
                                       progress.item_total_bytes = progress.total_bytes = total;
                                       progress.item_name = path;
                                       return call.goes_on(progress);
                                     }));
    return {};
  };
  AMXT_TRY(call.outcome(work()));
  AMXT_ASSIGN(*json, copy_text(text));
  return {};
}

}  // namespace

extern "C" {

amxt_status amxt_model_open(amxt_runtime* runtime, const char* directory, amxt_model** model,
                            amxt_error* err) {
  return guarded(err, [&] { return open(runtime, directory, model); });
}

amxt_status amxt_model_check(const amxt_model* model, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(model, "model"));
    if (model->problem) return Error(*model->problem);
    return {};
  });
}

amxt_status amxt_model_info(const amxt_model* model, char** json, amxt_error* err) {
  return guarded(err, [&] { return info(model, json); });
}

amxt_status amxt_model_tensor_count(const amxt_model* model, int64_t* count, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(model, "model"));
    AMXT_TRY(require(count, "count"));
    *count = tensor_count(*model);
    return {};
  });
}

amxt_status amxt_model_tensor_info(const amxt_model* model, int64_t index, amxt_tensor_info* info,
                                   amxt_error* err) {
  return guarded(err, [&] { return tensor_info(model, index, info); });
}

amxt_status amxt_model_preset(const char* name, char** json, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(require(name, "name"));
    AMXT_TRY(require(json, "json"));
    AMXT_ASSIGN(const std::string text, model::preset_config(name));
    AMXT_ASSIGN(*json, copy_text(text));
    return {};
  });
}

amxt_status amxt_model_write_random(amxt_runtime* runtime, const char* config_json,
                                    const char* directory, const amxt_write_random_options* options,
                                    int64_t timeout_ns, amxt_error* err) {
  return guarded(
      err, [&] { return write_random(runtime, config_json, directory, options, timeout_ns); });
}

amxt_status amxt_inspect(amxt_runtime* runtime, const char* path,
                         const amxt_inspect_options* options, char** json, int64_t timeout_ns,
                         amxt_error* err) {
  return guarded(err, [&] { return inspect(runtime, path, options, json, timeout_ns); });
}

void amxt_model_destroy(amxt_model* model) { delete model; }

}  // extern "C"
