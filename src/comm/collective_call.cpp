#include "comm/collective_call.h"

#include <fmt/format.h>

#include <string_view>

#include "comm/collectives.h"

namespace amxt::comm {

std::string CollectiveCall::text() const {
  std::string text = name;
  if (std::string_view(name) == kSplit) text += fmt::format(" with colour {}, key {}", color, key);
  if (count >= 0) text += fmt::format(" of {} {}", count, dtype_name(dtype));
  if (count == kVaries) text += fmt::format(" of {}", dtype_name(dtype));
  if (op >= 0) text += fmt::format(", {}", reduce_op_name(static_cast<ReduceOp>(op)));
  if (root >= 0) text += fmt::format(", root {}", root);
  if (on_device) text += " in device memory";
  return text;
}

uint64_t CollectiveCall::digest() const {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, a word at a time
  const auto mix = [&hash](uint64_t word) { hash = (hash ^ word) * 0x100000001b3u; };
  for (const char c : std::string_view(name)) mix(static_cast<unsigned char>(c));
  mix(static_cast<uint64_t>(dtype));
  mix(static_cast<uint64_t>(op));
  mix(static_cast<uint64_t>(root));
  mix(static_cast<uint64_t>(count));
  mix(on_device ? 1 : 0);
  return hash;
}

}  // namespace amxt::comm
