#include "train/bench_request.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/cpu.h"
#include "base/json.h"
#include "base/text.h"

namespace amxt::train {

namespace {

Result<int64_t> whole(const BenchKind& kind, const Json& value, int64_t most,
                      std::string_view what) {
  // An unsigned number beyond int64_t would come out negative, and is refused as that.
  if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > most) {
    return bench_invalid(kind, fmt::format("{} is {}, and must be a whole number from 1 to {}",
                                           what, value.dump(), most));
  }
  return value.get<int64_t>();
}

std::string side_names(const BenchKind& kind) {
  std::string names;
  for (const BenchKind::Side& side : kind.sides) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", side.name);
  }
  return names;
}

Result<BenchShape> shape_of(const BenchKind& kind, const Json& value) {
  if (!value.is_array() || value.size() != kind.sides.size()) {
    return bench_invalid(kind, fmt::format("{} is no shape [{}]", value.dump(), side_names(kind)));
  }
  BenchShape shape;
  for (size_t i = 0; i < kind.sides.size(); ++i) {
    AMXT_ASSIGN(const int64_t side, whole(kind, value[i], kind.sides[i].most, kind.sides[i].name));
    shape.push_back(side);
  }
  return shape;
}

}  // namespace

Error bench_invalid(const BenchKind& kind, std::string_view what) {
  return Error(Code::kInvalidArgument, fmt::format("bench {}: {}", kind.name, what));
}

Result<BenchRequest> parse_bench_request(const BenchKind& kind, std::string_view options) {
  constexpr int64_t kMostRounds = 10'000;
  BenchRequest request;
  request.shapes = kind.shapes;
  if (options.empty()) return request;
  AMXT_ASSIGN(const Json json, parse_json(options));
  if (!json.is_object()) return bench_invalid(kind, "options are no JSON object");
  for (const auto& [name, value] : json.items()) {
    if (name == "repeat") {
      AMXT_ASSIGN(request.repeat, whole(kind, value, kMostRounds, "repeat"));
    } else if (name == "shapes" && value.is_array() && !value.empty()) {
      request.shapes.clear();
      for (const Json& each : value) {
        AMXT_ASSIGN(BenchShape shape, shape_of(kind, each));
        request.shapes.push_back(std::move(shape));
      }
    } else {
      return bench_invalid(kind,
                           fmt::format("unknown option, or not what it must be: \"{}\"", name));
    }
  }
  return request;
}

Status check_bench_memory(const BenchKind& kind, const BenchShape& shape, int64_t bytes) {
  const int64_t free = cpu_limits().memory_available_bytes;
  if (bytes <= free) return {};
  std::string sides;
  for (size_t i = 0; i < shape.size(); ++i) {
    sides += fmt::format("{}{} {}", i == 0 ? "" : ", ", kind.sides[i].name, shape[i]);
  }
  return Error(Code::kOutOfMemory,
               fmt::format("bench {}: {} takes {}, and {} are available", kind.name, sides,
                           bytes_text(static_cast<uint64_t>(bytes)),
                           bytes_text(static_cast<uint64_t>(free))));
}

}  // namespace amxt::train
