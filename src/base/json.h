// Strict JSON for untrusted files: UTF-8, one value, no duplicate keys, bounded depth, whole numbers kept whole.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace amxt {

using Json = nlohmann::ordered_json;

struct JsonLimits {
  int depth = 16;
  // Name in messages for a duplicate key at depth 1 ("tensor" in a safetensors header).
  const char* member = "key";
};

// Errors (kFormat) name the byte offset, the duplicate key, or the depth. A whole number outside int64/uint64 is an error.
Result<Json> parse_json(std::string_view text, const JsonLimits& limits = {});

// The reason of a parser's exception (its what()), without position and without text of the file.
std::string parse_reason(std::string_view what);

}  // namespace amxt
