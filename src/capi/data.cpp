// Section 10 of the header: data sets and token files.
#include <fmt/format.h>

#include "base/json.h"
#include "base/text.h"
#include "capi/handles.h"
#include "io/tokenize.h"

using namespace amxt;
using namespace amxt::capi;

static_assert(static_cast<int32_t>(io::PackMode::kPack) == AMXT_MODE_PACK &&
              static_cast<int32_t>(io::PackMode::kPad) == AMXT_MODE_PAD);

namespace {

Result<std::vector<std::string>> read_paths(const char* const* paths, int64_t count,
                                            std::string_view name) {
  if (count < 0) return Error(Code::kInvalidArgument, fmt::format("{}: {} of them", name, count));
  if (count > 0) AMXT_TRY(require(paths, name));
  std::vector<std::string> result;
  for (int64_t i = 0; i < count; ++i) {
    AMXT_TRY(require(paths[i], fmt::format("{}[{}]", name, i)));
    result.emplace_back(paths[i]);
  }
  return result;
}

// 2 or 4; `unset` when it was not given.
Result<int> token_bytes(int32_t dtype, int unset, std::string_view name) {
  switch (dtype) {
    case AMXT_UNSET_I32:
      return unset;
    case AMXT_DTYPE_UINT16:
      return 2;
    case AMXT_DTYPE_UINT32:
      return 4;
    default:
      return Error(
          Code::kInvalidArgument,
          fmt::format("{} is {}, not AMXT_DTYPE_UINT16 or AMXT_DTYPE_UINT32", name, dtype));
  }
}

Result<std::optional<int64_t>> separator_of(const amxt_dataset_options& options) {
  AMXT_ASSIGN(const std::optional<int64_t> separator,
              given_count(options.separator, -1, "amxt_dataset_options.separator"));
  if (separator) return *separator == -1 ? std::nullopt : separator;
  if (options.model == nullptr) return std::optional<int64_t>();
  const std::vector<int64_t>& eos = options.model->directory->config().eos_token_ids;
  return eos.empty() ? std::nullopt : std::optional(eos[0]);
}

Result<io::DatasetOptions> convert(const char* path, const amxt_dataset_options& options) {
  if (options.model != nullptr) AMXT_TRY(usable(options.model, "amxt_dataset_options.model"));
  AMXT_ASSIGN(const std::optional<int32_t> mode,
              given_choice(options.mode, AMXT_MODE_PAD, "amxt_dataset_options.mode"));
  AMXT_ASSIGN(const std::optional<int64_t> length,
              given_count(options.sequence_length, 1, "amxt_dataset_options.sequence_length"));
  AMXT_ASSIGN(const std::optional<int64_t> vocabulary,
              given_count(options.vocab_size, 1, "amxt_dataset_options.vocab_size"));
  AMXT_ASSIGN(std::vector<std::string> more,
              read_paths(options.extra_paths, options.extra_path_count,
                         "amxt_dataset_options.extra_paths"));
  io::DatasetOptions result;
  result.paths.emplace_back(path);
  for (std::string& each : more) result.paths.push_back(std::move(each));
  result.mode = static_cast<io::PackMode>(mode.value_or(AMXT_MODE_PACK));
  result.sequence_length = length.value_or(0);
  result.vocab_size = vocabulary.value_or(
      options.model != nullptr ? options.model->directory->config().vocab_size : 0);
  AMXT_ASSIGN(result.separator, separator_of(options));
  AMXT_ASSIGN(result.bin_token_bytes,
              token_bytes(options.bin_dtype, 0, "amxt_dataset_options.bin_dtype"));
  return result;
}

Status open(amxt_runtime* runtime, const char* path, const amxt_dataset_options* given_options,
            amxt_dataset** out) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(path, "path"));
  AMXT_TRY(require(out, "dataset"));
  AMXT_ASSIGN(const amxt_dataset_options options,
              read_struct<amxt_dataset_options>(given_options, AMXT_DATASET_OPTIONS_INIT,
                                                "amxt_dataset_options"));
  AMXT_ASSIGN(const io::DatasetOptions converted, convert(path, options));
  auto dataset = std::make_unique<amxt_dataset>();
  AMXT_ASSIGN(dataset->data, io::Dataset::open(converted));
  *out = dataset.release();
  return {};
}

