// Saving: the state of all ranks goes into a directory of its own, which gets its name when it is complete and on disk.
//
// The order of operations is the promise: each rank's file written, synced, and its directory; all ranks agree; manifest.json written and
// synced; rename to step-NNNNNN; the directory above synced; then `latest`; then old checkpoints go. See docs/checkpoints.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/file.h"
#include "base/result.h"
#include "checkpoint/manifest.h"
#include "checkpoint/progress.h"
#include "comm/group.h"
#include "store/parameters.h"

namespace amxt::checkpoint {

inline constexpr const char* kLatestName = "latest";

// Bytes that one checkpoint takes, a little more than less.
int64_t checkpoint_bytes(const store::Layout& layout);

// Collective; at the start of a job. `output` is made with its parents when it is missing; that every rank can write there, sees the same
// directory, and that it has room for `bytes` is found out now. What dead attempts left behind is removed; after an error, what was made.
// kMismatch, kNoSpace, kExists (not a directory, or `latest` is no link), kIo. `lock`, when it is given, keeps other jobs from the same
// output as long as rank 0 has it: kExists for them.
Status check_output(const std::string& output, int64_t bytes, comm::Group& group, Deadline deadline,
                    std::optional<File>* lock = nullptr);

struct SaveOptions {
  int64_t keep = 0;  // newest checkpoints that stay; 0: all
  int64_t chunk_bytes = kChunkBytes;
};

struct Saved {
  std::string path;                   // output/step-NNNNNN
  std::vector<std::string> warnings;  // old checkpoints that could not be removed; on rank 0
};

// Collective. Saves training.step into output/step-NNNNNN, points output/latest at it, and lets the newest `keep` checkpoints stay.
// Extra memory: a block for each of a few threads. The state is only read. kExists when that step is there. On an error, the same on all
// ranks, `latest` and all other checkpoints are as before.
template <typename E>
Result<Saved> save(const std::string& output, const TrainingState& training,
                   const model::ModelConfig& config, const store::Parameters<E>& parameters,
                   const SaveOptions& options, comm::Group& group, const Progress& progress,
                   Deadline deadline, const std::atomic<bool>* cancel);

// Steps of the checkpoints in `output`, ascending, by their names alone; none when it is missing.
Result<std::vector<int64_t>> checkpoint_steps(const std::string& output);

// Removes checkpoints of steps after `step` (of a future that a resume from `step` has left), `latest` pointed at `step` first.
// By one rank.
Status remove_later(const std::string& output, int64_t step);

}  // namespace amxt::checkpoint
