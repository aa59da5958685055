// The idea: a normal deviate in bfloat16 has 8 significant bits, so 65,536 quantiles of the normal distribution, rounded to
// bfloat16 once, are all the deviates there need to be; 16 bits of a hash of (seed, tensor, place) pick one. That is a table
// look-up per element, independent of order, shards and threads, and faster than a disk.
#include "model/random_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/bf16.h"
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "io/index.h"
#include "model/config.h"
#include "model/shards.h"

namespace amxt::model {
namespace {

constexpr size_t kQuantiles = 65536;
constexpr int64_t kPerHash = 4;  // elements of one 64-bit hash
constexpr int64_t kBlockElements = 1 << 20;

// splitmix64's finalizer: every input bit changes every output bit.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// FNV-1a of the tensor's name, mixed with the seed.
uint64_t tensor_key(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return mix(mix(seed + 0x9E3779B97F4A7C15u) ^ hash);
}

// Inverse of the normal distribution's upper tail by Newton's method on erfc; p in (0, 0.5].
double upper_quantile(double p, double start) {
  double x = start;
  for (int i = 0; i < 60; ++i) {
    const double tail = 0.5 * std::erfc(x * M_SQRT1_2);
    const double density = std::exp(-0.5 * x * x) * (0.5 * M_SQRT1_2 * M_2_SQRTPI);
    const double step = (tail - p) / density;
    x += step;
    if (std::abs(step) < 1e-12) break;
  }
  return x;
}

// Quantiles of normal(0, deviation) at (i + 1/2) / 65536, symmetric.
std::vector<uint16_t> quantile_table(double deviation) {
  std::vector<uint16_t> table(kQuantiles);
  double x = 0;
  for (size_t i = kQuantiles / 2; i < kQuantiles; ++i) {
    x = upper_quantile(1 - (static_cast<double>(i) + 0.5) / kQuantiles, x);
    const auto value = static_cast<float>(x * deviation);
    table[i] = to_bf16(value).bits;
    table[kQuantiles - 1 - i] = to_bf16(-value).bits;
  }
  return table;
}

void fill_normal(const std::vector<uint16_t>& table, uint64_t key, int64_t begin, int64_t count,
                 uint16_t* out) {
  const auto hash_of = [&](int64_t group) {
    return mix(key + static_cast<uint64_t>(group) * 0x9E3779B97F4A7C15u);
  };
  const int64_t end = begin + count;
  int64_t place = begin;
  const auto one = [&] {
    const auto shift = static_cast<unsigned>(place % kPerHash) * 16;
    *out++ = table[(hash_of(place / kPerHash) >> shift) & 0xFFFF];
    ++place;
  };
  while (place < end && place % kPerHash != 0) one();
  for (; place + kPerHash <= end; place += kPerHash, out += kPerHash) {
    const uint64_t hash = hash_of(place / kPerHash);
    out[0] = table[hash & 0xFFFF];
    out[1] = table[(hash >> 16) & 0xFFFF];
    out[2] = table[(hash >> 32) & 0xFFFF];
    out[3] = table[hash >> 48];
  }
  while (place < end) one();
}

enum class Filling { kNormal, kOne, kZero };

Filling filling_of(Role role) {
  switch (role) {
    case Role::kInputNorm:
    case Role::kPostNorm:
    case Role::kFinalNorm:
    case Role::kQueryNorm:
    case Role::kKeyNorm:
      return Filling::kOne;
    case Role::kQueryBias:
    case Role::kKeyBias:
    case Role::kValueBias:
    case Role::kOutputBias:
    case Role::kGateBias:
    case Role::kUpBias:
    case Role::kDownBias:
      return Filling::kZero;
    default:
      return Filling::kNormal;
  }
}

void fill(const std::vector<uint16_t>& table, const TensorSpec& spec, uint64_t seed, int64_t begin,
          int64_t count, uint16_t* out) {
  switch (filling_of(spec.role)) {
    case Filling::kOne:
      std::fill_n(out, count, to_bf16(1).bits);
      break;
    case Filling::kZero:
      std::fill_n(out, count, uint16_t{0});
      break;
    case Filling::kNormal:
      fill_normal(table, tensor_key(seed, spec.name), begin, count, out);
      break;
  }
}

// config.json says what the files hold, in whichever spelling it has.
std::string stored_config(const Json& config) {
  Json stored = config;
  if (stored.contains("dtype")) stored["dtype"] = "bfloat16";
  if (stored.contains("torch_dtype") || !stored.contains("dtype"))
    stored["torch_dtype"] = "bfloat16";
  return stored.dump(2) + "\n";
}

std::string generation_config(const Json& config) {
  Json generation{{"_from_model_config", true}};
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    const auto value = config.find(key);
    if (value != config.end() && !value->is_null()) generation[key] = *value;
  }
  return generation.dump(2) + "\n";
}

class RandomModel {
 public:
  RandomModel(const RandomModelOptions& options, ModelConfig config, Json json,
              WriteProgressCallback progress)
      : options_(options),
        config_(std::move(config)),
        json_(std::move(json)),
        report_(progress),
        specs_(tensor_specs(config_)),
        plan_(plan_shards(specs_, DType::kBF16, options.shard_bytes)),
        table_(quantile_table(config_.initializer_range)) {}