Status count(const amxt_dataset* dataset, int64_t sequence_length, int64_t* samples) {
  AMXT_TRY(usable(dataset, "dataset"));
  AMXT_TRY(require(samples, "samples"));
  const io::Dataset& data = *dataset->data;
  const int64_t own = data.options().sequence_length;
  const int64_t length = given(sequence_length).value_or(own);
  if (length < 1) {
    return Error(Code::kInvalidArgument,
                 sequence_length == AMXT_UNSET_I64
                     ? std::string("sequence_length: the data set has none of its own")
                     : fmt::format("sequence_length is {}", sequence_length));
  }
  if (length == own) {
    *samples = data.samples();
    return {};
  }
  AMXT_ASSIGN(const std::unique_ptr<io::Dataset> cut, data.at(length, data.options().mode));
  *samples = cut->samples();
  return {};
}

Status info(const amxt_dataset* dataset, char** json) {
  AMXT_TRY(usable(dataset, "dataset"));
  AMXT_TRY(require(json, "json"));
  const io::Dataset& data = *dataset->data;
  const io::DatasetOptions& options = data.options();
  Json object;
  object["paths"] = options.paths;
  object["mode"] = options.mode == io::PackMode::kPack ? "pack" : "pad";
  object["documents"] = data.documents();
  object["tokens"] = data.tokens();
  object["largest_token"] = data.largest_token();
  object["separator"] = options.separator ? Json(*options.separator) : Json();
  object["sequence_length"] = options.sequence_length > 0 ? Json(options.sequence_length) : Json();
  object["vocab_size"] = options.vocab_size > 0 ? Json(options.vocab_size) : Json();
  object["loss_weight"] = data.has_loss_weight();
  object["fingerprint"] = fmt::format("{:016x}", data.fingerprint());
  AMXT_ASSIGN(*json, copy_text(object.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return {};
}

Status open_writer(amxt_runtime* runtime, const char* path,
                   const amxt_token_writer_options* given_options, amxt_token_writer** out) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(path, "path"));
  AMXT_TRY(require(out, "writer"));
  AMXT_ASSIGN(const amxt_token_writer_options options,
              read_struct<amxt_token_writer_options>(given_options, AMXT_TOKEN_WRITER_OPTIONS_INIT,
                                                     "amxt_token_writer_options"));
  io::TokenWriterOptions writer_options;
  AMXT_ASSIGN(writer_options.token_bytes,
              token_bytes(options.dtype, 4, "amxt_token_writer_options.dtype"));
  AMXT_ASSIGN(const std::optional<bool> overwrite,
              given_flag(options.overwrite, "amxt_token_writer_options.overwrite"));
  AMXT_ASSIGN(const std::optional<int64_t> vocabulary,
              given_count(options.vocab_size, 1, "amxt_token_writer_options.vocab_size"));
  writer_options.overwrite = overwrite.value_or(false);
  writer_options.vocab_size = vocabulary.value_or(0);
  if (options.loss_weight_dtype == AMXT_DTYPE_UINT8) {
    writer_options.weights = io::TokenWeights::kU8;
  } else if (options.loss_weight_dtype == AMXT_DTYPE_FLOAT32) {
    writer_options.weights = io::TokenWeights::kF32;
  } else if (options.loss_weight_dtype != AMXT_UNSET_I32) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("amxt_token_writer_options.loss_weight_dtype is {}, not AMXT_DTYPE_UINT8 "
                    "or AMXT_DTYPE_FLOAT32",
                    options.loss_weight_dtype));
  }
  auto writer = std::make_unique<amxt_token_writer>();
  AMXT_ASSIGN(writer->writer, io::TokenFileWriter::create(path, writer_options));
  writer->with_weights = writer_options.weights != io::TokenWeights::kNone;
  *out = writer.release();
  return {};
}

Status add(amxt_token_writer* writer, const int32_t* tokens, const float* loss_weights,
           int64_t size) {
  AMXT_TRY(usable(writer, "writer"));
  if (size < 0) return Error(Code::kInvalidArgument, fmt::format("count is {}", size));
  if (size > 0) AMXT_TRY(require(tokens, "tokens"));
  if (loss_weights != nullptr && !writer->with_weights) {
    return Error(Code::kInvalidArgument, "loss_weights: the file was opened without any");
  }
  const auto length = static_cast<size_t>(size);
  const std::span<const float> weights =
      loss_weights != nullptr ? std::span(loss_weights, length) : std::span<const float>();
  AMXT_TRY(writer->writer->append(std::span(tokens, length), weights));
  return writer->writer->end_document();
}

