// Sections 2, 3 and 4 of the header: version and build, status, types.
#include "base/version.h"

#include <amxtrain.h>
#include <fmt/format.h>
#include <xxhash.h>

#include <nlohmann/json.hpp>

#include "base/cpu.h"
#include "base/dtype.h"
#include "base/json.h"
#include "capi/guard.h"
#include "comm/topology.h"
#include "kernels/gemm.h"

using namespace amxt;

static_assert(AMXT_VERSION_MAJOR == kVersionMajor && AMXT_VERSION_MINOR == kVersionMinor &&
              AMXT_VERSION_PATCH == kVersionPatch);
static_assert(sizeof(amxt_error) == 1024);

namespace {

struct StatusName {
  Code code;
  amxt_status status;
  const char* name;
};

constexpr StatusName kStatusNames[] = {
    {Code::kOk, AMXT_OK, "AMXT_OK"},
    {Code::kInvalidArgument, AMXT_E_INVALID_ARGUMENT, "AMXT_E_INVALID_ARGUMENT"},
    {Code::kInvalidState, AMXT_E_INVALID_STATE, "AMXT_E_INVALID_STATE"},
    {Code::kNotFound, AMXT_E_NOT_FOUND, "AMXT_E_NOT_FOUND"},
    {Code::kExists, AMXT_E_EXISTS, "AMXT_E_EXISTS"},
    {Code::kIo, AMXT_E_IO, "AMXT_E_IO"},
    {Code::kNoSpace, AMXT_E_NO_SPACE, "AMXT_E_NO_SPACE"},
    {Code::kFormat, AMXT_E_FORMAT, "AMXT_E_FORMAT"},
    {Code::kCorrupt, AMXT_E_CORRUPT, "AMXT_E_CORRUPT"},
    {Code::kUnsupported, AMXT_E_UNSUPPORTED, "AMXT_E_UNSUPPORTED"},
    {Code::kOutOfMemory, AMXT_E_OUT_OF_MEMORY, "AMXT_E_OUT_OF_MEMORY"},
    {Code::kLimit, AMXT_E_LIMIT, "AMXT_E_LIMIT"},
    {Code::kTimeout, AMXT_E_TIMEOUT, "AMXT_E_TIMEOUT"},
    {Code::kCancelled, AMXT_E_CANCELLED, "AMXT_E_CANCELLED"},
    {Code::kNonfinite, AMXT_E_NONFINITE, "AMXT_E_NONFINITE"},
    {Code::kMismatch, AMXT_E_MISMATCH, "AMXT_E_MISMATCH"},
    {Code::kForked, AMXT_E_FORKED, "AMXT_E_FORKED"},
    {Code::kUser, AMXT_E_USER, "AMXT_E_USER"},
    {Code::kInternal, AMXT_E_INTERNAL, "AMXT_E_INTERNAL"},
    {Code::kCommPeerLost, AMXT_E_COMM_PEER_LOST, "AMXT_E_COMM_PEER_LOST"},
    {Code::kCommTimeout, AMXT_E_COMM_TIMEOUT, "AMXT_E_COMM_TIMEOUT"},
    {Code::kCommAborted, AMXT_E_COMM_ABORTED, "AMXT_E_COMM_ABORTED"},
    {Code::kCommProtocol, AMXT_E_COMM_PROTOCOL, "AMXT_E_COMM_PROTOCOL"},
};

constexpr bool codes_are_statuses() {
  for (const StatusName& entry : kStatusNames) {
    if (static_cast<amxt_status>(entry.code) != entry.status) return false;
  }
  return true;
}
static_assert(codes_are_statuses(), "amxt::Code and amxt_status have the same numbers");

static_assert(static_cast<int32_t>(DType::kF32) == AMXT_DTYPE_FLOAT32 &&
              static_cast<int32_t>(DType::kBF16) == AMXT_DTYPE_BFLOAT16 &&
              static_cast<int32_t>(DType::kF16) == AMXT_DTYPE_FLOAT16 &&
              static_cast<int32_t>(DType::kI32) == AMXT_DTYPE_INT32 &&
              static_cast<int32_t>(DType::kI64) == AMXT_DTYPE_INT64 &&
              static_cast<int32_t>(DType::kU8) == AMXT_DTYPE_UINT8 &&
              static_cast<int32_t>(DType::kU16) == AMXT_DTYPE_UINT16 &&
              static_cast<int32_t>(DType::kU32) == AMXT_DTYPE_UINT32 &&
              static_cast<int32_t>(DType::kI8) == AMXT_DTYPE_INT8 &&
              static_cast<int32_t>(DType::kI16) == AMXT_DTYPE_INT16 &&
              static_cast<int32_t>(DType::kU64) == AMXT_DTYPE_UINT64 &&
              static_cast<int32_t>(DType::kF64) == AMXT_DTYPE_FLOAT64 &&
              static_cast<int32_t>(DType::kBool) == AMXT_DTYPE_BOOL);

Json or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

std::string describe_build() {
  Json libraries;
  const kernels::OnednnInfo onednn = kernels::onednn_info();
  libraries["oneDNN"] = onednn.loaded ? Json(onednn.version) : Json();
  libraries["fmt"] =
      fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  libraries["nlohmann-json"] =
      fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
                  NLOHMANN_JSON_VERSION_PATCH);
  libraries["xxHash"] =
      fmt::format("{}.{}.{}", XXH_VERSION_MAJOR, XXH_VERSION_MINOR, XXH_VERSION_RELEASE);
  Json json;
  json["version"] = std::string(kVersion);
  json["commit"] = std::string(kGitCommit);
  json["compiler"] = std::string(kCompiler);
  json["build_type"] = std::string(kBuildType);
  json["sanitizers"] = or_null(kSanitizers);
  json["libraries"] = libraries;
  json["optional"] = comm::optional_libraries();
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string describe_cpu() {
  Json json;
  const CpuLimits limits = cpu_limits();
  json["model_name"] = limits.model_name;
  if (const Result<const CpuIsa*> isa = cpu_isa()) {
    json["isa"] = isa_name((*isa)->chosen);
    json["isa_detected"] = isa_name((*isa)->detected);
    json["isa_cap"] = or_null((*isa)->cap);
    json["isa_reason"] = or_null((*isa)->reason);
  } else {
    for (const char* key : {"isa", "isa_detected", "isa_cap", "isa_reason"}) json[key] = nullptr;
    json["error"] = isa.error().message();
  }
  json["affinity"] = limits.affinity;
  json["cgroup_cpus"] = limits.cgroup_cpus > 0 ? Json(limits.cgroup_cpus) : Json();
  json["memory_bytes"] = limits.memory_bytes;
  json["memory_available_bytes"] = limits.memory_available_bytes;
  json["cgroup_memory_bytes"] =
      limits.cgroup_memory_bytes > 0 ? Json(limits.cgroup_memory_bytes) : Json();
  std::string why;
  json["threads"] = default_threads(1, &why);
  json["threads_reason"] = why;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Text that is made once. "{}" when even that can't be.
const char* made_once(const std::string& (*make)()) {
  try {
    return make().c_str();
  } catch (...) {
    return "{}";
  }
}

}  // namespace

extern "C" {

int32_t amxt_version(void) { return AMXT_VERSION; }

const char* amxt_version_string(void) { return kVersion; }

const char* amxt_build_info(void) {
  return made_once(+[]() -> const std::string& {
    static const std::string text = describe_build();
    return text;
  });
}

const char* amxt_cpu_info(void) {
  return made_once(+[]() -> const std::string& {
    static const std::string text = describe_cpu();
    return text;
  });
}

const char* amxt_status_name(amxt_status status) {
  for (const StatusName& entry : kStatusNames) {
    if (entry.status == status) return entry.name;
  }
  return "AMXT_E_UNKNOWN";
}

int32_t amxt_status_is_fatal(amxt_status status) {
  return status >= AMXT_E_COMM_PEER_LOST && status <= AMXT_E_COMM_PROTOCOL ? 1 : 0;
}

const char* amxt_dtype_name(int32_t dtype) {
  if (dtype < AMXT_DTYPE_FLOAT32 || dtype > AMXT_DTYPE_BOOL) return "?";
  return dtype_name(static_cast<DType>(dtype));
}

}  // extern "C"
