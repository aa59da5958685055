#include "comm/rendezvous.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/text.h"
#include "comm/entry_list.h"
#include "comm/handshake.h"
#include "comm/interfaces.h"
#include "comm/introductions.h"
#include "comm/job_store.h"
#include "comm/rendezvous_entry.h"
#include "comm/tcp_store_client.h"
#include "comm/tcp_store_server.h"

namespace amxt::comm {
namespace {

constexpr int kFirstPauseMs = 5, kLongestPauseMs = 100;
constexpr int64_t kForeignGraceNs = 5'000'000'000;
constexpr int64_t kLastWordsNs = 300'000'000;
constexpr int64_t kLookNs =
    2'000'000'000;  // at who has the port, or whether a store asks for no secret
constexpr int64_t kFarewellNs = 3'000'000'000;  // of a rank 0 that can't start, to those who come
constexpr int64_t kFirstTellNs = 5'000'000'000, kNextTellNs = 60'000'000'000;  // whom it waits for

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

std::string number_list(const std::vector<int>& numbers) {
  return fmt::format("{}", fmt::join(numbers, ", "));
}

// The first few.
std::string short_list(const std::vector<int>& numbers) {
  constexpr size_t kMost = 16;
  if (numbers.size() <= kMost) return number_list(numbers);
  return fmt::format("{} and {} more", number_list({numbers.begin(), numbers.begin() + kMost}),
                     numbers.size() - kMost);
}

// Leaves a note in the job's store, if there is one soon that asks for no secret. What ends this rank: the note that was there already, or
// else `error`.
Error tell_openly(const LaunchInfo& launch, Error error, Deadline deadline) {
  const Deadline soon = deadline.earlier(Deadline::after(kLookNs));
  auto store = connect_to_job_store(launch, Secret(), nullptr, soon);
  if (!store) return error;
  EntryList list(*std::move(store), launch.run_id);
  std::optional<Error> note;
  // Rank 0 may be about to say why it has no secret. An agent's store may hold notes of earlier attempts.
  const Deadline patience = soon.earlier(Deadline::after(launch.rank == 0 ? 0 : kLastWordsNs));
  while (!launch.agent_store) {
    const Status read = list.read_new(soon, [&](int64_t, std::string_view text) {
      if (!note) note = parse_note(text);
    });
    if (note) return *std::move(note);
    if (!read || patience.passed()) break;
    poll(nullptr, 0, kFirstPauseMs);
  }
  list.leave_note(error, soon);
  return error;
}

class Gatherer {
 public:
  Gatherer(const LaunchInfo& launch, Handshake::Self self, Log* log, Deadline deadline)
      : launch_(launch),
        log_(log),
        deadline_(deadline),
        machine_(this_machine()),
        node_(plain_word(launch.node_hint)),
        may_be_elsewhere_(launch.may_span_nodes()),
        introductions_(std::move(self)),
        assembly_(launch.rank, launch.world_size, log) {}

  Result<Gathering> run() {
    auto status = join();
    if (!status) {
      tell_all(status.error());
      if (list_) list_->leave_note(status.error(), Deadline::after(kLastWordsNs));
      // Who has met nobody yet reads it in the store, which goes with this process.
      if (server_ && !assembly_.has_all()) poll(nullptr, 0, kLastWordsNs / 1'000'000);
      return std::move(status).error();
    }
    return assembly_.take();
  }

 private:
  // Somebody who cannot be reached.
  struct Foreign {
    Entry entry;
    int64_t seen_ns;
  };

  const Identity& own() const { return introductions_.own(); }

  Status join() {
    if (may_be_elsewhere_ && !launch_.interface.empty()) {
      AMXT_TRY(interface_named(launch_.interface));  // at once, not at the deadline
    }
    AMXT_TRY(introductions_.listen());
    if (own().rank == 0 && !launch_.agent_store) {
      auto server = serve_job_store(launch_, introductions_.secret(), log_, deadline_);
      if (!server) return who_has_the_port(std::move(server).error());
      server_ = std::move(*server);
    }
    auto store = connect_to_job_store(launch_, introductions_.secret(), log_, deadline_);
    if (!store) return without_common_secret(std::move(store).error());
    if (auto published = publish(*std::move(store)); !published) {
      return last_words(std::move(published).error());
    }
    AMXT_TRY(meet_all());
    // Nobody comes any more. All listeners are closed before anyone can start a next group, so that none is taken for this one.
    introductions_.close();
    count_dropped();
    list_.reset();
    return start_together();
  }

