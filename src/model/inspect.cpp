#include "model/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "base/json.h"
#include "base/text.h"
#include "model/survey.h"

namespace amxt::model {
namespace {

constexpr int64_t kBlockBytes = 4 << 20;

// What all floating types share: an exponent of ones is Inf with a zero fraction, NaN with any other.
template <typename Bits>
struct FloatScan {
  int64_t nan = 0, inf = 0;
  int64_t first = -1;  // element
  Bits max_bits = 0;   // of the largest finite magnitude: magnitudes are ordered as their bits are

  void add(const std::byte* data, int64_t count, int64_t begin, Bits infinity) {
    constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
    int64_t block_nan = 0, block_inf = 0;
    Bits largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      Bits bits;
      std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof bits), sizeof bits);
      bits &= kMagnitude;
      block_nan += bits > infinity;
      block_inf += bits == infinity;
      const Bits finite = bits < infinity ? bits : Bits{0};
      largest = finite > largest ? finite : largest;
    }
    max_bits = std::max(max_bits, largest);
    if (first < 0 && block_nan + block_inf > 0) first = begin + find_first(data, count, infinity);
    nan += block_nan;
    inf += block_inf;
  }

 private:
  static int64_t find_first(const std::byte* data, int64_t count, Bits infinity) {
    for (int64_t i = 0; i < count; ++i) {
      Bits bits;
      std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof bits), sizeof bits);
      if ((bits & (static_cast<Bits>(~Bits{0}) >> 1)) >= infinity) return i;
    }
    return 0;
  }
};

double half_to_double(uint16_t bits) {
  const int exponent = bits >> 10;
  const int fraction = bits & 0x3FF;
  return exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
}

struct ScanResult {
  int64_t nan = 0, inf = 0, first = -1;
  std::optional<double> max_abs;
};

// One tensor, fed block by block.
class TensorScan {
 public:
  explicit TensorScan(DType dtype) : dtype_(dtype) {}

  void add(const std::byte* data, int64_t count, int64_t begin) {
    switch (dtype_) {
      case DType::kBF16:
        return small_.add(data, count, begin, 0x7F80);
      case DType::kF16:
        return small_.add(data, count, begin, 0x7C00);
      case DType::kF32:
        return single_.add(data, count, begin, 0x7F800000);
      case DType::kF64:
        return double_.add(data, count, begin, 0x7FF0000000000000);
      default:
        return;
    }
  }

  ScanResult result() const {
    switch (dtype_) {
      case DType::kBF16:
        return {small_.nan, small_.inf, small_.first,
                std::bit_cast<float>(static_cast<uint32_t>(small_.max_bits) << 16)};
      case DType::kF16:
        return {small_.nan, small_.inf, small_.first, half_to_double(small_.max_bits)};
      case DType::kF32:
        return {single_.nan, single_.inf, single_.first, std::bit_cast<float>(single_.max_bits)};
      case DType::kF64:
        return {double_.nan, double_.inf, double_.first, std::bit_cast<double>(double_.max_bits)};
      default:
        return {};
    }
  }

 private:
  DType dtype_;
  FloatScan<uint16_t> small_;
  FloatScan<uint32_t> single_;
  FloatScan<uint64_t> double_;
};

class Inspection {
 public:
  Inspection(const std::string& path, const InspectOptions& options, ScanProgress progress)
      : path_(path), options_(options), progress_(progress) {}

  Result<std::string> run() {
    AMXT_TRY(open());
    json_ = {{"path", path_}, {"kind", kind_}, {"config", config_json()}};
    json_["complete"] = complete_;
    AMXT_TRY(describe());
    json_["problems"] = problems_;
    json_["warnings"] = warnings_;
    return json_.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  }

 private:
  Status open() {
    if (is_directory(path_)) return open_directory();
    if (!path_exists(path_))
      return Error(Code::kNotFound, fmt::format("{}: no such file or directory", quote(path_)));
    if (path_.ends_with(".json")) {
      kind_ = "index";
      return open_model(parent_path(path_), base_name(path_));
    }
    kind_ = "safetensors";
    auto file = io::SafetensorsFile::open(path_);
    if (file) {
      files_.push_back(std::move(file).value());
    } else {
      problems_.push_back(file.error().message());
      complete_ = false;
    }
    return {};
  }

  Status open_directory() {
    kind_ = "directory";
    const auto has = [&](const char* name) { return path_exists(join_path(path_, name)); };
    const bool weights = has(io::kSingleFile) || has(io::kIndexFile);
    if (!weights && !has("config.json")) {
      return Error(Code::kNotFound, fmt::format("{}: neither config.json nor {} nor {} is there",
                                                quote(path_), io::kSingleFile, io::kIndexFile));
    }
    if (weights) return open_model(path_, "");
    read_model_config(path_);
    warnings_.push_back(fmt::format("{}: only config.json, no weights", quote(path_)));
    return {};
  }

  Status open_model(const std::string& directory, const std::string& index_name) {
    read_model_config(directory);
    const std::vector<TensorSpec> specs =
        config_ ? tensor_specs(*config_) : std::vector<TensorSpec>{};
    Survey survey = survey_weights(directory, config_ ? &*config_ : nullptr, specs, index_name);
    files_ = std::move(survey.files);
    complete_ = survey.complete;
    for (const Error& problem : survey.problems) problems_.push_back(problem.message());
    warnings_.insert(warnings_.end(), survey.warnings.begin(), survey.warnings.end());
    return {};
  }

