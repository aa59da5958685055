// What stands behind the opaque structs. Each holds its parents by shared pointers, so that handles may
// be destroyed in any order, and the process that made it: after a fork it is refused.
#pragma once

#include <amxtrain.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "capi/guard.h"
#include "comm/collectives.h"
#include "comm/group.h"
#include "comm/nccl_collectives.h"
#include "io/dataset.h"
#include "model/directory.h"
#include "train/operation.h"
#include "train/plan.h"
#include "train/trainer.h"

namespace amxt::capi {

// What a runtime shares with all that is made with it. Thread-safe.
class RuntimeState {
 public:
  std::shared_ptr<Log> log = std::make_shared<Log>();
  std::optional<int32_t> threads;
  std::optional<bool> pin;

  // A call under way, or an engine with calls: cancelled together.
  void add(std::atomic<bool>* flag);
  void remove(std::atomic<bool>* flag);
  void add(train::Engine* engine);
  void remove(train::Engine* engine);
  void cancel_all();

 private:
  std::mutex mutex_;
  std::set<std::atomic<bool>*> flags_;
  std::set<train::Engine*> engines_;
};

// A blocking call that runs on the caller's thread: its deadline, its cancel, and the caller's progress.
class Call {
 public:
  Call(RuntimeState& runtime, int64_t timeout_ns, amxt_progress_fn progress = nullptr,
       void* user_data = nullptr);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Deadline deadline() const { return deadline_; }
  const std::atomic<bool>* cancel_flag() const { return &cancelled_; }
  // kCancelled, kTimeout or kUser when the work should end; tells the caller how far it is.
  Status go_on(const amxt_progress& progress);
  // The same for code that is told by a bool: its kCancelled becomes what really ended it.
  bool goes_on(const amxt_progress& progress);
  Status outcome(Status status) const;

 private:
  RuntimeState& runtime_;
  Deadline deadline_;
  amxt_progress_fn progress_;
  void* user_data_;
  std::atomic<bool> cancelled_{false};
  std::optional<Error> ended_;
};

// A call that all ranks of a group make alike, from its submission to its end: its group looks out for ranks that call something else.
class AlikeCall {
 public:
  // Of all ranks, beside the collectives.
  static Result<std::shared_ptr<AlikeCall>> begin(std::shared_ptr<comm::Group> group,
                                                  const comm::CollectiveCall& call);
  // Of section 6's, which compare themselves with each other.
  static Result<std::shared_ptr<AlikeCall>> begin_collective(std::shared_ptr<comm::Group> group,
                                                             uint64_t communicator,
                                                             const comm::CollectiveCall& call);
  // A send or receive.
  static Result<std::shared_ptr<AlikeCall>> begin_letter(std::shared_ptr<comm::Group> group,
                                                         uint64_t communicator,
                                                         const comm::CollectiveCall& call, int peer,
                                                         bool sends, bool blocks);
  ~AlikeCall() {
    is_letter_ ? group_->end_letter(communicator_, number_)
               : group_->end_call(communicator_, number_);
  }
  AlikeCall(const AlikeCall&) = delete;
  AlikeCall& operator=(const AlikeCall&) = delete;

 private:
  AlikeCall(std::shared_ptr<comm::Group> group, uint64_t communicator, uint64_t number,
            bool is_letter)
      : group_(std::move(group)),
        communicator_(communicator),
        number_(number),
        is_letter_(is_letter) {}

  const std::shared_ptr<comm::Group> group_;
  const uint64_t communicator_, number_;
  const bool is_letter_;
};

// kForked when the handle was made by another process.
struct Process {
  pid_t id = getpid();
};
template <typename Handle>
Status usable(const Handle* handle, std::string_view name) {
  AMXT_TRY(require(handle, name));
  if (handle->process.id == getpid()) return {};
  return Error(Code::kForked,
               std::string(name) + " was made before a fork; make a new one, or exec");
}

}  // namespace amxt::capi

struct amxt_runtime {
  amxt::capi::Process process;
  std::shared_ptr<amxt::capi::RuntimeState> state = std::make_shared<amxt::capi::RuntimeState>();
};

struct amxt_group {
  ~amxt_group();

  amxt::capi::Process process;
  std::shared_ptr<amxt::capi::RuntimeState> runtime;
  std::shared_ptr<amxt::comm::Group> group;  // of a part: the whole
  bool is_part = false;
  int rank = 0, size = 1;
  // The collectives, from their first call on. The engine goes first, with what runs on it.
  mutable std::mutex collectives_mutex;  // of the pointers
  std::shared_ptr<amxt::comm::Collectives> collectives;
  std::unique_ptr<amxt::comm::Collectives>
      device_collectives;  // counted and checked, around the next
  amxt::comm::NcclCollectives* nccl = nullptr;
  std::unique_ptr<amxt::train::Engine> engine;
  int threads = 1;
  std::string threads_reason;
  bool finalized = false;
};

namespace amxt::capi {

// amxt_group_barrier() and amxt_group_finalize() of a group made by amxt_group_split().
Status meet_in_part(amxt_group* group, const comm::CollectiveCall& call, int64_t timeout_ns);
// Of all ranks, before a group is finalized: the transport of device memory, where it was used.
Status leave_devices(amxt_group* group, int64_t timeout_ns);

}  // namespace amxt::capi

struct amxt_op {
  amxt::capi::Process process;
  std::shared_ptr<amxt::train::Operation> operation;
  std::thread::id engine_thread;
};

struct amxt_model {
  amxt::capi::Process process;
  std::shared_ptr<const amxt::model::ModelDirectory> directory;
  std::optional<amxt::Error> problem;  // with the weights; none: they are good
};

struct amxt_plan {
  amxt::capi::Process process;
  amxt::train::MemoryPlan plan;
  int64_t parameters = 0;
  std::string json;
};

struct amxt_dataset {
  amxt::capi::Process process;
  std::shared_ptr<const amxt::io::Dataset> data;
};

struct amxt_token_writer {
  amxt::capi::Process process;
  std::unique_ptr<amxt::io::TokenFileWriter> writer;
  bool with_weights = false;
};

struct amxt_trainer {
  amxt::capi::Process process;
  std::shared_ptr<amxt::capi::RuntimeState> runtime;
  std::shared_ptr<amxt::comm::Group> group;
  std::unique_ptr<amxt::train::Engine> engine;
  std::unique_ptr<amxt::train::Trainer> trainer;
  amxt_progress_fn progress = nullptr;
  void* progress_user_data = nullptr;
  int32_t stage = AMXT_STAGE_LOAD;  // touched on the engine thread alone
};
