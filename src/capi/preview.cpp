// Section 13 of the header: what has nothing to do with a trainer.
#define AMXT_ENABLE_PREVIEW
#include <fmt/format.h>

#include <string_view>

#include "base/cpu.h"
#include "base/text.h"
#include "capi/handles.h"
#include "train/bench_kernels.h"
#include "train/bench_peak.h"

using namespace amxt;
using namespace amxt::capi;

namespace {

Result<std::string> bench_named(std::string_view name, const char* options, int threads, bool pin,
                                const train::BenchLimits& limits) {
  if (train::Bench* const kernel = train::kernel_bench(name)) {
    return kernel(options ? options : "", threads, pin, limits);
  }
  if (name != "peak") {
    return Error(Code::kInvalidArgument, fmt::format("name is {}, and must be one of {}, peak",
                                                     quote(name), train::kernel_bench_names()));
  }
  if (options != nullptr) {
    return Error(Code::kInvalidArgument, "options must be NULL: peak has none");
  }
  return train::bench_peak(threads, pin, limits);
}

Status bench(amxt_runtime* runtime, const char* name, const char* options, char** json,
             int64_t timeout_ns) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(name, "name"));
  AMXT_TRY(require(json, "json"));
  const RuntimeState& state = *runtime->state;
  Call call(*runtime->state, timeout_ns);
  const int threads = state.threads ? *state.threads : default_threads(1, nullptr);
  // On a thread of its own: pinning must not touch the caller's.
  AMXT_ASSIGN(const std::unique_ptr<train::Engine> engine, train::Engine::create());
  std::string text;
  const std::shared_ptr<train::Operation> operation =
      engine->submit([&](const std::atomic<bool>&) -> Status {
        AMXT_ASSIGN(text, bench_named(name, options, threads, state.pin.value_or(true),
                                      {call.deadline(), call.cancel_flag()}));
        return {};
      });
  AMXT_TRY(operation->wait(Deadline::never()));
  AMXT_ASSIGN(*json, copy_text(text));
  return {};
}

}  // namespace

extern "C" amxt_status amxt_preview_bench_peak(amxt_runtime* runtime, char** json,
                                               int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] { return bench(runtime, "peak", nullptr, json, timeout_ns); });
}

extern "C" amxt_status amxt_preview_bench(amxt_runtime* runtime, const char* name,
                                          const char* options, char** json, int64_t timeout_ns,
                                          amxt_error* err) {
  return guarded(err, [&] { return bench(runtime, name, options, json, timeout_ns); });
}
