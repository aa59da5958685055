#include "model/survey.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <unordered_set>

#include "base/text.h"

namespace amxt::model {
namespace {

constexpr size_t kProblemLimit = 1000;
constexpr int64_t kBlockBytes = 1 << 20;

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

bool is_weight_dtype(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32;
}

class Surveyor {
 public:
  Surveyor(const std::string& directory, const ModelConfig* config,
           const std::vector<TensorSpec>& specs, const std::string& index_name)
      : directory_(directory), config_(config), specs_(specs), index_name_(index_name) {}

  Survey run() {
    survey_.locations.resize(specs_.size());
    survey_.complete = open_files();
    if (survey_.files.empty()) return std::move(survey_);
    collect_tensors();
    if (index_) check_index();
    if (config_) {
      check_specs();
      check_extra_tensors();
    }
    return std::move(survey_);
  }

 private:
  void problem(Error error) {
    if (survey_.problems.size() < kProblemLimit) survey_.problems.push_back(std::move(error));
  }
  void problem(Code code, std::string message) { problem(Error(code, std::move(message))); }

  std::string path_of(int file) const {
    return quote(survey_.files[static_cast<size_t>(file)].path());
  }
  std::string key_text(std::string_view tensor) const {
    return fmt::format("{}: weight_map key {}", quote(index_path_), quote(tensor));
  }

  // "'index': weight_map key 'name': 'file': tensor 'name' at offset n"
  std::string place_of(const TensorLocation& location) const {
    const io::TensorEntry& entry = *location.entry;
    const std::string file = fmt::format("{}: tensor {} at offset {}", path_of(location.file),
                                         quote(entry.name), entry.begin);
    return index_ ? fmt::format("{}: {}", key_text(entry.name), file) : file;
  }

  // False when something could not be opened; a shard that can't be read is a problem, the others go on.
  bool open_files() {
    index_path_ = join_path(directory_, index_name_.empty() ? io::kIndexFile : index_name_);
    const bool has_single =
        index_name_.empty() && path_exists(join_path(directory_, io::kSingleFile));
    const bool has_index = path_exists(index_path_);
    if (has_single) {
      if (has_index) {
        survey_.warnings.push_back(fmt::format("{}: not looked at, for there is {} beside it",
                                               quote(index_path_), io::kSingleFile));
      }
      return add_file(io::SafetensorsFile::open_beneath(directory_, io::kSingleFile), "");
    }
    if (!has_index) {
      const bool pickled = path_exists(join_path(directory_, "pytorch_model.bin")) ||
                           path_exists(join_path(directory_, "pytorch_model.bin.index.json"));
      problem(Code::kNotFound,
              fmt::format(
                  "{}: neither {} nor {} is there{}", quote(directory_), io::kSingleFile,
                  io::kIndexFile,
                  pickled ? "; pytorch_model.bin is not read, save the model as safetensors" : ""));
      return false;
    }
    auto index = io::read_index(index_path_);
    if (!index) {
      problem(std::move(index).error());
      return false;
    }
    index_ = std::move(index).value();
    survey_.warnings.insert(survey_.warnings.end(), index_->warnings.begin(),
                            index_->warnings.end());
    bool all = true;
    for (size_t i = 0; i < index_->files.size(); ++i) {
      file_of_shard_.push_back(static_cast<int>(survey_.files.size()));
      if (!add_file(io::SafetensorsFile::open_beneath(directory_, index_->files[i]),
                    key_text(index_->first_key(i)))) {
        file_of_shard_.back() = -1;
        all = false;
      }
    }
    return all;
  }

  bool add_file(Result<io::SafetensorsFile> file, const std::string& where) {
    if (!file) {
      Error error = std::move(file).error();
      problem(where.empty() ? std::move(error) : std::move(error).in(where));
      return false;
    }
    survey_.files.push_back(std::move(file).value());
    return true;
  }

