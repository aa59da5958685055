// MetricsFile: a JSON line per step, written by rank 0.
#pragma once

#include <string>

#include "base/file.h"
#include "base/result.h"
#include "train/trainer.h"

namespace amxt::train {

// One line, without its end; a number that is not finite is null.
std::string metrics_line(const StepMetrics& metrics);

class MetricsFile {
 public:
  // That `path` can be written, before work that a full disk would waste. It is left as it was.
  static Status probe(const std::string& path);
  // Opens or makes `path`. Lines of steps after `last_step` are cut off (a resumed job takes those steps again), and so is a line without
  // an end. kExists for a file of something else, which is left as it is; so does probe().
  static Result<MetricsFile> open(const std::string& path, int64_t last_step);
  // Whole lines only: each is one write.
  Status add(const StepMetrics& metrics);

 private:
  explicit MetricsFile(File file) : file_(std::move(file)) {}
  File file_;
};

}  // namespace amxt::train
