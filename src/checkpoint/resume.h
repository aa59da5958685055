// Resuming: finding a checkpoint, and taking the state from it, whatever the number of ranks that saved it.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "checkpoint/manifest.h"
#include "checkpoint/progress.h"
#include "comm/group.h"
#include "store/parameters.h"

namespace amxt::checkpoint {

struct Found {
  std::optional<Manifest> manifest;  // of the checkpoint to resume from; none when there is none
  std::vector<std::string> notes;    // one line for each that was passed over, and why
};

// What `output`/latest names; when that is missing or broken, the newest checkpoint that is whole. A checkpoint is whole when its manifest
// is right and all files have their sizes. An output that is missing holds none. By one rank.
// Only checkpoints of steps before `before` are looked at.
Result<Found> find_latest(const std::string& output, int64_t before = INT64_MAX);

// The checkpoint at `path`, or the latest one of the directory of checkpoints at `path`. Its files have their sizes. kNotFound with the
// reasons when there is none. By one rank, and the same collectively: rank 0 chooses. `before` as above, for a directory of checkpoints.
Result<Manifest> open_checkpoint(const std::string& path);
Result<Manifest> open_checkpoint(const std::string& path, comm::Group& group, Deadline deadline,
                                 int64_t before = INT64_MAX);
// Whether `path` names one checkpoint; else it is a directory of checkpoints.
bool is_one_checkpoint(const std::string& path);

enum class Restore {
  kState,
  kWeights
};  // kWeights: the master weights alone; moments stay as they are

// Collective. Reads the rows owned here from the files that have them, in chunks whose checksums are compared, and puts them in place.
// Extra memory: a chunk for each of a few threads. kMismatch for another model, naming the first field or tensor; kCorrupt naming file,
// tensor and rows. On an error, the same on all ranks, parts may have been written.
template <typename E>
Status restore(const Manifest& manifest, Restore what, const model::ModelConfig& config,
               store::Parameters<E>& parameters, comm::Group& group, const Progress& progress,
               Deadline deadline, const std::atomic<bool>* cancel);

}  // namespace amxt::checkpoint