  void collect_tensors() {
    for (size_t file = 0; file < survey_.files.size(); ++file) {
      for (const io::TensorEntry& entry : survey_.files[file].tensors()) {
        const auto [found, is_new] =
            stored_.try_emplace(entry.name, TensorLocation{static_cast<int>(file), &entry});
        if (is_new) continue;
        problem(Code::kFormat,
                fmt::format("{}: {}: tensor {} at offset {} is also in {}", key_text(entry.name),
                            path_of(static_cast<int>(file)), quote(entry.name), entry.begin,
                            path_of(found->second.file)));
      }
    }
  }

  void check_index() {
    for (const auto& [tensor, shard] : index_->weight_map) {
      const int file = file_of_shard_[shard];
      if (file < 0) continue;  // said already
      if (survey_.files[static_cast<size_t>(file)].find(tensor)) continue;
      const auto elsewhere = stored_.find(tensor);
      problem(
          Code::kFormat,
          fmt::format(
              "{}: {} does not hold it{}", key_text(tensor), path_of(file),
              elsewhere == stored_.end() ? "" : ", " + path_of(elsewhere->second.file) + " does"));
      misplaced_.insert(tensor);
    }
    for (const auto& [tensor, location] : stored_) {
      if (index_->weight_map.contains(tensor) || is_ignored(tensor)) continue;
      problem(Code::kFormat,
              fmt::format("{}: tensor {} of {} is not in weight_map", quote(index_path_),
                          quote(tensor), path_of(location.file)));
      misplaced_.insert(tensor);
    }
    check_total_size();
  }

  void check_total_size() {
    if (!index_->total_size) return;
    uint64_t bytes = 0;
    for (const auto& [tensor, location] : stored_)
      bytes += static_cast<uint64_t>(location.entry->bytes());
    if (bytes == *index_->total_size || survey_.files.size() != index_->files.size()) return;
    survey_.warnings.push_back(
        fmt::format("{}: metadata key 'total_size' is {}, the tensors have {} bytes",
                    quote(index_path_), *index_->total_size, bytes));
  }

  static bool is_ignored(std::string_view tensor) {
    return tensor.ends_with(".rotary_emb.inv_freq");
  }

  // A tensor of a shard that could not be read is no problem of its own.
  bool is_in_unread_shard(const std::string& tensor) const {
    if (!index_) return false;
    const auto found = index_->weight_map.find(tensor);
    return found != index_->weight_map.end() && file_of_shard_[found->second] < 0;
  }

  // What of config.json makes a tensor part of the model.
  std::string why_required(Role role) const {
    const auto key = [](const char* name, const char* value) {
      return fmt::format("config.json key '{}' is {}, which asks for it", name, value);
    };
    const std::string type = fmt::format("config.json key 'model_type' is {}, which asks for it",
                                         quote(config_->model_type));
    switch (role) {
      case Role::kHead:
        return key("tie_word_embeddings", "false or left out");
      case Role::kQueryBias:
      case Role::kKeyBias:
      case Role::kValueBias:
        // A family that reads the key has all four biases, Qwen2 always has these three.
        return config_->output_bias ? key("attention_bias", "true") : type;
      case Role::kOutputBias:
        return key("attention_bias", "true");
      case Role::kGateBias:
      case Role::kUpBias:
      case Role::kDownBias:
        return key("mlp_bias", "true");
      case Role::kQueryNorm:
      case Role::kKeyNorm:
        return type;
      default:
        return "config.json asks for " + counted(config_->layers, "layer");
    }
  }

  void check_specs() {
    for (size_t i = 0; i < specs_.size(); ++i) {
      const TensorSpec& spec = specs_[i];
      const auto found = stored_.find(spec.name);
      if (found == stored_.end()) {
        if (is_in_unread_shard(spec.name) || misplaced_.contains(spec.name)) continue;
        const std::string file = index_ ? quote(index_path_) : path_of(0);
        problem(Code::kFormat, fmt::format("{}: tensor {} is missing; {}", file, quote(spec.name),
                                           why_required(spec.role)));
        continue;
      }
      if (check_entry(spec, found->second)) survey_.locations[i] = found->second;
    }
  }

