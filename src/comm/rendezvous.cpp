#include "comm/rendezvous.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <list>
#include <map>
#include <optional>

#include "base/text.h"
#include "base/version.h"
#include "comm/memory_file.h"
#include "comm/rendezvous_entry.h"
#include "comm/tcp_store_client.h"
#include "comm/tcp_store_server.h"

namespace amxt::comm {
namespace {

constexpr int kFirstPauseMs = 5, kLongestPauseMs = 100;
constexpr int64_t kHelloTimeoutNs = 5'000'000'000;
constexpr int64_t kForeignGraceNs = 5'000'000'000;
constexpr int64_t kLastWordsNs = 300'000'000;
constexpr int64_t kLookNs = 2'000'000'000;  // at who has the port
constexpr size_t kMaxUnidentified = 256;
constexpr int64_t kMaxEntries = 4096;  // of earlier attempts too; the newest count

std::string read_word(const char* path) {
  char bytes[128];
  const Descriptor file(open(path, O_RDONLY | O_CLOEXEC));
  const ssize_t got = file ? read(file.get(), bytes, sizeof bytes) : -1;
  std::string word(bytes, got > 0 ? static_cast<size_t>(got) : 0);
  while (!word.empty() && std::isspace(static_cast<unsigned char>(word.back()))) word.pop_back();
  return plain_word(word);
}

// Abstract unix sockets reach as far as one boot and one network namespace; that is one machine here.
std::string this_machine() {
  struct stat space{};
  stat("/proc/self/ns/net", &space);
  return fmt::format("{}-{}", read_word("/proc/sys/kernel/random/boot_id"), space.st_ino);
}

Result<Identity> own_identity(const LaunchInfo& launch, int threads) {
  Identity self;
  self.rank = launch.rank;
  self.world_size = launch.world_size;
  self.local_rank = launch.local_rank;
  self.local_world_size = launch.local_world_size;
  self.pid = getpid();
  self.threads = threads;
  if (getrandom(&self.nonce, sizeof self.nonce, 0) != sizeof self.nonce) {
    return system_error("getrandom", errno);
  }
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) {
    for (size_t cpu = 0; cpu < 1024; ++cpu) {
      if (CPU_ISSET(cpu, &cpus)) self.cpus[cpu / 64] |= uint64_t{1} << (cpu % 64);
    }
  }
  const std::string build = plain_word(fmt::format("{}-{}", kVersion, kGitCommit));
  std::memcpy(self.build, build.data(), std::min(build.size(), sizeof self.build - 1));
  return self;
}

std::string number_list(const std::vector<int>& numbers) {
  return fmt::format("{}", fmt::join(numbers, ", "));
}

// Both sides of a difference say the same: the lower rank first.
Error difference(const Identity& one, const Identity& other, const char* what,
                 const std::string& ones, const std::string& others) {
  if (one.rank > other.rank) return difference(other, one, what, others, ones);
  return Error(Code::kMismatch, fmt::format("{} was started with {} {}, {} with {}", rank_text(one),
                                            what, ones, rank_text(other), others))
      .with_rank(other.rank);
}

Error there_twice(const Identity& one, const Identity& other) {
  return Error(Code::kMismatch,
               fmt::format("rank {} is there twice: pids {} and {}", one.rank,
                           std::min(one.pid, other.pid), std::max(one.pid, other.pid)))
      .with_rank(one.rank);
}

std::string build_of(const Identity& identity) {
  return std::string(identity.build, strnlen(identity.build, sizeof identity.build));
}

// What the processes of one job must agree on.
Status compare(const Identity& self, const Identity& peer) {
  if (peer.rank == self.rank) return there_twice(self, peer);
  if (peer.world_size != self.world_size) {
    return difference(self, peer, "a world size of", std::to_string(self.world_size),
                      std::to_string(peer.world_size));
  }
  if (peer.local_world_size != self.local_world_size) {
    return difference(self, peer, "a local world size of", std::to_string(self.local_world_size),
                      std::to_string(peer.local_world_size));
  }
  if (build_of(peer) != build_of(self)) {
    return difference(self, peer, "amxtrain", quote(build_of(self)), quote(build_of(peer)));
  }
  if (peer.rank < 0 || peer.rank >= self.world_size) {
    return Error(Code::kMismatch,
                 fmt::format("{} is outside a world of {} ranks", rank_text(peer), self.world_size))
        .with_rank(peer.rank);
  }
  return {};
}

class Gatherer {
 public:
  Gatherer(const LaunchInfo& launch, const Identity& self, int64_t control_bytes, Log* log,
           Deadline deadline)
      : launch_(launch),
        self_(self),
        control_bytes_(control_bytes),
        log_(log),
        deadline_(deadline) {
    members_.resize(static_cast<size_t>(self.world_size));
    ready_.resize(members_.size());
    members_[static_cast<size_t>(self.rank)].identity = self;
    ready_[static_cast<size_t>(self.rank)] = true;
  }

