#include "comm/rendezvous.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <list>
#include <map>
#include <optional>
#include <utility>

#include "base/text.h"
#include "comm/control_segment.h"
#include "comm/entry_list.h"
#include "comm/handshake.h"
#include "comm/interfaces.h"
#include "comm/job_store.h"
#include "comm/memory_file.h"
#include "comm/rendezvous_entry.h"
#include "comm/tcp_store_client.h"
#include "comm/tcp_store_server.h"
#include "comm/unix_socket.h"

namespace amxt::comm {
namespace {

constexpr int kFirstPauseMs = 5, kLongestPauseMs = 100;
constexpr int64_t kHelloTimeoutNs = 5'000'000'000;
constexpr int64_t kConnectTimeoutNs = 5'000'000'000;
constexpr int64_t kRetryNs = 1'000'000'000;
constexpr int64_t kForeignGraceNs = 5'000'000'000;
constexpr int64_t kLastWordsNs = 300'000'000;
constexpr int64_t kLookNs = 2'000'000'000;  // at who has the port
// Connections of either direction that have not proven who they are.
constexpr size_t kMaxUnidentified = 256;

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

class Gatherer {
 public:
  Gatherer(const LaunchInfo& launch, Handshake::Self self, Log* log, Deadline deadline)
      : launch_(launch),
        self_(std::move(self)),
        log_(log),
        deadline_(deadline),
        machine_(this_machine()),
        node_(plain_word(launch.node_hint)),
        may_be_elsewhere_(launch.may_span_nodes()) {
    members_.resize(static_cast<size_t>(own().world_size));
    ready_.resize(members_.size());
    near_.assign(members_.size(), std::vector<bool>(members_.size()));
    if (may_be_elsewhere_) set_word(self_.identity.host, host_name());
  }

  Result<Gathering> run() {
    auto status = join();
    if (!status) {
      tell_all(status.error());
      if (list_) list_->leave_note(status.error(), Deadline::after(kLastWordsNs));
      return std::move(status).error();
    }
    return Gathering{std::move(members_), std::move(nodes_), std::move(control_)};
  }

 private:
  // Somebody to connect to.
  struct Target {
    Entry entry;
    bool by_unix = true;
    int64_t not_before_ns = 0;
  };
  // Somebody who cannot be reached.
  struct Foreign {
    Entry entry;
    int64_t seen_ns;
  };

  const Identity& own() const { return self_.identity; }
  Member& member(int rank) { return members_[static_cast<size_t>(rank)]; }

  Status join() {
    if (may_be_elsewhere_ && !launch_.interface.empty()) {
      AMXT_TRY(interface_named(launch_.interface));  // at once, not at the deadline
    }
    AMXT_ASSIGN(listener_, listen_abstract(socket_name(own().nonce)));
    if (own().rank == 0 && !launch_.agent_store) {
      auto server = serve_job_store(launch_, self_.secret, deadline_);
      if (!server) return who_has_the_port(std::move(server).error());
      server_ = std::move(*server);
    }
    AMXT_ASSIGN(auto store, connect_to_job_store(launch_, self_.secret, log_, deadline_));
    AMXT_TRY(publish(std::move(store)));
    AMXT_TRY(meet_all());
    // Nobody comes any more. All listeners are closed before anyone can start a next group, so that none is taken for this one.
    listener_.reset();
    tcp_listener_.reset();
    count_dropped();
    handshakes_.clear();
    list_.reset();
    return start_together();
  }

  Status publish(std::unique_ptr<TcpStoreClient> store) {
    if (may_be_elsewhere_ && !tcp_listener_) AMXT_TRY(listen_to_other_machines());
    members_[static_cast<size_t>(own().rank)].identity = own();
    ready_[static_cast<size_t>(own().rank)] = true;
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
    if (tcp_listener_) entry.address = tcp_address_.text;
    return list_->append_own(entry_text(entry), deadline_);
  }

