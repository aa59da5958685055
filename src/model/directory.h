// ModelDirectory: a Hugging Face model on disk: its config and where each tensor's bytes lie. Opens headers only, no weights.
#pragma once

#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/config.h"
#include "model/tensors.h"

namespace amxt::model {

struct TensorLocation {
  int file = -1;                           // index into files()
  const io::TensorEntry* entry = nullptr;  // owned by that file
};

class ModelDirectory {
 public:
  // Config only: for plan, and so that a config error comes before any missing weights.
  static Result<ModelDirectory> open_config(const std::string& directory);
  // Config, index (or the one model.safetensors) and all headers; every tensor of tensor_specs() must be there with its shape in
  // BF16, F16 or F32, nothing unknown may be (rotary_emb.inv_freq is let pass;
  // a tied lm_head.weight is let pass when its bytes equal the embedding's).
  static Result<ModelDirectory> open(const std::string& directory);

  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<TensorSpec>& specs() const { return specs_; }
  const std::vector<io::SafetensorsFile>& files() const { return files_; }
  const TensorLocation& location(size_t spec) const {
    return locations_[spec];
  }  // by index into specs()
  int64_t total_bytes() const;  // of all shards, headers included
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  std::string path_;
  ModelConfig config_;
  std::vector<TensorSpec> specs_;
  std::vector<io::SafetensorsFile> files_;
  std::vector<TensorLocation> locations_;
  std::vector<std::string> warnings_;
};

}  // namespace amxt::model
