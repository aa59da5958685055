#include "comm/gloo_wire.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/dynamic_library.h"
#include "base/library_folder.h"
#include "base/text.h"
#include "comm/gloo_module.h"
#include "comm/interfaces.h"
#include "comm/quiet_thread.h"

namespace amxt::comm {
namespace {

constexpr int kSliceMs = 100;               // a wait looks around this often
constexpr int64_t kReasonNs = 500'000'000;  // the group knows of a death this soon after Gloo does
constexpr int64_t kConnectNs = 300'000'000'000;  // for ranks that are there, at most

struct Module {
  GlooOpen* open = nullptr;
  std::string reason;
};

#if AMXT_HAVE_GLOO
Result<Module> open_module() {
  static auto* const library =
      new DynamicLibrary;  // never closed: threads of Gloo may still be ending
  AMXT_ASSIGN(*library, DynamicLibrary::open(library_folder() + "/libamxtrain-gloo.so",
                                             DynamicLibrary::Binding::kOwn));
  RequiredFunctions required(library);
  Module module;
  required.load(kGlooOpen, &module.open);
  AMXT_TRY(required.check());
  return module;
}

const Module& module() {
  static const Module opened = [] {
    auto ready = open_module();
    if (ready) return *ready;
    return Module{nullptr, fmt::format("gloo can't be used: {}", ready.error().message())};
  }();
  return opened;
}

#else
const Module& module() {
  static const Module none{nullptr, "amxtrain was built without Gloo"};
  return none;
}
#endif

// Tags and sizes that differ give slots that differ, so that Gloo never sees a transfer of two sizes: it would end the connection.
uint64_t slot_of(uint64_t tag, int64_t bytes) {
  const auto mix = [](uint64_t x) {  // a bijection (the finisher of splitmix64)
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  return mix(tag ^ mix(static_cast<uint64_t>(bytes) + 0x9e3779b97f4a7c15u));
}

class GlooWire final : public Wire {
 public:
  // `id`: the same on all ranks, and of no other wire.
  GlooWire(Group& group, std::unique_ptr<GlooMesh> mesh, uint64_t id)
      : group_(group), mesh_(std::move(mesh)), id_(id) {}
  ~GlooWire() override { mesh_->close(); }

  const char* name() const override { return "gloo"; }

  Result<Pending> send(int rank, uint64_t tag, const void* data, int64_t bytes) override {
    AMXT_TRY(usable(rank, bytes));
    std::string why;
    auto posted = mesh_->send(rank, slot_of(tag, bytes), data, bytes, &why);
    if (posted == nullptr) return lost(rank, why);
    sent_ += bytes;
    return Pending(std::make_unique<Posted>(rank, tag, bytes, true, std::move(posted)));
  }

  Result<Pending> receive(int rank, uint64_t tag, void* data, int64_t bytes) override {
    AMXT_TRY(usable(rank, bytes));
    std::string why;
    auto posted = mesh_->receive(rank, slot_of(tag, bytes), data, bytes, &why);
    if (posted == nullptr) return lost(rank, why);
    received_ += bytes;
    return Pending(std::make_unique<Posted>(rank, tag, bytes, false, std::move(posted)));
  }

  Status wait(Transfer& transfer, Deadline deadline, const std::atomic<bool>* cancel) override {
    auto& posted = static_cast<Posted&>(transfer);
    if (posted.done) return {};
    const int64_t start = monotonic_ns();
    Status ended = wait_for(posted, deadline, cancel);
    waited_ns_ += monotonic_ns() - start;
    return ended;
  }

  Counters counters() const override { return {sent_, received_, waited_ns_}; }

  Status check() override {
    {
      const std::lock_guard lock(mutex_);
      if (error_) return Error(*error_);
    }
    if (auto alive = living(); !alive) return die(std::move(alive).error());
    std::string why;
    if (const int peer = mesh_->lost(&why); peer >= 0) return lost(peer, why);
    return {};
  }

  void close(const Error* why) override {
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      first = !error_;
      if (!error_) {
        error_ = std::make_unique<Error>(Code::kCommAborted, "gloo: this rank closed its wire");
      }
    }
    if (first && why != nullptr) group_.tell_end(id_, *why);
    mesh_->close();
  }

 private:
  struct Posted final : Transfer {
    Posted(int r, uint64_t t, int64_t b, bool s, std::unique_ptr<GlooTransfer> g)
        : rank(r), tag(t), bytes(b), sending(s), gloo(std::move(g)) {}
    const int rank;
    const uint64_t tag;
    const int64_t bytes;
    const bool sending;
    bool done = false;
    std::unique_ptr<GlooTransfer> gloo;
  };

  std::string peer_text(int rank) const {
    const Nodes::Rank& peer = group_.nodes().ranks[static_cast<size_t>(rank)];
    return fmt::format("rank {} ({}{}{})", rank, peer.host, peer.address.empty() ? "" : ", ",
                       peer.address);
  }

  Status usable(int rank, int64_t bytes) {
    if (rank < 0 || rank >= group_.size() || rank == group_.rank() || bytes < 0) {
      return Error(Code::kInvalidArgument, fmt::format("a transfer of {} bytes between rank {} and "
                                                       "rank {} of {}",
                                                       bytes, group_.rank(), rank, group_.size()));
    }
    const std::lock_guard lock(mutex_);
    if (error_) return Error(*error_);
    return {};
  }

  Status wait_for(Posted& posted, Deadline deadline, const std::atomic<bool>* cancel) {
    std::string why;
    int slice = 0;  // what is there already needs no look at the clock
    for (;;) {
      switch (posted.gloo->wait(slice, &why)) {
        case GlooTransfer::State::kDone:
          posted.done = true;
          return {};
        case GlooTransfer::State::kFailed:
          return lost(posted.rank, why);
        case GlooTransfer::State::kPending:
          break;
      }
      AMXT_TRY(check());
      const auto unended = [&](Code code, const char* how) {
        return Error(code, fmt::format("{} of {} {} {} {}", posted.sending ? "send" : "receive",
                                       bytes_text(static_cast<uint64_t>(posted.bytes)),
                                       posted.sending ? "to" : "from", peer_text(posted.rank), how))
            .with_rank(posted.rank);
      };
      if (cancel != nullptr && cancel->load(std::memory_order_relaxed))
        return unended(Code::kCancelled, "was cancelled");
      if (deadline.passed()) return unended(Code::kTimeout, "did not end in time");
      slice = std::max(1, deadline.poll_ms(kSliceMs));
    }
  }

  // What the group knows of: its own end, or that a peer has ended the wire.
  Status living() const {
    AMXT_TRY(group_.check());
    if (auto told = group_.end_of(id_)) return *std::move(told);
    return {};
  }

  // A connection ended: by the death of the peer, which the group tells better and soon, or because the peer gave the wire up.
  Error lost(int rank, const std::string& why) {
    const Deadline reason = Deadline::after(kReasonNs);
    for (;;) {
      if (auto alive = living(); !alive) return die(std::move(alive).error());
      if (reason.passed()) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return die(Error(Code::kCommPeerLost, fmt::format("gloo: {}: {}", peer_text(rank), why))
                   .with_rank(rank));
  }

  // The first error is the one that all later calls give.
  Error die(Error error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::make_unique<Error>(std::move(error));
    return *error_;
  }

  Group& group_;
  std::unique_ptr<GlooMesh> mesh_;
  const uint64_t id_;
  std::atomic<int64_t> sent_{0}, received_{0}, waited_ns_{0};
  std::mutex mutex_;
  std::unique_ptr<Error> error_;
};

// What a rank says after each step of the start: all is well, with what the next step needs, or why not. All ranks then fail alike.
class Start {
 public:
  Start(Group& group, const Limits& limits)
      : group_(group), limits_(limits), connect_deadline_(Deadline::after(connect_ns())) {}

  Result<std::unique_ptr<GlooMesh>> run() {
    AMXT_ASSIGN(const std::vector<std::string> entries, agree(listen()));
    connect_deadline_ = Deadline::after(connect_ns());  // all are there
    for (int rank = 0; rank < group_.size(); ++rank) {
      const std::string& entry = entries[static_cast<size_t>(rank)];
      if (entry.size() < sizeof(Nonce)) {
        return Error(Code::kCommProtocol, fmt::format("rank {} sent a short entry for gloo", rank))
            .with_rank(rank);
      }
    }
    std::memcpy(&id_, entries.front().data(), sizeof id_);
    Status connected = connect(entries);
    mesh_->stop_listening();
    AMXT_ASSIGN(auto none, agree(said(std::move(connected))));
    AMXT_ASSIGN(none, agree(said(prove(entries))));
    return std::move(mesh_);
  }
  // Drawn by rank 0.
  uint64_t id() const { return id_; }

 private:
  using Nonce = std::array<char, 16>;

  // Ends before the exchanges do, so that the ranks can still tell each other.
  int64_t connect_ns() const { return std::min(limits_.deadline.left_ns(), kConnectNs) / 10 * 8; }

  static Result<std::string> said(Status status) {
    if (!status) return std::move(status).error();
    return std::string();
  }

  Result<std::vector<std::string>> agree(Result<std::string> own) {
    std::string payload = "+";
    if (own) {
      payload += *own;
    } else {
      payload = fmt::format("-{}\n{}", static_cast<int>(own.error().code()), own.error().message());
    }
    AMXT_ASSIGN(std::vector<std::string> all, group_.exchange(payload, limits_));
    for (int rank = 0; rank < group_.size(); ++rank) {
      std::string& entry = all[static_cast<size_t>(rank)];
      if (entry.starts_with('+')) {
        entry.erase(0, 1);
        continue;
      }
      const size_t line = std::min(entry.size(), entry.find('\n'));
      const int code = std::atoi(entry.c_str() + 1);
      return Error(static_cast<Code>(code > 0 ? code : static_cast<int>(Code::kInternal)),
                   fmt::format("gloo on rank {} ({}): {}", rank,
                               group_.nodes().ranks[static_cast<size_t>(rank)].host,
                               line < entry.size() ? entry.substr(line + 1) : "no reason given"))
          .with_rank(rank);
    }
    return all;
  }

  // The address that GLOO_SOCKET_IFNAME names (the first of a list, as Gloo's other users read it), else the one of the rendezvous.
  Result<std::string> address() const {
    std::string text = group_.nodes().ranks[static_cast<size_t>(group_.rank())].address;
    const char* const wished = std::getenv("GLOO_SOCKET_IFNAME");
    if (wished != nullptr && *wished != '\0') {
      std::string_view name = wished;
      name = name.substr(0, name.find(','));
      AMXT_ASSIGN(const Interface interface, interface_named(name, "GLOO_SOCKET_IFNAME"));
      char host[INET6_ADDRSTRLEN] = "";
      const Address& first = interface.addresses.front();
      const void* bytes = first.family() == AF_INET
                              ? static_cast<const void*>(
                                    &reinterpret_cast<const sockaddr_in*>(first.get())->sin_addr)
                              : &reinterpret_cast<const sockaddr_in6*>(first.get())->sin6_addr;
      inet_ntop(first.family(), bytes, host, sizeof host);
      text = host;
    }
    return text.empty() ? std::string("127.0.0.1") : text;
  }

  Result<std::string> listen() {
    if (module().open == nullptr) return Error(Code::kUnsupported, module().reason);
    AMXT_ASSIGN(const std::string own, address());
    if (getrandom(nonce_.data(), nonce_.size(), 0) != static_cast<ssize_t>(nonce_.size()))
      return system_error("getrandom", errno);
    std::string why;
    mesh_.reset(module().open(group_.rank(), group_.size(), own.c_str(),
                              connect_deadline_.left_ns() / 1'000'000 + 1, &why));
    std::string addresses;
    if (mesh_ == nullptr || !mesh_->listen(&addresses, &why))
      return Error(Code::kIo, fmt::format("listening at {}: {}", own, why));
    return std::string(nonce_.data(), nonce_.size()) + addresses;
  }

  // On a thread of its own, so that a death elsewhere or the deadline ends it.
  Status connect(const std::vector<std::string>& entries) {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    Status connected;
    AMXT_ASSIGN(std::thread thread, start_quiet_thread("amxt-gloo-join", [&] {
                  Status all = connect_all(entries);
                  const std::lock_guard lock(mutex);
                  connected = std::move(all);
                  done = true;
                  changed.notify_all();
                }));
    Status ended;
    std::unique_lock lock(mutex);
    while (!done && ended.ok()) {
      changed.wait_for(lock, std::chrono::milliseconds(kSliceMs));
      if (done) break;
      ended = group_.check();
      if (ended.ok() && limits_.cancelled()) ended = Error(Code::kCancelled, "cancelled");
      if (ended.ok() && connect_deadline_.passed()) ended = not_in_time("connect");
    }
    lock.unlock();
    if (!ended) mesh_->give_up(ended.error().message().c_str());
    thread.join();
    if (!ended) return ended;
    return connected;
  }

  Status connect_all(const std::vector<std::string>& entries) {
    for (int rank = 0; rank < group_.size(); ++rank) {
      if (rank == group_.rank()) continue;
      connecting_ = rank;
      std::string why;
      const std::string_view addresses =
          std::string_view(entries[static_cast<size_t>(rank)]).substr(sizeof(Nonce));
      if (!mesh_->connect(rank, addresses, &why)) return not_connected(rank, why);
    }
    return {};
  }

  // Each side shows the other the nonce that it gave to the exchange.
  Status prove(const std::vector<std::string>& entries) {
    const auto size = static_cast<size_t>(group_.size());
    std::vector<Nonce> shown(size);
    std::vector<std::unique_ptr<GlooTransfer>> sends(size), receives(size);
    std::string why;
    for (size_t rank = 0; rank < size; ++rank) {
      const int peer = static_cast<int>(rank);
      if (peer == group_.rank()) continue;
      receives[rank] = mesh_->receive(peer, 0, shown[rank].data(), sizeof(Nonce), &why);
      if (receives[rank] != nullptr)
        sends[rank] = mesh_->send(peer, 0, nonce_.data(), sizeof(Nonce), &why);
      if (sends[rank] == nullptr) return not_connected(peer, why);
    }
    Status proved;
    for (size_t rank = 0; rank < size && proved; ++rank) {
      const int peer = static_cast<int>(rank);
      if (peer == group_.rank()) continue;
      connecting_ = peer;
      proved = finish(*sends[rank], peer);
      if (proved) proved = finish(*receives[rank], peer);
      if (proved && std::memcmp(shown[rank].data(), entries[rank].data(), sizeof(Nonce)) != 0)
        proved = not_connected(peer, "a stranger is at the other end");
    }
    if (!proved) mesh_->close();  // before the nonces go
    return proved;
  }

  Status finish(GlooTransfer& transfer, int peer) {
    std::string why;
    for (;;) {
      switch (transfer.wait(kSliceMs, &why)) {
        case GlooTransfer::State::kDone:
          return {};
        case GlooTransfer::State::kFailed:
          return not_connected(peer, why);
        case GlooTransfer::State::kPending:
          break;
      }
      AMXT_TRY(group_.check());
      if (limits_.cancelled()) return Error(Code::kCancelled, "cancelled");
      if (connect_deadline_.passed()) return not_in_time("prove itself");
    }
  }

  Error not_connected(int rank, const std::string& why) const {
    const Nodes::Rank& peer = group_.nodes().ranks[static_cast<size_t>(rank)];
    return Error(Code::kIo, fmt::format("no connection with rank {} ({}{}{}): {}", rank, peer.host,
                                        peer.address.empty() ? "" : ", ", peer.address, why))
        .with_rank(rank);
  }
  Error not_in_time(const char* what) const {
    return Error(Code::kTimeout, fmt::format("rank {} did not {} in time, or a stranger took its "
                                             "place",
                                             connecting_.load(), what))
        .with_rank(connecting_);
  }

  Group& group_;
  const Limits limits_;
  Deadline connect_deadline_;
  std::unique_ptr<GlooMesh> mesh_;
  Nonce nonce_{};
  uint64_t id_ = 0;
  std::atomic<int> connecting_{-1};
};

}  // namespace

Result<std::unique_ptr<Wire>> make_gloo_wire(Group& group, Log* log, const Limits& limits) {
  Start start(group, limits);
  AMXT_ASSIGN(std::unique_ptr<GlooMesh> mesh, start.run());
  if (log != nullptr && log->wants(LogLevel::kInfo)) {
    const Nodes::Rank& own = group.nodes().ranks[static_cast<size_t>(group.rank())];
    log->info(fmt::format("gloo: rank {} ({}) connected to {} of {} ranks", group.rank(),
                          own.address.empty() ? own.host : own.address, group.size() - 1,
                          group.size() - 1));
  }
  return std::unique_ptr<Wire>(std::make_unique<GlooWire>(group, std::move(mesh), start.id()));
}

}  // namespace amxt::comm