  Result<Gathering> run() {
    auto status = join();
    if (!status) {
      tell_all(status.error());
      leave_note(status.error());
      return std::move(status).error();
    }
    return Gathering{std::move(members_), std::move(control_)};
  }

 private:
  // A socket whose other end has not proven yet who it is.
  struct Stranger {
    Descriptor socket;
    std::optional<Entry> entry;  // of whom this process connected to; none: it was connected from
    Deadline deadline = Deadline::never();
    bool dead = false;
  };
  struct Foreign {
    Entry entry;
    int64_t seen_ns;
  };

  Status join() {
    AMXT_ASSIGN(listener_, listen_abstract(socket_name(self_.nonce)));
    if (self_.rank == 0 && !launch_.agent_store) {
      auto server = TcpStoreServer::start(launch_.master_address, launch_.master_port);
      if (!server) return who_has_the_port(std::move(server).error());
      server_ = std::move(*server);
    }
    AMXT_ASSIGN(store_,
                TcpStoreClient::connect(launch_.master_address, launch_.master_port, deadline_));
    AMXT_TRY(publish());
    AMXT_TRY(meet_all());
    AMXT_TRY(check_local_ranks());
    // Nobody comes any more. All listeners are closed before anyone can start a next group, so that none is taken for this one.
    listener_.reset();
    strangers_.clear();
    store_.reset();
    return start_together();
  }

  std::string key(const std::string& name) const {
    return fmt::format("/amxtrain/{}/{}", launch_.run_id.empty() ? "default" : launch_.run_id,
                       name);
  }

  Status publish() {
    machine_ = this_machine();
    Entry entry;
    entry.rank = self_.rank;
    entry.world_size = self_.world_size;
    entry.pid = self_.pid;
    entry.protocol = kProtocolVersion;
    entry.nonce = self_.nonce;
    entry.machine = machine_;
    entry.host = host_name();
    entry.build = self_.build;
    AMXT_ASSIGN(const int64_t number, store_->add(key("entries"), 1, deadline_));
    own_entry_ = number;
    next_entry_ = std::max<int64_t>(1, number - kMaxEntries);
    return store_->set(key(fmt::format("entry/{}", number)), entry_text(entry), deadline_);
  }

  Status meet_all() {
    int pause_ms = kFirstPauseMs;
    while (!has_all()) {
      if (deadline_.passed()) return did_not_join();
      auto read = read_entries();
      if (!read) return last_words(std::move(read).error());
      connect_to_entries();
      AMXT_TRY(std::move(failure_));
      AMXT_ASSIGN(const bool moved, step(pause_ms));
      pause_ms = moved ? kFirstPauseMs : std::min(2 * pause_ms, kLongestPauseMs);
      AMXT_TRY(check_foreign());
    }
    return {};
  }

  // Mostly another program; or a second rank 0, which serves a store as this one would have and is told apart by meeting it there.
  Error who_has_the_port(Error taken) {
    if (taken.code() != Code::kExists) return taken;
    Deadline soon = deadline_.earlier(Deadline::after(kLookNs));
    TcpStoreClient::Options options;
    options.ping_timeout_ns = options.reply_timeout_ns = kLookNs;
    auto store =
        TcpStoreClient::connect(launch_.master_address, launch_.master_port, soon, options);
    if (!store) return taken;
    store_ = *std::move(store);
    if (!publish()) return taken;
    for (bool served = true; !soon.passed();) {
      if (served &&
          !read_entries()) {  // its server has gone: what it said on the way may still come
        served = false;
        soon = soon.earlier(Deadline::after(kLastWordsNs));
      }
      connect_to_entries();
      if (!failure_.ok()) return std::move(failure_).error();
      if (auto moved = step(kFirstPauseMs); !moved) return std::move(moved).error();
    }
    store_.reset();  // a stranger's: no note is left there
    return taken;
  }