  Status listen_to_other_machines() {
    AMXT_ASSIGN(const std::vector<Address> masters, job_store_addresses(launch_, deadline_));
    AMXT_ASSIGN(const Address address, own_address(launch_.interface, masters.front()));
    if (launch_.interface.empty()) AMXT_TRY(check_reached_by_others(launch_, address));
    AMXT_ASSIGN(tcp_listener_, listen_tcp(address, &tcp_address_));
    set_word(self_.identity.address, tcp_address_.ip());
    return {};
  }

  Status meet_all() {
    int pause_ms = kFirstPauseMs;
    while (!has_all()) {
      if (deadline_.passed()) return did_not_join();
      auto read = read_entries();
      if (!read && deadline_.passed()) return did_not_join();
      if (!read) return last_words(std::move(read).error());
      connect_to_targets();
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
    auto store = connect_to_job_store(launch_, self_.secret, nullptr, soon, options);
    if (!store) return taken;
    if (!publish(*std::move(store))) return taken;
    for (bool served = true; !soon.passed();) {
      if (served &&
          !read_entries()) {  // its server has gone: what it said on the way may still come
        served = false;
        soon = soon.earlier(Deadline::after(kLastWordsNs));
      }
      connect_to_targets();
      if (!failure_.ok()) return std::move(failure_).error();
      if (auto moved = step(kFirstPauseMs); !moved) return std::move(moved).error();
    }
    list_.reset();  // a stranger's: no note is left there
    return taken;
  }

  bool has_met(int rank) const {
    return rank >= 0 && rank < own().world_size &&
           members_[static_cast<size_t>(rank)].identity.rank >= 0;
  }

  bool has_all() const {
    return std::all_of(members_.begin(), members_.end(),
                       [](const Member& member) { return member.identity.rank >= 0; });
  }

  Status read_entries() {
    return list_->read_new(deadline_, [this](int64_t number, std::string_view text) {
      // A note of this attempt: all are in a store of rank 0's own, in an agent's those behind this rank's entry.
      if (!launch_.agent_store || number >= list_->own_number()) {
        if (auto error = parse_note(text)) return fail(*std::move(error));
      }
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
    if (entry.machine == machine_ && !split) {
      if (asks) targets_.push_back({std::move(entry), true, 0});
    } else if (!why_unreachable(entry, machine_).empty() || (!asks && !tcp_listener_)) {
      foreign_.push_back({std::move(entry), monotonic_ns()});
    } else if (asks) {
      targets_.push_back({std::move(entry), false, 0});
    }
  }

  void connect_to_targets() {
    for (auto target = targets_.begin(); target != targets_.end();) {
      if (handshakes_.size() >= kMaxUnidentified) return;
      const bool done = monotonic_ns() >= target->not_before_ns &&
                        (target->by_unix ? connect_by_unix(*target) : connect_by_tcp(*target));
      target = done ? targets_.erase(target) : std::next(target);
    }
  }

  // False when it is worth another try.
  bool connect_by_unix(const Target& target) {
    auto socket = connect_abstract(socket_name(target.entry.nonce));
    if (!socket && socket.error().code() == Code::kTimeout) return false;  // its backlog is full
    if (!socket || !peer_credentials(socket->get()).same_user) {
      // For good: it listened before its entry was written. Two machines can look like one, when they are copies.
      if (!target.entry.address.empty()) targets_.push_back({target.entry, false, 0});
      return true;
    }
    handshakes_.emplace_back(self_,
                             std::make_unique<Link>(std::move(*socket), Link::Kind::kPackets),
                             target.entry, false, Deadline::never());
    check_entry(target.entry);
    return true;
  }

  // Who answers at its unix socket lives: what its entry says is true, even if it can't be talked to.
  void check_entry(const Entry& entry) {
    Identity peer = own();
    peer.rank = entry.rank;
    peer.world_size = entry.world_size;
    peer.pid = entry.pid;
    set_word(peer.build, entry.build);
    set_word(peer.host, may_be_elsewhere_ ? entry.host : "");
    if (auto same = compare(own(), peer); !same) return fail(std::move(same).error());
    if (entry.protocol != kProtocolVersion) {
      fail(difference(own(), peer, "protocol", std::to_string(kProtocolVersion),
                      std::to_string(entry.protocol)));
    }
  }

  bool connect_by_tcp(Target& target) {
    const auto address = parse_address(target.entry.address);
    if (!address) return true;
    auto socket = start_connect_tcp(*address);
    if (!socket) {
      failed_to_reach(target.entry, socket.error().sys_errno());
      return true;
    }
    handshakes_.emplace_back(self_, std::make_unique<Link>(std::move(*socket), Link::Kind::kStream),
                             target.entry, true, Deadline::after(kConnectTimeoutNs));
    return true;
  }

  // A refusal is for good, as it listened before its entry was written; a network may come back.
  void failed_to_reach(const Entry& entry, int error) {
    unreached_[entry.rank] =
        fmt::format("rank {} (pid {} on host {}) is not reached at {}: {}", entry.rank, entry.pid,
                    entry.host, entry.address, std::strerror(error));
    if (error != ECONNREFUSED) targets_.push_back({entry, false, monotonic_ns() + kRetryNs});
  }

  // One round over all sockets; true when something came.
  Result<bool> step(int pause_ms) {
    std::vector<pollfd> entries;
    if (listener_) entries.push_back({listener_.get(), POLLIN, 0});
    if (tcp_listener_) entries.push_back({tcp_listener_.get(), POLLIN, 0});
    for (Handshake& handshake : handshakes_)
      entries.push_back({handshake.link().socket(), handshake.events(), 0});
    for (const Member& member : members_) {
      if (!member.link) continue;
      const short out = member.link->has_queued() ? POLLOUT : 0;
      entries.push_back({member.link->socket(), static_cast<short>(POLLIN | out), 0});
    }
    const int count = poll(entries.data(), entries.size(), deadline_.poll_ms(pause_ms));
    if (count > 0) {
      for (Member& member : members_) {
        if (member.link && member.link->has_queued()) member.link->flush();
        hear(member);
      }
      for (Handshake& handshake : handshakes_) handshake.step();
      accept_all(listener_, Link::Kind::kPackets);
      accept_all(tcp_listener_, Link::Kind::kStream);
    }
    settle_handshakes();
    AMXT_TRY(std::move(failure_));
    return count > 0;
  }

  void accept_all(const Descriptor& listener, Link::Kind kind) {
    while (listener) {
      Descriptor socket(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket) return;
      if (kind == Link::Kind::kPackets && !peer_credentials(socket.get()).same_user) continue;
      make_room();
      if (kind == Link::Kind::kStream) set_no_delay(socket);
      handshakes_.emplace_back(self_, std::make_unique<Link>(std::move(socket), kind), std::nullopt,
                               false, Deadline::after(kHelloTimeoutNs));
      handshakes_.back().step();
    }
  }

  // Whoever floods the listener must not keep the ranks out, who prove themselves at once.
  void make_room() {
    if (handshakes_.size() < kMaxUnidentified) return;
    const auto oldest = std::find_if(handshakes_.begin(), handshakes_.end(),
                                     [](const Handshake& h) { return !h.entry(); });
    if (oldest == handshakes_.end()) return;
    handshakes_.erase(oldest);
    ++dropped_;
  }

  void settle_handshakes() {
    for (auto handshake = handshakes_.begin(); handshake != handshakes_.end();) {
      const bool late =
          handshake->deadline().passed() &&
          (!handshake->entry() || handshake->state() == Handshake::State::kConnecting);
      if (!handshake->is_over() && !late) {
        ++handshake;
        continue;
      }
      settle(*handshake);
      handshake = handshakes_.erase(handshake);
    }
  }

  void settle(Handshake& handshake) {
    using State = Handshake::State;
    const auto& entry = handshake.entry();
    if (handshake.state() == State::kMet) {
      add_member(handshake.peer(), handshake.take_link());
    } else if (handshake.state() == State::kFailed) {
      fail(handshake.take_error());
      refused_.push_back(handshake.take_link());  // it hears why
    } else if (!entry) {
      ++dropped_;
    } else if (!handshake.link().is_stream()) {
      if (!entry->address.empty()) targets_.push_back({*entry, false, 0});
    } else if (handshake.state() == State::kConnecting) {
      failed_to_reach(*entry, ETIMEDOUT);
    } else if (handshake.connect_errno() != 0) {
      failed_to_reach(*entry, handshake.connect_errno());
    } else {
      targets_.push_back({*entry, false, monotonic_ns() + kRetryNs});  // somebody else has the port
    }
  }

  void add_member(const Identity& identity, std::unique_ptr<Link> link) {
    Member& place = member(identity.rank);
    if (place.identity.rank >= 0) {
      refused_.push_back(std::move(link));
      return fail(there_twice(place.identity, identity));
    }
    const size_t self = static_cast<size_t>(own().rank), peer = static_cast<size_t>(identity.rank);
    if (link->is_stream()) {
      link->trust(ControlSegment::max_payloads(own().world_size));
    } else {
      place.process = process_descriptor(peer_credentials(link->socket()).pid);
      near_[self][peer] = true;
    }
    place.identity = identity;
    place.link = std::move(link);
    if (log_ != nullptr)
      log_->debug(fmt::format("rank {}: met {}", own().rank, rank_text(identity)));
    hear(place);
  }

  void hear(Member& member) {
    while (member.link && failure_.ok() && !control_) {
      Message message;
      Descriptor passed;
      switch (member.link->receive(&message, &passed)) {
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
      handle(member, std::move(message), std::move(passed));
    }
  }

  void handle(Member& member, Message message, Descriptor passed) {
    const int rank = member.identity.rank;
    const auto index = static_cast<size_t>(rank);
    switch (message.kind) {
      case MessageKind::kAbort:
        return fail(root_cause(message));
      case MessageKind::kReady:
        ready_[index] = true;
        for (size_t peer = 0; peer < std::min(message.payload.size(), members_.size()); ++peer)
          near_[index][peer] = message.payload[peer] == '1';
        return;
      case MessageKind::kStart:
        if (rank == 0) read_nodes(message.payload);
        return;
      case MessageKind::kControl:
        if (!passed)
          return fail(Error(Code::kLimit, "no file descriptor left to join a group with"));
        offered_[rank] = std::move(passed);
        return take_control();
      default:
        member.early.push_back({std::move(message), std::move(passed)});
    }
  }

  Status start_together() {
    Message ready;
    ready.kind = MessageKind::kReady;
    for (const bool near : near_[static_cast<size_t>(own().rank)])
      ready.payload += near ? '1' : '0';
    send_to_all(ready);
    if (own().rank == 0) {
      while (!all_ready()) {
        if (deadline_.passed()) return did_not_start();
        AMXT_TRY(step(kLongestPauseMs));
      }
      AMXT_TRY(make_nodes());
    }
    while (nodes_.count() == 0) {
      if (deadline_.passed()) return did_not_start();
      AMXT_TRY(step(kLongestPauseMs));
    }
    AMXT_TRY(make_control());
    while (!control_) {
      if (deadline_.passed()) return did_not_start();
      AMXT_TRY(step(kLongestPauseMs));
    }
    describe_nodes();
    return {};
  }

  bool all_ready() const {
    return std::all_of(ready_.begin(), ready_.end(), [](bool ready) { return ready; });
  }

  Status make_nodes() {
    for (size_t rank = 0; rank < near_.size(); ++rank) near_[rank][rank] = true;
    const std::vector<int> node_of_rank = join_near_ranks(near_);
    nodes_ = Nodes::of(node_of_rank);
    AMXT_TRY(check_local_ranks());
    Message start;
    start.kind = MessageKind::kStart;
    for (const int node : node_of_rank) {
      start.payload += static_cast<char>(node & 0xFF);
      start.payload += static_cast<char>(node >> 8);
    }
    send_to_all(start);
    return {};
  }

  void read_nodes(std::string_view payload) {
    std::vector<int> node_of_rank;
    int count = 0;
    for (size_t i = 0; i + 1 < payload.size(); i += 2) {
      const int node =
          static_cast<unsigned char>(payload[i]) | static_cast<unsigned char>(payload[i + 1]) << 8;
      if (node > count) break;  // numbered by their lowest ranks
      count = std::max(count, node + 1);
      node_of_rank.push_back(node);
    }
    if (node_of_rank.size() != members_.size() || payload.size() != 2 * members_.size()) {
      return fail(Error(Code::kCommProtocol,
                        rank_text(member(0).identity) + " sent nodes that make no sense")
                      .with_rank(0));
    }
    nodes_ = Nodes::of(node_of_rank);
    take_control();
  }

  Status check_local_ranks() {
    for (const std::vector<int>& ranks : nodes_.nodes) {
      std::map<int, const Identity*> taken;
      for (const int rank : ranks) {
        const Identity& identity = member(rank).identity;
        const auto [other, is_new] = taken.emplace(identity.local_rank, &identity);
        if (!is_new) return same_local_rank(*other->second, identity, ranks.size());
      }
      if (ranks.size() > static_cast<size_t>(ControlSegment::kMaxLocalRanks)) {
        return Error(Code::kLimit, fmt::format("{} ranks on one node are more than the limit of {}",
                                               ranks.size(), ControlSegment::kMaxLocalRanks));
      }
    }
    return {};
  }

  static Error same_local_rank(const Identity& one, const Identity& other, size_t ranks) {
    const bool meant_apart = ranks > static_cast<size_t>(one.local_world_size);
    return Error(Code::kMismatch,
                 fmt::format("{} and {} both have local rank {}{}", rank_text(one),
                             rank_text(other), other.local_rank,
                             meant_apart ? ", and are on one machine: AMXTRAIN_NODE_ID makes "
                                           "several nodes of it"
                                         : ""))
        .with_rank(other.rank);
  }

  // The leader's part; the others wait for it.
  Status make_control() {
    const int node = nodes_.node_of(own().rank);
    if (nodes_.leader(node) != own().rank) return {};
    AMXT_ASSIGN(control_,
                make_memory_file("amxtrain-control", ControlSegment::bytes_for(own().world_size)));
    Message message;
    message.kind = MessageKind::kControl;
    for (const int rank : nodes_.on(node)) {
      if (rank != own().rank) member(rank).link->send(message, control_.get());
    }
    return {};
  }

  // It may come before rank 0 has said who leads.
  void take_control() {
    if (nodes_.count() == 0) return;
    const auto offer = offered_.find(nodes_.leader(nodes_.node_of(own().rank)));
    if (offer != offered_.end()) control_ = std::move(offer->second);
    offered_.clear();
  }

  void describe_nodes() {
    const bool several = nodes_.count() > 1;
    for (Member& member : members_) {
      Nodes::Rank& rank = nodes_.ranks[static_cast<size_t>(member.identity.rank)];
      rank.host = plain_word(get_word(member.identity.host));
      if (rank.host.empty()) rank.host = host_name();
      if (several) rank.address = get_word(member.identity.address);
      if (!several) set_word(member.identity.host, "");
    }
    const int node = nodes_.node_of(own().rank);
    const int local = nodes_.local_of(own().rank), size = nodes_.local_size(node);
    if (log_ == nullptr || (local == own().local_rank && size == own().local_world_size)) return;
    log_->info(
        fmt::format("rank {}: the launcher says local rank {} of {}; by what shares this machine "
                    "it is {} of {}",
                    own().rank, own().local_rank, own().local_world_size, local, size));
  }

  // An entry of another machine may be left from an earlier attempt; after a while without that rank it is not.
  Status check_foreign() {
    for (const Foreign& foreign : foreign_) {
      const Entry& entry = foreign.entry;
      if (entry.rank < 0 || entry.rank >= own().world_size || has_met(entry.rank)) continue;
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
    std::vector<int> seen, missing;
    for (size_t rank = 0; rank < members_.size(); ++rank) {
      (members_[rank].identity.rank >= 0 ? seen : missing).push_back(static_cast<int>(rank));
    }
    std::string text = fmt::format("{} {} did not join within the deadline: seen {}",
                                   missing.size() == 1 ? "rank" : "ranks", number_list(missing),
                                   number_list(seen));
    for (const Handshake& handshake : handshakes_) {
      if (!handshake.entry() || handshake.state() != Handshake::State::kGoing) continue;
      text += fmt::format("; rank {} (pid {}) is there and does not answer",
                          handshake.entry()->rank, handshake.entry()->pid);
    }
    for (const int rank : missing) {
      const auto why = unreached_.find(rank);
      if (why != unreached_.end()) text += "; " + why->second;
    }
    if (launch_.spans_nodes() && tcp_listener_ && is_loopback(tcp_address_)) {
      text += fmt::format(
          "; this rank is reached at {} by its own machine only: see MASTER_ADDR "
          "and AMXTRAIN_SOCKET_IFNAME",
          tcp_address_.ip());
    }
    return Error(Code::kCommTimeout, text).with_rank(missing.front());
  }

  Error did_not_start() const {
    std::vector<int> waiting;
    for (size_t rank = 0; rank < ready_.size(); ++rank) {
      if (!ready_[rank]) waiting.push_back(static_cast<int>(rank));
    }
    // All are, but rank 0, or the leader here, did not say so.
    if (waiting.empty()) {
      waiting.push_back(nodes_.count() == 0 ? 0 : nodes_.leader(nodes_.node_of(own().rank)));
    }
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

  void count_dropped() {
    if (server_ && server_->dropped() > 0 && log_ != nullptr) {
      log_->warning(fmt::format("rank 0: {} of strangers dropped at the store",
                                counted(server_->dropped(), "connection")));
    }
    for (const Handshake& handshake : handshakes_) dropped_ += handshake.entry() ? 0 : 1;
    if (dropped_ == 0 || log_ == nullptr) return;
    log_->warning(fmt::format("rank {}: {} of strangers dropped{}", own().rank,
                              counted(dropped_, "connection"),
                              tcp_address_.text.empty() ? "" : " at " + tcp_address_.text));
  }

  void fail(Error error) {
    if (failure_.ok()) failure_ = std::move(error);
  }

  void send_to_all(const Message& message) {
    for (Member& member : members_) {
      if (member.link) member.link->send(message);
    }
  }

  void tell_all(const Error& error) {
    Message message;
    message.kind = MessageKind::kAbort;
    message.code = static_cast<int32_t>(error.code());
    message.about_rank = error.rank() >= 0 ? error.rank() : own().rank;
    const bool says_whom = error.rank() >= 0;
    message.set_text(says_whom ? error.message()
                               : fmt::format("{} gave up: {}", rank_text(own()), error.message()));
    send_to_all(message);
    // Whoever was greeted may count this rank as met already.
    for (Handshake& handshake : handshakes_) handshake.link().send(message);
    for (const std::unique_ptr<Link>& link : refused_) link->send(message);
  }

  const LaunchInfo& launch_;
  Handshake::Self self_;
  Log* const log_;
  const Deadline deadline_;
  const std::string machine_;
  const std::string node_;  // its id as given
  const bool may_be_elsewhere_;
  std::unique_ptr<TcpStoreServer> server_;
  std::optional<EntryList> list_;
  Descriptor listener_, tcp_listener_;
  Address tcp_address_;
  std::list<Target> targets_;
  std::vector<Foreign> foreign_;
  std::map<int, std::string> unreached_;  // why, by rank
  std::list<Handshake> handshakes_;
  std::vector<std::unique_ptr<Link>> refused_;
  int64_t dropped_ = 0;
  std::vector<Member> members_;
  std::vector<bool> ready_;
  std::vector<std::vector<bool>> near_;
  Nodes nodes_;  // none before rank 0 has said it
  std::map<int, Descriptor> offered_;
  Descriptor control_;
  Status failure_;
};

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
    AMXT_ASSIGN(self.secret, load_secret(launch.secret_file));
  }
  return Gatherer(launch, std::move(self), log, deadline).run();
}

}  // namespace amxt::comm
