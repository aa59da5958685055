// What is known of the keys of config.json besides those that parse_config() reads.
#pragma once

#include <string_view>

namespace amxt::model {

// A key that changes the graph in a way that is not implemented, unless its value is null, false, 0, empty or `neutral`.
struct RefusedKey {
  std::string_view key;
  std::string_view reason;
  double neutral = 0;
};

// Null when the key is not among them.
const RefusedKey* find_refused_key(std::string_view key);

// Keys of generation, bookkeeping and other tasks: no value of theirs changes the training graph.
bool is_indifferent_key(std::string_view key);

}  // namespace amxt::model
