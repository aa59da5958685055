#include "comm/alone_group.h"

#include <fmt/format.h>
#include <unistd.h>

#include <mutex>
#include <optional>

#include "base/text.h"
#include "comm/control_segment.h"
#include "comm/memory_file.h"
#include "comm/rendezvous_entry.h"
#include "comm/wire.h"

namespace amxt::comm {
namespace {

class AloneGroup final : public Group {
 public:
  AloneGroup(const LaunchInfo& launch, bool oversubscribed)
      : launch_(launch), nodes_(Nodes::one(1, host_name())), oversubscribed_(oversubscribed) {}

  const LaunchInfo& launch() const override { return launch_; }
  const Nodes& nodes() const override { return nodes_; }

  Result<SharedMemory> share(std::string_view what, int64_t bytes, const Limits&) override {
    AMXT_TRY(usable());
    if (bytes < 0) {
      return Error(Code::kInvalidArgument,
                   fmt::format("shared memory {} of {} bytes", quote(what), bytes));
    }
    if (bytes == 0) return SharedMemory();
    auto data = map_private_memory(bytes);
    if (!data) return std::move(data).error().in("memory " + quote(what));
    return adopt(*data, bytes);
  }

  Status barrier(const Limits& limits) override {
    AMXT_TRY(usable());
    if (limits.cancelled()) return Error(Code::kCancelled, "barrier: cancelled");
    return {};
  }

  Result<std::vector<std::string>> exchange(std::string_view payload, const Limits&) override {
    AMXT_TRY(usable());
    if (payload.size() > ControlSegment::kMaxPayload) return payload_error(payload.size());
    return std::vector<std::string>{std::string(payload)};
  }

  Status check() const override {
    const std::lock_guard lock(mutex_);
    if (error_) return *error_;
    return {};
  }

  void abort(std::string_view reason) override {
    const std::lock_guard lock(mutex_);
    if (!error_) {
      error_ =
          Error(Code::kCommAborted, fmt::format("rank 0 (pid {}) gave up: {}", getpid(), reason))
              .with_rank(0);
    }
  }

  Status finalize(const Limits&) override {
    AMXT_TRY(usable());
    finalized_ = true;
    return {};
  }

  bool oversubscribed() const override { return oversubscribed_; }
  Result<std::unique_ptr<Wire>> make_wire(const Limits&) override {
    return Error(Code::kInvalidState, "a group of one node needs no wire");
  }
  void set_listener(Listener) override {}  // there is nobody to hear of
  void post(int, std::string_view) override {}

 private:
  Status usable() const {
    AMXT_TRY(check());
    if (finalized_) return Error(Code::kInvalidState, "the group was finalized");
    return {};
  }

  const LaunchInfo launch_;
  const Nodes nodes_;
  const bool oversubscribed_;
  bool finalized_ = false;
  mutable std::mutex mutex_;
  std::optional<Error> error_;
};

}  // namespace

std::unique_ptr<Group> make_alone_group(const LaunchInfo& launch, bool oversubscribed) {
  return std::make_unique<AloneGroup>(launch, oversubscribed);
}

}  // namespace amxt::comm