  bool has_all() const {
    return std::all_of(members_.begin(), members_.end(),
                       [](const Member& member) { return member.identity.rank >= 0; });
  }

  // Appends what is new in the store's list. A number is given out before its entry is written: such holes are read again.
  Status read_entries() {
    AMXT_ASSIGN(const int64_t count, store_->add(key("entries"), 0, deadline_));
    for (; next_entry_ <= count; ++next_entry_) holes_.push_back(next_entry_);
    for (auto hole = holes_.begin(); hole != holes_.end();) {
      AMXT_ASSIGN(const auto text, store_->find(key(fmt::format("entry/{}", *hole)), deadline_));
      if (!text) {
        ++hole;
        continue;
      }
      read_note(*hole, *text);
      hole = holes_.erase(hole);
      auto entry = parse_entry(*text);
      if (entry && entry->nonce != self_.nonce) add_entry(*std::move(entry));
    }
    return {};
  }

  // Whoever has not met this rank yet would wait for it in vain.
  void leave_note(const Error& error) {
    if (!store_ || own_entry_ == 0) return;
    const Deadline soon = Deadline::after(kLastWordsNs);
    const auto number = store_->add(key("entries"), 1, soon);
    if (!number) return;
    (void)store_->set(key(fmt::format("entry/{}", *number)), note_text(error), soon);
  }

  // One of this attempt: all are in a store of rank 0's own, in an agent's those behind this rank's entry.
  void read_note(int64_t number, std::string_view text) {
    if (launch_.agent_store && number < own_entry_) return;
    if (auto error = parse_note(text)) fail(*std::move(error));
  }

  void add_entry(Entry entry) {
    if (entry.machine != machine_) {
      foreign_.push_back({std::move(entry), monotonic_ns()});
      return;
    }
    // Lower ranks are connected to, higher ones connect. What contradicts this process is asked either way whether it is alive.
    const bool contradicts = entry.protocol != kProtocolVersion || entry.rank == self_.rank ||
                             entry.world_size != self_.world_size || entry.build != self_.build;
    if (contradicts || entry.rank < self_.rank) entries_.push_back(std::move(entry));
  }

  void connect_to_entries() {
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      auto socket = connect_abstract(socket_name(entry->nonce));
      if (!socket && socket.error().code() == Code::kTimeout) {
        ++entry;  // its backlog is full
        continue;
      }
      if (socket && peer_credentials(socket->get()).same_user) {
        greet(std::move(*socket), *entry);
      }
      entry = entries_.erase(entry);  // a refusal is for good: it listened before it was written
    }
  }

  void greet(Descriptor socket, const Entry& entry) {
    Message hello;
    hello.kind = MessageKind::kHello;
    hello.sender = self_;
    hello.target = entry.nonce;
    send_message(socket.get(), hello);
    Identity peer = self_;
    peer.rank = entry.rank;
    peer.world_size = entry.world_size;
    peer.pid = entry.pid;
    std::memset(peer.build, 0, sizeof peer.build);
    std::memcpy(peer.build, entry.build.data(),
                std::min(entry.build.size(), sizeof peer.build - 1));
    if (auto same = compare(self_, peer); !same) return fail(std::move(same).error());
    if (entry.protocol != kProtocolVersion) {
      return fail(difference(self_, peer, "protocol", std::to_string(kProtocolVersion),
                             std::to_string(entry.protocol)));
    }
    strangers_.push_back({std::move(socket), entry, Deadline::never()});
  }

  // One round over all sockets; true when something came.
  Result<bool> step(int pause_ms) {
    std::vector<pollfd> entries;
    if (listener_) entries.push_back({listener_.get(), POLLIN, 0});
    for (const Stranger& stranger : strangers_)
      entries.push_back({stranger.socket.get(), POLLIN, 0});
    for (const Member& member : members_) {
      if (member.socket) entries.push_back({member.socket.get(), POLLIN, 0});
    }
    const int count = poll(entries.data(), entries.size(), deadline_.poll_ms(pause_ms));
    if (count > 0) {
      for (Member& member : members_) hear(member);
      for (Stranger& stranger : strangers_) hear(stranger);
      accept_all();
    }
    strangers_.remove_if([](const Stranger& s) { return s.dead || s.deadline.passed(); });
    AMXT_TRY(std::move(failure_));
    return count > 0;
  }

