// Survey: what is wrong with the weights of a model directory, all of it, in the order in which a loader would meet it.
#pragma once

#include <string>
#include <vector>

#include "io/index.h"
#include "io/safetensors.h"
#include "model/directory.h"

namespace amxt::model {

struct Survey {
  std::vector<io::SafetensorsFile> files;  // those that could be read
  std::vector<TensorLocation> locations;   // by spec; file -1 where the tensor has a problem
  std::vector<Error> problems;
  std::vector<std::string> warnings;
  bool complete = true;  // every file that should be there could be read
};

// Reads the index (or finds the one model.safetensors) and all headers of `directory`, and compares them with `specs`. Without a
// config (null) only the files themselves are judged. Reads no weights but those of a head stored beside a tied embedding.
// `index_name`: this index of `directory`, whatever else lies there.
Survey survey_weights(const std::string& directory, const ModelConfig* config,
                      const std::vector<TensorSpec>& specs, const std::string& index_name = "");

}  // namespace amxt::model
