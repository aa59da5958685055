// Manifest: what manifest.json of a checkpoint says (format version 1: docs/checkpoints.md). Written once, read strictly.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "model/config.h"
#include "store/layout.h"

namespace amxt::checkpoint {

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kFormatName = "amxtrain-checkpoint";
inline constexpr int64_t kFormatVersion = 1;
// Rows of a tensor are checksummed in chunks of about this size.
inline constexpr int64_t kChunkBytes = 4 << 20;

// The learning rate, as train::Schedule has it.
struct ScheduleState {
  std::string kind;
  double learning_rate = 0;
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;  // the horizon
  double warmup_min_lr = 0;
  bool warmup_log = true;
  double warmup_min_ratio = 0;
  double cosine_min_ratio = 0;
  std::optional<double> fixed_rate;  // set by hand, in place of the schedule
};

struct OptimizerState {
  std::string type = "adamw";
  double beta1 = 0, beta2 = 0, epsilon = 0, weight_decay = 0;
  std::string decay;         // "all" or "matrices"
  double clip = 0;           // largest norm of the gradient, 0: none
  std::string loss_average;  // "tokens" or "micro_batch"
  int64_t updates = 0;       // that the moments have seen: the step count of the bias correction
};

// Where the job is in its data, whatever the number of ranks.
struct DataState {
  std::string order;  // name of the algorithm
  int64_t seed = 0;
  int64_t position = 0;  // samples taken
  int64_t samples = 0;   // of an epoch; 0: not known
  int64_t sequence_length = 0;
  std::string mode;          // empty: not known
  uint64_t fingerprint = 0;  // 0: not known
  int64_t global_batch = 0;  // samples of a step; 0: not known
};

// The state of training that is not in tensors.
struct TrainingState {
  int64_t step = 0;           // done
  int64_t total_steps = 0;    // of the job; 0: not fixed yet
  std::string compute_dtype;  // "bfloat16" or "float32"
  ScheduleState schedule;
  OptimizerState optimizer;
  DataState data;
};

struct ManifestFile {
  std::string name;  // base name
  int64_t bytes = 0;
  std::string checksum;  // XXH3-128 of header and table of checksums, 32 hex digits
};

struct ManifestPart {
  int64_t file = 0;  // index into files
  int64_t row_begin = 0, row_end = 0;
};

struct ManifestTensor {
  std::string name;
  int64_t rows = 0, columns = 0;
  bool vector = false;              // shape in files is [columns]
  std::vector<ManifestPart> parts;  // ascending, together all rows
};

struct Manifest {
  std::string path;  // of the checkpoint's directory; not in the file
  TrainingState training;
  int world_size = 0;
  int64_t chunk_bytes = kChunkBytes;
  Json model;               // what of the configuration makes the graph
  std::string config_hash;  // of `model`
  int64_t parameters = 0;
  std::string config_text;  // config.json of the model, as read
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;  // in the order of model::tensor_specs()
  std::string checksum;                 // of the manifest's own text
  int64_t bytes() const;                // of all files
};

// What of a configuration makes the graph, and the XXH3-128 of its compact text.
Json model_identity(const model::ModelConfig& config);
std::string config_hash(const Json& identity);

// A manifest of `layout` but for what the ranks have yet to say of their files.
Manifest plan_manifest(const TrainingState& training, const model::ModelConfig& config,
                       const store::Layout& layout);
std::string file_name(int rank, int world_size);  // "rank-00000-of-00002.safetensors"
std::string step_name(int64_t step);              // "step-000012"
// The step, or nothing when it is no checkpoint's name.
std::optional<int64_t> step_of_name(std::string_view name);

// Name of a part in its file: "master/NAME/0-32", "m/NAME/0-32", "v/NAME/0-32".
enum class Part { kMaster = 0, kFirstMoment = 1, kSecondMoment = 2 };
inline constexpr int kParts = 3;
inline constexpr const char* kChecksumsName = "checksums";
std::string part_name(Part part, std::string_view tensor, int64_t row_begin, int64_t row_end);
// Rows of a chunk of a tensor with this many columns; a part has ceil(rows / this) chunks.
int64_t chunk_rows(int64_t chunk_bytes, int64_t columns);

std::string manifest_text(const Manifest& manifest);
// `file` is for messages. kFormat, kCorrupt (its own checksum), kUnsupported (another version, named).
Result<Manifest> parse_manifest(std::string_view text, std::string_view file);
Result<Manifest> read_manifest(const std::string& directory);

// kMismatch naming the first field or tensor in which the checkpoint is of another model.
Status check_same_model(const Manifest& manifest, const model::ModelConfig& config);
Status check_same_tensors(const Manifest& manifest, const store::Layout& layout);

// The object of amxt_checkpoint_info().
std::string manifest_info(const Manifest& manifest);

}  // namespace amxt::checkpoint