  Status publish(std::unique_ptr<TcpStoreClient> store) {
    if (may_be_elsewhere_ && !introductions_.listens_at_address()) {
      AMXT_TRY(listen_to_other_machines());
    }
    assembly_.enter(own());
    list_.emplace(std::move(store), launch_.run_id);
    Entry entry;
    entry.rank = own().rank;
    entry.world_size = own().world_size;
    entry.pid = own().pid;
    entry.protocol = kProtocolVersion;
    entry.nonce = own().nonce;
    entry.machine = machine_;
    entry.host = host_name();
    entry.build = get_word(own().build);
    entry.node = node_;
    if (introductions_.listens_at_address()) entry.address = introductions_.address().text;
    return list_->append_own(entry_text(entry), deadline_);
  }

  Status listen_to_other_machines() {
    AMXT_ASSIGN(const std::vector<Address> masters, job_store_addresses(launch_, deadline_));
    AMXT_ASSIGN(const Address address, own_address(launch_.interface, masters.front()));
    if (launch_.interface.empty()) AMXT_TRY(check_reached_by_others(launch_, address));
    return introductions_.listen_at(address);
  }

  Status meet_all() {
    int pause_ms = kFirstPauseMs;
    while (!assembly_.has_all()) {
      if (deadline_.passed()) return did_not_join();
      auto read = read_entries();
      if (!read && deadline_.passed()) return did_not_join();
      if (!read) return last_words(std::move(read).error());
      AMXT_TRY(try_to_connect());
      AMXT_ASSIGN(const bool moved, step(pause_ms));
      tell_refused();
      tell_whom_it_waits_for();
      pause_ms = moved ? kFirstPauseMs : std::min(2 * pause_ms, kLongestPauseMs);
      AMXT_TRY(check_foreign());
    }
    return {};
  }

  // A store that has no secret to prove takes a note of it, so that all hear of it at once.
  Error without_common_secret(Error refused) {
    if (refused.code() != Code::kUnsupported) return refused;
    Error one_sided(
        Code::kMismatch,
        fmt::format("{} has a secret (AMXTRAIN_SECRET_FILE), rank 0 has none", rank_text(own())));
    return tell_openly(launch_, std::move(one_sided).with_rank(0), deadline_);
  }

  // Mostly another program; or a second rank 0, which serves a store as this one would have and is told apart by meeting it there.
  Error who_has_the_port(Error taken) {
    if (taken.code() != Code::kExists) return taken;
    Deadline soon = deadline_.earlier(Deadline::after(kLookNs));
    TcpStoreClient::Options options;
    options.ping_timeout_ns = options.reply_timeout_ns = kLookNs;
    auto store = connect_to_job_store(launch_, introductions_.secret(), nullptr, soon, options);
    if (!store) return taken;
    if (!publish(*std::move(store))) return taken;
    for (bool served = true; !soon.passed();) {
      if (served &&
          !read_entries()) {  // its server has gone: what it said on the way may still come
        served = false;
        soon = soon.earlier(Deadline::after(kLastWordsNs));
      }
      if (auto tried = try_to_connect(); !tried) return std::move(tried).error();
      if (auto moved = step(kFirstPauseMs); !moved) return std::move(moved).error();
    }
    list_.reset();  // a stranger's: no note is left there
    return taken;
  }

  Status read_entries() {
    return list_->read_new(deadline_, [this](int64_t number, std::string_view text) {
      // A note of this attempt: all are in a store of rank 0's own, in an agent's those behind this rank's entry.
      if (!note_ && (!launch_.agent_store || number >= list_->own_number()))
        note_ = parse_note(text);
      auto entry = parse_entry(text);
      if (entry && entry->nonce != own().nonce) add_entry(*std::move(entry));
    });
  }

  void add_entry(Entry entry) {
    // Lower ranks are connected to, higher ones connect. What contradicts this process is asked either way whether it is alive.
    const bool contradicts = entry.protocol != kProtocolVersion || entry.rank == own().rank ||
                             entry.world_size != own().world_size ||
                             entry.build != get_word(own().build);
    const bool asks = contradicts || entry.rank < own().rank;
    const bool split = !node_.empty() && !entry.node.empty() && node_ != entry.node;
    const bool is_heard = introductions_.listens_at_address();
    if (entry.machine == machine_ && !split) {
      if (asks) introductions_.connect_to(std::move(entry), true);
    } else if (!why_unreachable(entry, machine_).empty() || (!asks && !is_heard)) {
      foreign_.push_back({std::move(entry), monotonic_ns()});
    } else if (asks) {
      introductions_.connect_to(std::move(entry), false);
    }
  }

  Status try_to_connect() {
    introductions_.try_to_connect();
    return failure();
  }

