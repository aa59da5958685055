// Verifying: a checkpoint is read back whole.
#pragma once

#include <atomic>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "checkpoint/manifest.h"
#include "checkpoint/progress.h"

namespace amxt::checkpoint {

// Compares every byte with its checksum. `path`: a checkpoint, or a directory of checkpoints, of which the latest is taken. kCorrupt names
// the file, and the tensor and rows in it, that come first.
Status verify(const std::string& path, const Progress& progress, Deadline deadline,
              const std::atomic<bool>* cancel);

// The object of amxt_checkpoint_info(), of the same path.
Result<std::string> checkpoint_info(const std::string& path);

}  // namespace amxt::checkpoint
