// Section 12 of the header: what can be told of a checkpoint without a trainer.
#include "capi/handles.h"
#include "checkpoint/verify.h"

using namespace amxt;
using namespace amxt::capi;

namespace {

Status info(amxt_runtime* runtime, const char* path, char** json) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(path, "path"));
  AMXT_TRY(require(json, "json"));
  AMXT_ASSIGN(const std::string text, checkpoint::checkpoint_info(path));
  AMXT_ASSIGN(*json, copy_text(text));
  return {};
}

Status verify(amxt_runtime* runtime, const char* path, amxt_progress_fn progress, void* user_data,
              int64_t timeout_ns) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(path, "path"));
  Call call(*runtime->state, timeout_ns, progress, user_data);
  const auto tell = [&](const checkpoint::ProgressReport& report) {
    const std::string name(report.name);
    amxt_progress told = AMXT_PROGRESS_INIT;
    told.stage = AMXT_STAGE_VERIFY;
    told.item = report.item;
    told.item_count = report.items;
    told.item_done_bytes = report.item_done;
    told.item_total_bytes = report.item_total;
    told.done_bytes = report.done;
    told.total_bytes = report.total;
    told.item_name = name.c_str();
    return call.go_on(told);
  };
  return checkpoint::verify(path, tell, call.deadline(), call.cancel_flag());
}

}  // namespace

extern "C" {

amxt_status amxt_checkpoint_info(amxt_runtime* runtime, const char* path, char** json,
                                 amxt_error* err) {
  return guarded(err, [&] { return info(runtime, path, json); });
}

amxt_status amxt_checkpoint_verify(amxt_runtime* runtime, const char* path,
                                   amxt_progress_fn progress, void* progress_user_data,
                                   int64_t timeout_ns, amxt_error* err) {
  return guarded(err,
                 [&] { return verify(runtime, path, progress, progress_user_data, timeout_ns); });
}

}  // extern "C"