  void accept_all() {
    while (listener_ && strangers_.size() < kMaxUnidentified) {
      Descriptor socket(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket) return;
      if (!peer_credentials(socket.get()).same_user) continue;
      strangers_.push_back({std::move(socket), std::nullopt, Deadline::after(kHelloTimeoutNs)});
      hear(strangers_.back());
    }
  }

  void hear(Stranger& stranger) {
    if (stranger.dead || !failure_.ok()) return;
    Message message;
    switch (receive_message(stranger.socket.get(), &message)) {
      case Received::kNothing:
        return;
      case Received::kClosed:
      case Received::kGarbage:
        stranger.dead = true;
        return;
      case Received::kMessage:
        break;
    }
    stranger.dead = true;  // unless it becomes a member, below
    if (stranger.entry) {
      if (message.kind == MessageKind::kAbort) return fail(root_cause(message));
      if (message.kind != MessageKind::kWelcome || message.sender.nonce != stranger.entry->nonce)
        return;
    } else {
      if (message.kind != MessageKind::kHello || message.target != self_.nonce) return;
    }
    if (auto same = compare(self_, message.sender); !same) return fail(std::move(same).error());
    if (!stranger.entry) {
      Message welcome;
      welcome.kind = MessageKind::kWelcome;
      welcome.sender = self_;
      send_message(stranger.socket.get(), welcome);
    }
    add_member(message.sender, std::move(stranger.socket));
  }

  void add_member(const Identity& identity, Descriptor socket) {
    Member& member = members_[static_cast<size_t>(identity.rank)];
    if (member.identity.rank >= 0) {
      // Kept, so that it hears the reason and not an end without one.
      strangers_.push_back({std::move(socket), std::nullopt, Deadline::never()});
      return fail(there_twice(member.identity, identity));
    }
    member.process = process_descriptor(peer_credentials(socket.get()).pid);
    member.identity = identity;
    member.socket = std::move(socket);
    if (log_ != nullptr)
      log_->debug(fmt::format("rank {}: met {}", self_.rank, rank_text(identity)));
  }

  void hear(Member& member) {
    while (member.socket && failure_.ok() && !control_) {
      Message message;
      Descriptor passed;
      switch (receive_message(member.socket.get(), &message, &passed)) {
        case Received::kNothing:
          return;
        case Received::kClosed:
          return fail(Error(Code::kCommPeerLost, rank_text(member.identity) + " died while joining")
                          .with_rank(member.identity.rank));
        case Received::kGarbage:
          return fail(
              Error(Code::kCommProtocol, rank_text(member.identity) + " sent something unreadable")
                  .with_rank(member.identity.rank));
        case Received::kMessage:
          break;
      }
      if (message.kind == MessageKind::kAbort) return fail(root_cause(message));
      if (message.kind == MessageKind::kReady)
        ready_[static_cast<size_t>(member.identity.rank)] = true;
      if (message.kind == MessageKind::kStart && member.identity.rank == 0) {
        if (!passed)
          return fail(Error(Code::kLimit, "no file descriptor left to join a group with"));
        control_ = std::move(passed);
      }
    }
  }

  static Error root_cause(const Message& message) {
    return Error(static_cast<Code>(message.code), message.get_text()).with_rank(message.about_rank);
  }

  Status start_together() {
    Message ready;
    ready.kind = MessageKind::kReady;
    for (const Member& member : members_) {
      if (member.socket) send_message(member.socket.get(), ready);
    }
    while (self_.rank == 0 ? !all_ready() : !control_) {
      if (deadline_.passed()) return did_not_start();
      AMXT_TRY(step(kLongestPauseMs));
    }
    if (self_.rank != 0) return {};
    AMXT_ASSIGN(control_, make_memory_file("amxtrain-control", control_bytes_));
    Message start;
    start.kind = MessageKind::kStart;
    for (const Member& member : members_) {
      if (member.socket) send_message(member.socket.get(), start, control_.get());
    }
    return {};
  }

  bool all_ready() const {
    return std::all_of(ready_.begin(), ready_.end(), [](bool ready) { return ready; });
  }

  Status check_local_ranks() {
    std::map<int, const Identity*> taken;
    for (const Member& member : members_) {
      const Identity& identity = member.identity;
      const auto [other, is_new] = taken.emplace(identity.local_rank, &identity);
      if (!is_new) {
        return Error(Code::kMismatch,
                     fmt::format("{} and {} both have local rank {}", rank_text(*other->second),
                                 rank_text(identity), identity.local_rank))
            .with_rank(identity.rank);
      }
    }
    return {};
  }