Status tokenize(amxt_runtime* runtime, const char* path, const char* const* texts,
                int64_t text_count, const amxt_tokenize_options* given_options, char** json,
                int64_t timeout_ns) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(path, "path"));
  if (text_count < 1) {
    return Error(Code::kInvalidArgument,
                 fmt::format("text_count is {}, not 1 or more", text_count));
  }
  AMXT_ASSIGN(const amxt_tokenize_options options,
              read_struct<amxt_tokenize_options>(given_options, AMXT_TOKENIZE_OPTIONS_INIT,
                                                 "amxt_tokenize_options"));
  AMXT_ASSIGN(const std::optional<bool> overwrite,
              given_flag(options.overwrite, "amxt_tokenize_options.overwrite"));
  Call call(*runtime->state, timeout_ns, options.progress, options.progress_user_data);
  io::TokenizeOptions work;
  work.out = path;
  AMXT_ASSIGN(work.paths, read_paths(texts, text_count, "texts"));
  work.overwrite = overwrite.value_or(false);
  work.progress = [&](int64_t done, int64_t all) {
    amxt_progress progress = AMXT_PROGRESS_INIT;
    progress.stage = AMXT_STAGE_TOKENIZE;
    progress.item_count = 1;
    progress.item_done_bytes = progress.done_bytes = done;
    progress.item_total_bytes = progress.total_bytes = all;
    progress.item_name = path;
    return call.goes_on(progress);
  };
  io::TokenizeSummary summary;
  AMXT_TRY(call.outcome([&]() -> Status {
    AMXT_ASSIGN(summary, io::tokenize(work));
    return {};
  }()));
  if (json == nullptr) return {};
  Json object;
  object["path"] = path;
  object["documents"] = summary.documents;
  object["tokens"] = summary.tokens;
  object["masked_tokens"] = summary.masked;
  object["vocab_size"] = io::kByteVocabulary;
  AMXT_ASSIGN(*json, copy_text(object.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return {};
}

}  // namespace

extern "C" {

amxt_status amxt_dataset_open(amxt_runtime* runtime, const char* path,
                              const amxt_dataset_options* options, amxt_dataset** dataset,
                              amxt_error* err) {
  return guarded(err, [&] { return open(runtime, path, options, dataset); });
}

amxt_status amxt_dataset_count(const amxt_dataset* dataset, int64_t sequence_length,
                               int64_t* samples, amxt_error* err) {
  return guarded(err, [&] { return count(dataset, sequence_length, samples); });
}

amxt_status amxt_dataset_info(const amxt_dataset* dataset, char** json, amxt_error* err) {
  return guarded(err, [&] { return info(dataset, json); });
}

void amxt_dataset_destroy(amxt_dataset* dataset) { delete dataset; }

amxt_status amxt_token_writer_open(amxt_runtime* runtime, const char* path,
                                   const amxt_token_writer_options* options,
                                   amxt_token_writer** writer, amxt_error* err) {
  return guarded(err, [&] { return open_writer(runtime, path, options, writer); });
}

amxt_status amxt_token_writer_add(amxt_token_writer* writer, const int32_t* tokens,
                                  const float* loss_weights, int64_t count, amxt_error* err) {
  return guarded(err, [&] { return add(writer, tokens, loss_weights, count); });
}

amxt_status amxt_token_writer_finish(amxt_token_writer* writer, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(writer, "writer"));
    return writer->writer->finish();
  });
}

void amxt_token_writer_destroy(amxt_token_writer* writer) { delete writer; }

amxt_status amxt_tokenize(amxt_runtime* runtime, const char* path, const char* const* texts,
                          int64_t text_count, const amxt_tokenize_options* options, char** json,
                          int64_t timeout_ns, amxt_error* err) {
  return guarded(
      err, [&] { return tokenize(runtime, path, texts, text_count, options, json, timeout_ns); });
}

}  // extern "C"
