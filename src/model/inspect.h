// What lies in a model directory, an index or a safetensors file, as JSON for people and programs.
#pragma once

#include <cstdint>
#include <string>

#include "base/function_ref.h"
#include "base/result.h"

namespace amxt::model {

struct InspectOptions {
  bool scan = false;  // read all data and count NaN and Inf
};

// Bytes read of a scan; false cancels (kCancelled).
using ScanProgress = FunctionRef<bool(int64_t bytes_done, int64_t bytes)>;

// `path`: a model directory (config.json or an index is enough), a .safetensors file, or an index (*.json). The text is one object:
//   path, kind ("directory", "index", "safetensors")
//   config      model_type, sizes, parameters; null without a config.json
//   parameters  elements of the stored tensors; bytes: theirs; file_bytes: of the files
//   dtypes      {dtype: tensors}
//   files       [{name, bytes, tensors}]
//   tensors     [{name, dtype, shape, bytes, file, offset}], with scan also nan, inf and, for floating types, max_abs
//   problems    [line]: what a loader would refuse, as many as can be found; with scan, NaN and Inf too
//   warnings    [line]
// A malformed file is a problem in the text. An error is only what leaves nothing to describe: no such path, neither config nor
// weights in the directory, cancelled.
Result<std::string> inspect(const std::string& path, const InspectOptions& options,
                            ScanProgress progress);
Result<std::string> inspect(const std::string& path, const InspectOptions& options = {});

}  // namespace amxt::model
