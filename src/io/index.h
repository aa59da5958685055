// The index of a sharded model (model.safetensors.index.json): which shard holds which tensor.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace amxt::io {

inline constexpr const char* kIndexFile = "model.safetensors.index.json";
inline constexpr const char* kSingleFile = "model.safetensors";

struct ShardIndex {
  // Base names of letters, digits, '.', '_' and '-' that end in ".safetensors"; sorted, each once. Never a path.
  std::vector<std::string> files;
  std::map<std::string, size_t, std::less<>> weight_map;  // tensor -> index into files
  std::optional<uint64_t> total_size;                     // of metadata, when it is a whole number
  std::vector<std::string> warnings;

  // The first tensor (by name) that the index places in `file`: what an error about that shard names.
  const std::string& first_key(size_t file) const;
};

// Name of a shard that an index may give.
bool is_shard_name(std::string_view name);

// `file` is for messages. Everything but "weight_map" and "metadata" is ignored.
Result<ShardIndex> parse_index(std::string_view text, std::string_view file);
Result<ShardIndex> read_index(const std::string& path);

}  // namespace amxt::io
