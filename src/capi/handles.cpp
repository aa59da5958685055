#include "capi/handles.h"

namespace amxt::capi {

Result<std::shared_ptr<AlikeCall>> AlikeCall::begin(std::shared_ptr<comm::Group> group,
                                                    const comm::CollectiveCall& call) {
  AMXT_ASSIGN(const uint64_t number, during(call.text(), group->begin_call(0, call, false)));
  return std::shared_ptr<AlikeCall>(new AlikeCall(std::move(group), 0, number, false));
}

Result<std::shared_ptr<AlikeCall>> AlikeCall::begin_collective(std::shared_ptr<comm::Group> group,
                                                               uint64_t communicator,
                                                               const comm::CollectiveCall& call) {
  AMXT_ASSIGN(const uint64_t number,
              during(call.text(), group->begin_call(communicator, call, true)));
  return std::shared_ptr<AlikeCall>(new AlikeCall(std::move(group), communicator, number, false));
}

Result<std::shared_ptr<AlikeCall>> AlikeCall::begin_letter(std::shared_ptr<comm::Group> group,
                                                           uint64_t communicator,
                                                           const comm::CollectiveCall& call,
                                                           int peer, bool sends, bool blocks) {
  AMXT_ASSIGN(const uint64_t number,
              during(call.text(), group->begin_letter(communicator, call, peer, sends, blocks)));
  return std::shared_ptr<AlikeCall>(new AlikeCall(std::move(group), communicator, number, true));
}

void RuntimeState::add(std::atomic<bool>* flag) {
  std::lock_guard lock(mutex_);
  flags_.insert(flag);
}

void RuntimeState::remove(std::atomic<bool>* flag) {
  std::lock_guard lock(mutex_);
  flags_.erase(flag);
}

void RuntimeState::add(train::Engine* engine) {
  std::lock_guard lock(mutex_);
  engines_.insert(engine);
}

void RuntimeState::remove(train::Engine* engine) {
  std::lock_guard lock(mutex_);
  engines_.erase(engine);
}

void RuntimeState::cancel_all() {
  std::lock_guard lock(mutex_);
  for (std::atomic<bool>* flag : flags_) flag->store(true);
  for (train::Engine* engine : engines_) engine->cancel_all();
}

Call::Call(RuntimeState& runtime, int64_t timeout_ns, amxt_progress_fn progress, void* user_data)
    : runtime_(runtime),
      deadline_(Deadline::after(timeout_ns)),
      progress_(progress),
      user_data_(user_data) {
  runtime_.add(&cancelled_);
}

Call::~Call() { runtime_.remove(&cancelled_); }

Status Call::go_on(const amxt_progress& progress) {
  if (cancelled_.load()) return Error(Code::kCancelled, "cancelled");
  if (deadline_.passed()) return Error(Code::kTimeout, "not done by the deadline");
  if (progress_ != nullptr && progress_(&progress, user_data_) != 0) {
    return Error(Code::kUser, "the progress callback ended the call");
  }
  return {};
}

bool Call::goes_on(const amxt_progress& progress) {
  if (ended_) return false;
  Status status = go_on(progress);
  if (status) return true;
  ended_ = std::move(status).error();
  return false;
}

Status Call::outcome(Status status) const {
  if (!status && status.error().code() == Code::kCancelled && ended_) return Error(*ended_);
  return status;
}

}  // namespace amxt::capi
