// Random weights: a Hugging Face directory of an untrained model, written as it is made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/function_ref.h"
#include "base/result.h"
#include "model/tensors.h"

namespace amxt::model {

struct WriteProgress {
  std::string_view file;   // base name of the shard being written
  int64_t file_index = 0;  // from 0
  int64_t files = 0;
  int64_t file_bytes_done = 0, file_bytes = 0;  // tensor bytes of this shard
  int64_t bytes_done = 0, bytes = 0;            // of all
};

// Called some times per second; false cancels (kCancelled).
using WriteProgressCallback = FunctionRef<bool(const WriteProgress&)>;

struct RandomModelOptions {
  std::string config_text;  // of config.json
  std::string config_name;  // for messages: the file or preset it came from
  std::string directory;    // must not exist, or be empty
  uint64_t seed = 42;
  int64_t shard_bytes = 5'000'000'000;
};

// As transformers initialises: matrices and embedding normal(0, initializer_range), norms 1, biases 0, in bfloat16. config.json says
// bfloat16 and is otherwise the text given; generation_config.json and, for several shards, the index are beside it. An element
// depends on seed, tensor name and place alone. Written to "<directory>.partial" and renamed; after an error nothing is left.
// Needs a few MiB of memory for any model.
Status write_random_model(const RandomModelOptions& options, WriteProgressCallback progress);

// `count` elements of the tensor from `begin` on, as bfloat16 bits.
void random_elements(const ModelConfig& config, const TensorSpec& spec, uint64_t seed,
                     int64_t begin, int64_t count, uint16_t* out);

}  // namespace amxt::model
