// Section 7 of the header: operations.
#include "capi/handles.h"

using namespace amxt;
using namespace amxt::capi;

extern "C" {

amxt_status amxt_op_wait(amxt_op* op, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(op, "op"));
    if (std::this_thread::get_id() == op->engine_thread && !op->operation->done()) {
      return Error(Code::kInvalidState, "waiting for an operation on the thread that runs it");
    }
    return op->operation->wait(Deadline::after(timeout_ns));
  });
}

amxt_status amxt_op_test(const amxt_op* op, int32_t* done, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(op, "op"));
    AMXT_TRY(require(done, "done"));
    *done = op->operation->done() ? 1 : 0;
    return {};
  });
}

amxt_status amxt_op_cancel(amxt_op* op, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(op, "op"));
    op->operation->cancel();
    return {};
  });
}

amxt_status amxt_op_on_done(amxt_op* op, amxt_op_done_fn done, void* user_data, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(op, "op"));
    AMXT_TRY(require(reinterpret_cast<const void*>(done), "done"));
    return op->operation->on_done([done, user_data](const Status& status) {
      amxt_error error = AMXT_ERROR_INIT;
      const amxt_status code = status ? AMXT_OK : report(status.error(), &error);
      done(code, &error, user_data);
    });
  });
}

void amxt_op_destroy(amxt_op* op) { delete op; }

}  // extern "C"
