// Section 5 of the header: the runtime.
#include <fmt/format.h>

#include <cstdlib>

#include "base/cpu.h"
#include "base/json.h"
#include "base/text.h"
#include "capi/handles.h"

using namespace amxt;
using namespace amxt::capi;

static_assert(static_cast<int32_t>(LogLevel::kOff) == AMXT_LOG_OFF &&
              static_cast<int32_t>(LogLevel::kError) == AMXT_LOG_ERROR &&
              static_cast<int32_t>(LogLevel::kWarning) == AMXT_LOG_WARNING &&
              static_cast<int32_t>(LogLevel::kInfo) == AMXT_LOG_INFO &&
              static_cast<int32_t>(LogLevel::kDebug) == AMXT_LOG_DEBUG);

namespace {

constexpr const char* kLevelNames[] = {"off", "error", "warning", "info", "debug"};  // from -1

Result<LogLevel> level_of(int32_t number) {
  if (number >= AMXT_LOG_OFF && number <= AMXT_LOG_DEBUG) return static_cast<LogLevel>(number);
  return Error(Code::kInvalidArgument,
               fmt::format("log level {} is not one of -1 (off) to 3 (debug)", number));
}

Result<LogLevel> level_of_environment() {
  const char* text = std::getenv("AMXTRAIN_LOG");
  if (text == nullptr || *text == '\0') return LogLevel::kInfo;
  for (int32_t level = AMXT_LOG_OFF; level <= AMXT_LOG_DEBUG; ++level) {
    if (std::string_view(text) == kLevelNames[level + 1]) return static_cast<LogLevel>(level);
  }
  return Error(
      Code::kInvalidArgument,
      fmt::format("AMXTRAIN_LOG is {}, not error, warning, info, debug or off", quote(text)));
}

Log::Sink sink_of(amxt_log_fn log, void* user_data) {
  if (log == nullptr) return nullptr;
  return [log, user_data](LogLevel level, const char* line) {
    log(static_cast<int32_t>(level), line, user_data);
  };
}

Status create(const amxt_runtime_options* given_options, amxt_runtime** out) {
  AMXT_TRY(require(out, "runtime"));
  AMXT_ASSIGN(const amxt_runtime_options options,
              read_struct<amxt_runtime_options>(given_options, AMXT_RUNTIME_OPTIONS_INIT,
                                                "amxt_runtime_options"));
  if (options.threads != AMXT_UNSET_I32 && (options.threads < 1 || options.threads > 1024)) {
    return Error(Code::kInvalidArgument,
                 fmt::format("amxt_runtime_options.threads is {}, not 1 to 1024", options.threads));
  }
  AMXT_ASSIGN(const std::optional<bool> pin,
              given_flag(options.pin_threads, "amxt_runtime_options.pin_threads"));
  AMXT_ASSIGN(const LogLevel level, options.log_level == AMXT_UNSET_I32
                                        ? level_of_environment()
                                        : level_of(options.log_level));
  AMXT_TRY([]() -> Status {
    AMXT_ASSIGN([[maybe_unused]] const CpuIsa* isa, cpu_isa());
    return {};
  }());
  auto runtime = std::make_unique<amxt_runtime>();
  runtime->state->threads = given(options.threads);
  runtime->state->pin = pin;
  runtime->state->log->set(sink_of(options.log, options.log_user_data), level);
  *out = runtime.release();
  return {};
}

Status info(const amxt_runtime* runtime, char** json) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(json, "json"));
  AMXT_ASSIGN(const CpuIsa* isa, cpu_isa());
  const RuntimeState& state = *runtime->state;
  LogLevel level = LogLevel::kOff;
  for (const LogLevel each :
       {LogLevel::kError, LogLevel::kWarning, LogLevel::kInfo, LogLevel::kDebug}) {
    if (state.log->wants(each)) level = each;
  }
  Json object;
  object["threads"] = state.threads ? Json(*state.threads) : Json();
  object["pin_threads"] = state.pin ? Json(*state.pin) : Json();
  object["log_level"] = kLevelNames[static_cast<int32_t>(level) + 1];
  object["isa"] = isa_name(isa->chosen);
  object["cpu"] = Json::parse(amxt_cpu_info());
  AMXT_ASSIGN(*json, copy_text(object.dump()));
  return {};
}

}  // namespace

extern "C" {

amxt_status amxt_runtime_create(const amxt_runtime_options* options, amxt_runtime** runtime,
                                amxt_error* err) {
  return guarded(err, [&] { return create(options, runtime); });
}

amxt_status amxt_runtime_set_log(amxt_runtime* runtime, int32_t level, amxt_log_fn log,
                                 void* user_data, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(runtime, "runtime"));
    AMXT_ASSIGN(const LogLevel checked, level_of(level));
    runtime->state->log->set(sink_of(log, user_data), checked);
    return {};
  });
}

amxt_status amxt_runtime_info(const amxt_runtime* runtime, char** json, amxt_error* err) {
  return guarded(err, [&] { return info(runtime, json); });
}

amxt_status amxt_runtime_cancel(amxt_runtime* runtime, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(runtime, "runtime"));
    runtime->state->cancel_all();
    return {};
  });
}

void amxt_runtime_destroy(amxt_runtime* runtime) {
  if (runtime == nullptr) return;
  if (usable(runtime, "runtime")) runtime->state->log->set(nullptr, LogLevel::kOff);
  delete runtime;
}

}  // extern "C"