  // `partial` exists and is empty.
  Status write(const std::string& partial) {
    AMXT_TRY(check_space(partial));
    progress_.bytes = plan_.total_bytes;
    progress_.files = static_cast<int64_t>(plan_.shards.size());
    for (const Shard& shard : plan_.shards) {
      AMXT_TRY(write_shard(partial, shard));
      ++progress_.file_index;
    }
    if (!plan_.index_text.empty()) {
      AMXT_TRY(write_text_file_atomically(join_path(partial, io::kIndexFile), plan_.index_text));
    }
    AMXT_TRY(write_text_file_atomically(join_path(partial, "generation_config.json"),
                                        generation_config(json_)));
    return write_text_file_atomically(join_path(partial, "config.json"), stored_config(json_));
  }

 private:
  Status check_space(const std::string& partial) const {
    AMXT_ASSIGN(const int64_t available, free_bytes(partial));
    if (available >= plan_.total_bytes) return {};
    return Error(Code::kNoSpace,
                 fmt::format("{}: the weights need {}, {} are free", quote(options_.directory),
                             bytes_text(static_cast<uint64_t>(plan_.total_bytes)),
                             bytes_text(static_cast<uint64_t>(available))));
  }

  Status write_shard(const std::string& partial, const Shard& shard) {
    progress_.file = shard.file;
    progress_.file_bytes = shard.bytes;
    progress_.file_bytes_done = 0;
    AMXT_ASSIGN(auto writer, io::SafetensorsWriter::create(
                                 join_path(partial, shard.file),
                                 tensor_plans(shard, specs_, DType::kBF16), {{"format", "pt"}}));
    for (size_t i = 0; i < shard.tensors.size(); ++i) {
      AMXT_TRY(write_tensor(writer, writer.tensors()[i], specs_[shard.tensors[i]]));
    }
    return writer.finish();
  }

  Status write_tensor(io::SafetensorsWriter& writer, const io::TensorEntry& entry,
                      const TensorSpec& spec) {
    const int64_t elements = spec.elements();
    for (int64_t begin = 0; begin < elements; begin += kBlockElements) {
      const int64_t count = std::min(kBlockElements, elements - begin);
      fill(table_, spec, options_.seed, begin, count, block_.data());
      const std::span<const uint16_t> values = std::span(block_).first(static_cast<size_t>(count));
      AMXT_TRY(writer.write(entry, begin * 2, std::as_bytes(values)));
      progress_.file_bytes_done += count * 2;
      progress_.bytes_done += count * 2;
      if (!report_(progress_))
        return Error(Code::kCancelled, fmt::format("{}: cancelled", quote(options_.directory)));
    }
    return {};
  }

  const RandomModelOptions& options_;
  const ModelConfig config_;
  const Json json_;
  WriteProgressCallback report_;
  const std::vector<TensorSpec> specs_;
  const ShardPlan plan_;
  const std::vector<uint16_t> table_;
  std::vector<uint16_t> block_ = std::vector<uint16_t>(kBlockElements);
  WriteProgress progress_;
};

// The target as an absolute path, so that "." or a link can be replaced by rename.
Result<std::string> target_path(const std::string& directory) {
  if (directory.empty()) return Error(Code::kInvalidArgument, "the directory's name is empty");
  if (!path_exists(directory)) {
    std::string path = directory;
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    return path;
  }
  if (!is_directory(directory))
    return Error(Code::kExists, fmt::format("{}: exists and is not a directory", quote(directory)));
  AMXT_ASSIGN(const auto names, list_directory(directory));
  if (!names.empty())
    return Error(Code::kExists, fmt::format("{}: exists and is not empty", quote(directory)));
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(directory.c_str(), nullptr),
                                                    std::free);
  return std::string(real ? real.get() : directory.c_str());
}

// Removes what an interrupted run left at `partial`, and nothing that it can't have written.
Status clear_partial(const std::string& partial) {
  if (!path_exists(partial)) return {};
  const auto is_ours = [](const std::string& name) {
    return io::is_shard_name(name) || name.ends_with(".json") || name.ends_with(".json.tmp");
  };
  auto names = list_directory(partial);
  if (!names || !std::all_of(names->begin(), names->end(), is_ours)) {
    return Error(Code::kExists,
                 fmt::format("{}: is in the way and holds other files", quote(partial)));
  }
  return remove_tree(partial);
}

Status write_and_rename(RandomModel& model, const std::string& partial, const std::string& target) {
  AMXT_TRY(make_directories(parent_path(target)));
  AMXT_TRY(make_directory(partial));
  AMXT_TRY(model.write(partial));
  AMXT_TRY(sync_directory(partial));
  AMXT_TRY(rename_path(partial, target));
  return sync_directory(parent_path(target));
}

}  // namespace

void random_elements(const ModelConfig& config, const TensorSpec& spec, uint64_t seed,
                     int64_t begin, int64_t count, uint16_t* out) {
  fill(quantile_table(config.initializer_range), spec, seed, begin, count, out);
}

Status write_random_model(const RandomModelOptions& options, WriteProgressCallback progress) {
  const std::string name = options.config_name.empty() ? "config.json" : options.config_name;
  AMXT_ASSIGN(ModelConfig config, parse_config(options.config_text, name));
  AMXT_ASSIGN(Json json, parse_json(options.config_text));
  if (options.shard_bytes <= 0) {
    return Error(Code::kInvalidArgument,
                 fmt::format("shard size {} is not positive", options.shard_bytes));
  }
  AMXT_ASSIGN(const std::string target, target_path(options.directory));
  RandomModel model(options, std::move(config), std::move(json), progress);
  const std::string partial = target + ".partial";
  AMXT_TRY(clear_partial(partial));
  auto status = write_and_rename(model, partial, target);
  // What remove_tree says is of no use beside the error that led here.
  if (!status) (void)remove_tree(partial).ok();
  return status;
}

}  // namespace amxt::model
