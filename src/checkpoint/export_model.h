// Exporting: the compute weights as a Hugging Face directory, rows written in parallel by their owners.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "checkpoint/progress.h"
#include "comm/group.h"
#include "model/config.h"
#include "store/parameters.h"

namespace amxt::checkpoint {

struct ExportOptions {
  int64_t shard_bytes = 5'000'000'000;  // most bytes of a file; tensors are not split
};

// Bytes that an export takes, a little more than less.
int64_t export_bytes(const store::Layout& layout, int64_t element_bytes);

// kExists unless nothing is there, an empty directory, or an exported model: what export_model() may replace.
Status check_replaceable(const std::string& directory);

// Collective. Writes model-*.safetensors in bfloat16 (float32 where E is) with their index, config.json (that of `config`, its dtype made
// right), and generation and tokenizer files copied from `model_directory` (empty: none). No rank holds the model: each writes the rows it
// owns from where they lie. The directory appears, or replaces an exported model of that name, in one rename; kExists when the name is
// taken by anything else. On an error, the same on all ranks, what was there stays.
template <typename E>
Status export_model(const std::string& directory, const std::string& model_directory,
                    const model::ModelConfig& config, const store::Parameters<E>& parameters,
                    comm::Group& group, const Progress& progress, Deadline deadline,
                    const std::atomic<bool>* cancel, const ExportOptions& options = {});

}  // namespace amxt::checkpoint