  // One round over all sockets; true when something came.
  Result<bool> step(int pause_ms) {
    std::vector<pollfd> entries;
    introductions_.add_to(&entries);
    assembly_.add_to(&entries);
    const int count = poll(entries.data(), entries.size(), deadline_.poll_ms(pause_ms));
    if (count > 0) {
      assembly_.hear_all();
      introductions_.serve();
    }
    introductions_.settle([this](const Identity& identity, std::unique_ptr<Link> link) {
      assembly_.add(identity, std::move(link));
    });
    AMXT_TRY(failure());
    return count > 0;
  }

  // Another rank's, which left a note, or that of a part of this one.
  Status failure() {
    if (note_) return *std::exchange(note_, std::nullopt);
    AMXT_TRY(assembly_.take_failure());
    return introductions_.take_failure();
  }

  Status start_together() {
    assembly_.say_ready();
    if (own().rank == 0) {
      AMXT_TRY(step_until([this] { return assembly_.all_ready(); }));
      AMXT_TRY(assembly_.make_nodes());
    }
    AMXT_TRY(step_until([this] { return assembly_.has_nodes(); }));
    AMXT_TRY(assembly_.make_control());
    return step_until([this] { return assembly_.has_control(); });
  }

  template <typename Done>
  Status step_until(Done done) {
    while (!done()) {
      if (deadline_.passed()) return did_not_start();
      AMXT_TRY(step(kLongestPauseMs));
    }
    return {};
  }

  // An entry of another machine may be left from an earlier attempt; after a while without that rank it is not.
  Status check_foreign() {
    for (const Foreign& foreign : foreign_) {
      const Entry& entry = foreign.entry;
      if (entry.rank < 0 || entry.rank >= own().world_size || assembly_.has(entry.rank)) continue;
      if (monotonic_ns() - foreign.seen_ns < kForeignGraceNs) continue;
      std::string why = why_unreachable(entry, machine_);
      if (why.empty()) {
        why = fmt::format("but this rank {} was told that all {} are on one: LOCAL_WORLD_SIZE",
                          own().rank, own().world_size);
      }
      return Error(Code::kMismatch,
                   fmt::format("rank {} (pid {} on host {}) runs on another machine or in another "
                               "network namespace, {}",
                               entry.rank, entry.pid, entry.host, why))
          .with_rank(entry.rank);
    }
    return {};
  }

  Error did_not_join() const {
    const std::vector<int> seen = assembly_.ranks(true), missing = assembly_.ranks(false);
    std::string text = fmt::format("{} {} did not join within the deadline: seen {}",
                                   missing.size() == 1 ? "rank" : "ranks", number_list(missing),
                                   number_list(seen));
    text += introductions_.why_not_met(missing);
    if (const auto refused = server_ ? server_->refused() : TcpStoreServer::Refused();
        refused.count > 0) {
      text += fmt::format(
          "; {} {} refused because {} did not prove the secret "
          "(AMXTRAIN_SECRET_FILE), the last from {}",
          counted(refused.count, "connection"), refused.count == 1 ? "was" : "were",
          refused.count == 1 ? "it" : "they", refused.last_ip);
    }
    const bool is_heard = introductions_.listens_at_address();
    if (launch_.spans_nodes() && is_heard && is_loopback(introductions_.address())) {
      text += fmt::format(
          "; this rank is reached at {} by its own machine only: see MASTER_ADDR "
          "and AMXTRAIN_SOCKET_IFNAME",
          introductions_.address().ip());
    }
    return Error(Code::kCommTimeout, text).with_rank(missing.front());
  }

  Error did_not_start() const {
    const std::vector<int> waiting = assembly_.awaited();
    return Error(
               Code::kCommTimeout,
               fmt::format("rank {} met this rank and did not meet all others within the deadline",
                           number_list(waiting)))
        .with_rank(waiting.front());
  }

  // At once, for it may be a rank; once, for it may be anybody.
  void tell_refused() {
    if (has_told_refused_ || !server_ || log_ == nullptr) return;
    const TcpStoreServer::Refused refused = server_->refused();
    if (refused.count == 0) return;
    has_told_refused_ = true;
    log_->warning(fmt::format(
        "rank 0: refused a connection from {} that did not prove the secret "
        "(AMXTRAIN_SECRET_FILE): of a stranger, or of a rank that has another one or none",
        refused.last_ip));
  }

  // Rank 0's part: it is where people look first.
  void tell_whom_it_waits_for() {
    if (own().rank != 0 || log_ == nullptr || !tell_next_.passed()) return;
    tell_next_ = Deadline::after(kNextTellNs);
    const std::vector<int> missing = assembly_.ranks(false);
    log_->info(fmt::format("rank 0: waiting for {} {} of {} at {}",
                           missing.size() == 1 ? "rank" : "ranks", short_list(missing),
                           own().world_size, list_->address()));
  }

