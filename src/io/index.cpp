#include "io/index.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"

namespace amxt::io {
namespace {

constexpr int64_t kIndexLimit = 64 << 20;
constexpr size_t kShardLimit = 10'000;
constexpr std::string_view kSuffix = ".safetensors";

Error index_error(std::string_view file, std::string_view message) {
  return Error(Code::kFormat, fmt::format("{}: {}", quote(file), message));
}

Status check_value(std::string_view file, const std::string& tensor, const Json& value) {
  if (tensor.empty()) return index_error(file, "weight_map has an empty key");
  if (!value.is_string()) {
    return index_error(file,
                       fmt::format("weight_map key {}: the value is not a string", quote(tensor)));
  }
  const auto& name = value.get_ref<const std::string&>();
  if (is_shard_name(name)) return {};
  return index_error(
      file, fmt::format("weight_map key {}: {} is not a plain name of a .safetensors file in the "
                        "same directory",
                        quote(tensor), quote(name)));
}

void read_total_size(const Json& root, std::string_view file, ShardIndex& index) {
  const auto metadata = root.find("metadata");
  if (metadata == root.end() || !metadata->is_object()) return;
  const auto total = metadata->find("total_size");
  if (total == metadata->end() || total->is_null()) return;
  const bool whole =
      total->is_number_unsigned() ||
      (total->is_number_float() && total->get<double>() >= 0 && total->get<double>() < 0x1p63);
  if (whole) {
    index.total_size = total->is_number_float() ? static_cast<uint64_t>(total->get<double>())
                                                : total->get<uint64_t>();
  } else {
    index.warnings.push_back(
        fmt::format("{}: metadata key 'total_size' is not a number of bytes", quote(file)));
  }
}

}  // namespace

const std::string& ShardIndex::first_key(size_t file) const {
  static const std::string none;
  for (const auto& [tensor, at] : weight_map) {
    if (at == file) return tensor;
  }
  return none;
}

bool is_shard_name(std::string_view name) {
  return is_plain_name(name) && name.size() > kSuffix.size() && name.ends_with(kSuffix) &&
         name.front() != '.';
}

Result<ShardIndex> parse_index(std::string_view text, std::string_view file) {
  auto parsed = parse_json(text);
  if (!parsed) return std::move(parsed).error().in(quote(file));
  const Json& root = *parsed;
  if (!root.is_object()) return index_error(file, "not a JSON object");
  const auto map = root.find("weight_map");
  if (map == root.end()) return index_error(file, "key 'weight_map' is missing");
  if (!map->is_object()) return index_error(file, "key 'weight_map' is not an object");
  if (map->empty()) return index_error(file, "key 'weight_map' is empty");

  ShardIndex index;
  for (const auto& [tensor, value] : map->items()) {
    AMXT_TRY(check_value(file, tensor, value));
    index.files.push_back(value.get<std::string>());
  }
  std::sort(index.files.begin(), index.files.end());
  index.files.erase(std::unique(index.files.begin(), index.files.end()), index.files.end());
  if (index.files.size() > kShardLimit) {
    return index_error(file, fmt::format("weight_map names {} files, the limit is {}",
                                         index.files.size(), kShardLimit));
  }
  for (const auto& [tensor, value] : map->items()) {
    const auto at = std::lower_bound(index.files.begin(), index.files.end(),
                                     value.get_ref<const std::string&>());
    index.weight_map.emplace(tensor, static_cast<size_t>(at - index.files.begin()));
  }
  read_total_size(root, file, index);
  return index;
}

Result<ShardIndex> read_index(const std::string& path) {
  AMXT_ASSIGN(const std::string text, read_text_file(path, kIndexLimit));
  return parse_index(text, path);
}

}  // namespace amxt::io