  bool check_entry(const TensorSpec& spec, const TensorLocation& location) {
    const io::TensorEntry& entry = *location.entry;
    const std::vector<int64_t> expected = spec.vector
                                              ? std::vector<int64_t>{spec.columns}
                                              : std::vector<int64_t>{spec.rows, spec.columns};
    if (entry.shape != expected) {
      problem(Code::kFormat,
              fmt::format("{} has shape {}, config.json makes it {}", place_of(location),
                          shape_text(entry.shape), shape_text(expected)));
      return false;
    }
    if (!is_weight_dtype(entry.dtype)) {
      problem(Code::kUnsupported, fmt::format("{} has dtype {}, supported are BF16, F16 and F32",
                                              place_of(location), dtype_name(entry.dtype)));
      return false;
    }
    return true;
  }

  void check_extra_tensors() {
    std::unordered_set<std::string_view> known;
    for (const TensorSpec& spec : specs_) known.insert(spec.name);
    for (const auto& [tensor, location] : stored_) {
      if (known.contains(tensor) || is_ignored(tensor)) continue;
      if (tensor == "lm_head.weight" && config_->tie_word_embeddings) {
        check_tied_head(location);
        continue;
      }
      problem(Code::kFormat, fmt::format("{} is not part of a {} model of {}", place_of(location),
                                         config_->model_type, counted(config_->layers, "layer")));
    }
  }

  // Some writers store the head beside the embedding that it is tied to; then both must be the same.
  void check_tied_head(const TensorLocation& head) {
    const auto found = stored_.find(specs_.front().name);
    if (found == stored_.end()) return;
    const TensorLocation& embedding = found->second;
    if (auto same = compare(head, embedding); !same) problem(std::move(same).error());
  }

  Status compare(const TensorLocation& head, const TensorLocation& embedding) const {
    const auto differs = [&](std::string_view how) {
      return Error(
          Code::kFormat,
          fmt::format("{}: tensor 'lm_head.weight' differs from {} of {} {}; config.json key "
                      "'tie_word_embeddings' makes them one",
                      path_of(head.file), quote(embedding.entry->name), path_of(embedding.file),
                      how));
    };
    if (head.entry->dtype != embedding.entry->dtype) return differs("in dtype");
    if (head.entry->shape != embedding.entry->shape) return differs("in shape");
    std::vector<std::byte> a(kBlockBytes), b(kBlockBytes);
    const int64_t bytes = head.entry->bytes();
    for (int64_t offset = 0; offset < bytes; offset += kBlockBytes) {
      const auto count = static_cast<size_t>(std::min(kBlockBytes, bytes - offset));
      AMXT_TRY(survey_.files[static_cast<size_t>(head.file)].read(*head.entry, offset,
                                                                  std::span(a).first(count)));
      AMXT_TRY(survey_.files[static_cast<size_t>(embedding.file)].read(*embedding.entry, offset,
                                                                       std::span(b).first(count)));
      const auto end = a.begin() + static_cast<std::ptrdiff_t>(count);
      const auto at = std::mismatch(a.begin(), end, b.begin()).first;
      if (at != end) return differs(fmt::format("at byte {}", offset + (at - a.begin())));
    }
    return {};
  }

  const std::string& directory_;
  const ModelConfig* config_;
  const std::vector<TensorSpec>& specs_;
  const std::string& index_name_;
  Survey survey_;
  std::string index_path_;
  std::optional<io::ShardIndex> index_;
  std::vector<int> file_of_shard_;
  std::map<std::string, TensorLocation, std::less<>> stored_;
  std::unordered_set<std::string> misplaced_;
};

}  // namespace

Survey survey_weights(const std::string& directory, const ModelConfig* config,
                      const std::vector<TensorSpec>& specs, const std::string& index_name) {
  return Surveyor(directory, config, specs, index_name).run();
}

}  // namespace amxt::model