  // An entry of another machine may be left from an earlier attempt; after a while without one from here it is not.
  Status check_foreign() {
    for (const Foreign& foreign : foreign_) {
      const Entry& entry = foreign.entry;
      if (entry.rank < 0 || entry.rank >= self_.world_size) continue;
      if (members_[static_cast<size_t>(entry.rank)].identity.rank >= 0) continue;
      if (monotonic_ns() - foreign.seen_ns < kForeignGraceNs) continue;
      return Error(Code::kUnsupported,
                   fmt::format(
                       "rank {} (pid {}) runs on another machine or in another network namespace "
                       "(host {}): several nodes are not supported yet",
                       entry.rank, entry.pid, quote(entry.host)))
          .with_rank(entry.rank);
    }
    return {};
  }

  Error did_not_join() const {
    std::vector<int> seen, missing;
    for (size_t rank = 0; rank < members_.size(); ++rank) {
      (members_[rank].identity.rank >= 0 ? seen : missing).push_back(static_cast<int>(rank));
    }
    std::string text = fmt::format("{} {} did not join within the deadline: seen {}",
                                   missing.size() == 1 ? "rank" : "ranks", number_list(missing),
                                   number_list(seen));
    for (const Stranger& stranger : strangers_) {
      if (!stranger.entry) continue;
      text += fmt::format("; rank {} (pid {}) is there and does not answer", stranger.entry->rank,
                          stranger.entry->pid);
    }
    return Error(Code::kCommTimeout, text).with_rank(missing.front());
  }

  Error did_not_start() const {
    std::vector<int> waiting;
    for (size_t rank = 0; rank < ready_.size(); ++rank) {
      if (!ready_[rank]) waiting.push_back(static_cast<int>(rank));
    }
    if (waiting.empty()) waiting.push_back(0);  // all are, but rank 0 did not say so
    return Error(
               Code::kCommTimeout,
               fmt::format("rank {} met this rank and did not meet all others within the deadline",
                           number_list(waiting)))
        .with_rank(waiting.front());
  }

  // The store went away: mostly because rank 0, which serves it, did, and has said why on another way.
  Status last_words(Error error) {
    const Deadline until = deadline_.earlier(Deadline::after(kLastWordsNs));
    while (!until.passed()) AMXT_TRY(step(20));
    if (!launch_.agent_store && error.code() == Code::kIo) {
      return Error(error.code(), error.message() + " (rank 0 serves it)", error.sys_errno());
    }
    return error;
  }

  void fail(Error error) {
    if (failure_.ok()) failure_ = std::move(error);
  }

  void tell_all(const Error& error) {
    Message message;
    message.kind = MessageKind::kAbort;
    message.code = static_cast<int32_t>(error.code());
    message.about_rank = error.rank() >= 0 ? error.rank() : self_.rank;
    const bool says_whom = error.rank() >= 0;
    message.set_text(says_whom ? error.message()
                               : fmt::format("{} gave up: {}", rank_text(self_), error.message()));
    for (const Member& member : members_) {
      if (member.socket) send_message(member.socket.get(), message);
    }
    // Whoever was greeted may count this rank as met already.
    for (const Stranger& stranger : strangers_) {
      if (stranger.socket) send_message(stranger.socket.get(), message);
    }
  }

  const LaunchInfo& launch_;
  const Identity self_;
  const int64_t control_bytes_;
  Log* const log_;
  const Deadline deadline_;
  std::string machine_;
  std::unique_ptr<TcpStoreServer> server_;
  std::unique_ptr<TcpStoreClient> store_;
  Descriptor listener_;
  int64_t own_entry_ = 0, next_entry_ = 1;
  std::vector<int64_t> holes_;
  std::list<Entry> entries_;  // to be connected to
  std::vector<Foreign> foreign_;
  std::list<Stranger> strangers_;
  std::vector<Member> members_;
  std::vector<bool> ready_;
  Descriptor control_;
  Status failure_;
};

}  // namespace

std::string rank_text(const Identity& identity) {
  return fmt::format("rank {} (pid {})", identity.rank, identity.pid);
}

Result<Gathering> gather(const LaunchInfo& launch, int threads, int64_t control_bytes, Log* log,
                         Deadline deadline) {
  AMXT_ASSIGN(const Identity self, own_identity(launch, threads));
  return Gatherer(launch, self, control_bytes, log, deadline).run();
}

}  // namespace amxt::comm