  // The store went away: mostly because rank 0, which serves it, did, and has said why on another way.
  Status last_words(Error error) {
    const Deadline until = deadline_.earlier(Deadline::after(kLastWordsNs));
    while (!until.passed()) AMXT_TRY(step(20));
    if (!launch_.agent_store && error.code() == Code::kIo) {
      return Error(error.code(), "rank 0 has ended, which serves the store: " + error.message(),
                   error.sys_errno());
    }
    return error;
  }

  void count_dropped() {
    if (server_ && server_->dropped() > 0 && log_ != nullptr) {
      log_->warning(fmt::format("rank 0: {} of strangers dropped at the store",
                                counted(server_->dropped(), "connection")));
    }
    if (introductions_.dropped() == 0 || log_ == nullptr) return;
    const std::string& address = introductions_.address().text;
    log_->warning(fmt::format("rank {}: {} of strangers dropped{}", own().rank,
                              counted(introductions_.dropped(), "connection"),
                              address.empty() ? "" : " at " + address));
  }

  void tell_all(const Error& error) {
    Message message;
    message.kind = MessageKind::kAbort;
    message.code = static_cast<int32_t>(error.code());
    message.about_rank = error.rank() >= 0 ? error.rank() : own().rank;
    const bool says_whom = error.rank() >= 0;
    message.set_text(says_whom ? error.message()
                               : fmt::format("{} gave up: {}", rank_text(own()), error.message()));
    assembly_.tell_all(message);
    introductions_.tell_all(message);  // whoever was greeted may count this rank as met already
  }

  const LaunchInfo& launch_;
  Log* const log_;
  const Deadline deadline_;
  const std::string machine_;
  const std::string node_;  // its id as given
  const bool may_be_elsewhere_;
  std::unique_ptr<TcpStoreServer> server_;
  std::optional<EntryList> list_;
  Introductions introductions_;
  Assembly assembly_;
  std::vector<Foreign> foreign_;
  std::optional<Error> note_;  // that another rank left
  bool has_told_refused_ = false;
  Deadline tell_next_ = Deadline::after(kFirstTellNs);
};

// This rank can't start. Where the store asks for no secret the others hear why; a store that asks for one counts a refusal and says so,
// for a word without proof must end nothing. Rank 0 serves a store of the first kind until all came, or for a while.
Error without_own_secret(const LaunchInfo& launch, const Identity& own, Error error,
                         Deadline deadline) {
  Error told = Error(error.code(), fmt::format("{} gave up: {}", rank_text(own), error.message()))
                   .with_rank(own.rank);
  std::unique_ptr<TcpStoreServer> server;
  if (own.rank == 0 && !launch.agent_store) {
    auto served = serve_job_store(launch, Secret(), nullptr, Deadline::after(0));
    if (!served) return error;
    server = std::move(*served);
  }
  (void)tell_openly(launch, std::move(told), deadline);
  const Deadline farewell = deadline.earlier(Deadline::after(kFarewellNs));
  while (server && server->asked_for_secret() + 1 < launch.world_size && !farewell.passed()) {
    poll(nullptr, 0, kLongestPauseMs);
  }
  if (server) poll(nullptr, 0, deadline.earlier(Deadline::after(kLastWordsNs)).poll_ms());
  return error;
}

}  // namespace

std::string why_unreachable(const Entry& entry, const std::string& machine) {
  if (entry.address.empty()) {
    return fmt::format("but it was told that all {} ranks are on one: LOCAL_WORLD_SIZE",
                       entry.world_size);
  }
  const auto address = parse_address(entry.address);
  if (entry.machine == machine || !address || !is_loopback(*address)) return "";
  return fmt::format(
      "and can be reached at {} from its own only: set AMXTRAIN_SOCKET_IFNAME to the "
      "interface between the nodes, or MASTER_ADDR to rank 0's address there",
      address->ip());
}

Result<Gathering> gather(const LaunchInfo& launch, const GroupOptions& options, Log* log,
                         Deadline deadline) {
  Handshake::Self self;
  AMXT_ASSIGN(self.identity, own_identity(launch, options));
  AMXT_ASSIGN(self.proof, Handshake::make_proof(self.identity.nonce));
  if (!launch.secret_file.empty()) {
    auto secret = load_secret(launch.secret_file);
    if (!secret)
      return without_own_secret(launch, self.identity, std::move(secret).error(), deadline);
    self.secret = *std::move(secret);
    self.nonces_are_secret = !launch.agent_store;
  }
  return Gatherer(launch, std::move(self), log, deadline).run();
}

}  // namespace amxt::comm