  void read_model_config(const std::string& directory) {
    if (!path_exists(join_path(directory, "config.json"))) {
      warnings_.push_back(fmt::format(
          "{}: no config.json, so that tensors and shapes are not compared", quote(directory)));
      return;
    }
    auto config = read_config(directory);
    if (!config) {
      problems_.push_back(config.error().message());
      return;
    }
    warnings_.insert(warnings_.end(), config->warnings.begin(), config->warnings.end());
    config_ = std::move(config).value();
  }

  Json config_json() const {
    if (!config_) return nullptr;
    const ModelConfig& c = *config_;
    return {{"model_type", c.model_type},
            {"vocab_size", c.vocab_size},
            {"hidden_size", c.hidden_size},
            {"intermediate_size", c.intermediate_size},
            {"layers", c.layers},
            {"heads", c.heads},
            {"kv_heads", c.kv_heads},
            {"head_dim", c.head_dim},
            {"max_position_embeddings", c.max_position_embeddings},
            {"tie_word_embeddings", c.tie_word_embeddings},
            {"parameters", parameter_count(c)}};
  }

  Status describe() {
    int64_t parameters = 0, bytes = 0, file_bytes = 0;
    std::map<std::string, int64_t> dtypes;
    Json files = Json::array();
    for (const io::SafetensorsFile& file : files_) {
      file_bytes += file.file_bytes();
      files.push_back({{"name", base_name(file.path())},
                       {"bytes", file.file_bytes()},
                       {"tensors", file.tensors().size()}});
      for (const io::TensorEntry& tensor : file.tensors()) {
        parameters += tensor.elements();
        bytes += tensor.bytes();
        ++dtypes[dtype_name(tensor.dtype)];
      }
    }
    json_["parameters"] = parameters;
    json_["bytes"] = bytes;
    json_["file_bytes"] = file_bytes;
    json_["dtypes"] = dtypes;
    json_["files"] = std::move(files);
    json_["tensors"] = Json::array();
    scan_bytes_ = bytes;
    for (const io::SafetensorsFile& file : files_) AMXT_TRY(describe_tensors(file));
    return {};
  }

  Status describe_tensors(const io::SafetensorsFile& file) {
    const std::string name = base_name(file.path());
    for (const io::TensorEntry& tensor : file.tensors()) {
      Json entry{{"name", tensor.name},   {"dtype", dtype_name(tensor.dtype)},
                 {"shape", tensor.shape}, {"bytes", tensor.bytes()},
                 {"file", name},          {"offset", tensor.begin}};
      if (options_.scan) AMXT_TRY(scan(file, tensor, entry));
      json_["tensors"].push_back(std::move(entry));
    }
    return {};
  }

  // A tensor that can't be read to its end is a problem like any other.
  Status scan(const io::SafetensorsFile& file, const io::TensorEntry& tensor, Json& entry) {
    const int64_t width = dtype_bytes(tensor.dtype);
    TensorScan scan(tensor.dtype);
    block_.resize(static_cast<size_t>(kBlockBytes));
    for (int64_t offset = 0; offset < tensor.bytes(); offset += kBlockBytes) {
      const int64_t count = std::min(kBlockBytes, tensor.bytes() - offset);
      if (auto read =
              file.read(tensor, offset, std::span(block_).first(static_cast<size_t>(count)));
          !read) {
        problems_.push_back(read.error().message());
        return {};
      }
      scan.add(block_.data(), count / width, offset / width);
      scanned_ += count;
      if (!progress_(scanned_, scan_bytes_))
        return Error(Code::kCancelled, fmt::format("{}: cancelled", quote(path_)));
    }
    const ScanResult result = scan.result();
    entry["nan"] = result.nan;
    entry["inf"] = result.inf;
    if (result.max_abs) entry["max_abs"] = *result.max_abs;
    if (result.nan + result.inf > 0) {
      problems_.push_back(
          fmt::format("{}: tensor {}: {} NaN and {} Inf, the first at element {} (offset {})",
                      quote(file.path()), quote(tensor.name), result.nan, result.inf, result.first,
                      tensor.begin + result.first * width));
    }
    return {};
  }

  const std::string& path_;
  const InspectOptions options_;
  ScanProgress progress_;
  const char* kind_ = "";
  bool complete_ = true;
  std::optional<ModelConfig> config_;
  std::vector<io::SafetensorsFile> files_;
  std::vector<std::string> problems_, warnings_;
  std::vector<std::byte> block_;
  int64_t scanned_ = 0, scan_bytes_ = 0;
  Json json_;
};

}  // namespace

Result<std::string> inspect(const std::string& path, const InspectOptions& options,
                            ScanProgress progress) {
  return Inspection(path, options, progress).run();
}

Result<std::string> inspect(const std::string& path, const InspectOptions& options) {
  const auto go_on = [](int64_t, int64_t) { return true; };
  return inspect(path, options, go_on);
}

}  // namespace amxt::model
