#include "comm/job_store.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/text.h"
#include "comm/interfaces.h"

namespace amxt::comm {
namespace {

constexpr int64_t kPauseNs = 200'000'000;
constexpr int64_t kPatienceNs = 5'000'000'000;  // then it is said what is waited for

// Written as a number or as "localhost": whoever writes a loopback address so means it.
bool is_meant(const std::string& host) {
  in6_addr bytes;
  return host == "localhost" || inet_pton(AF_INET, host.c_str(), &bytes) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &bytes) == 1;
}

bool has(const Interface& interface, const Address& address) {
  if (interface.is_loopback && is_loopback(address)) return true;
  return std::any_of(interface.addresses.begin(), interface.addresses.end(),
                     [&](const Address& own) { return own.ip() == address.ip(); });
}

std::vector<Address> those_on(const Interface& interface, const std::vector<Address>& addresses) {
  std::vector<Address> found;
  std::copy_if(addresses.begin(), addresses.end(), std::back_inserter(found),
               [&](const Address& address) { return has(interface, address); });
  return found;
}

// Of `masters`, those of one interface of this machine; of an interface that is given, else its own address.
Result<std::vector<Address>> to_listen_at(const LaunchInfo& launch, std::vector<Address> masters) {
  if (!launch.interface.empty()) {
    AMXT_ASSIGN(const Interface interface, interface_named(launch.interface));
    std::vector<Address> found = those_on(interface, masters);
    if (!found.empty()) return found;
    AMXT_ASSIGN(const Address own, own_address(launch.interface, masters.front()));
    return std::vector<Address>{own.at_port(launch.master_port)};
  }
  AMXT_ASSIGN(const std::vector<Interface> all, interfaces());
  for (const Address& master : masters) {
    const auto interface = std::find_if(all.begin(), all.end(),
                                        [&](const Interface& each) { return has(each, master); });
    if (interface != all.end()) return those_on(*interface, masters);
  }
  return masters;  // listening there fails, and says why
}

// Names of pods and nodes come late; a wrong one would be minutes of silence.
void tell_unresolved(const Error& error, Log* log, bool* told) {
  if (std::exchange(*told, true)) return;
  log->warning(error.message() + "; asked for again until the deadline");
}

}  // namespace

Status check_reached_by_others(const LaunchInfo& launch, const Address& address) {
  const bool is_wrong =
      launch.spans_nodes() && is_loopback(address) && !is_meant(launch.master_address);
  if (!is_wrong) return {};
  return Error(Code::kInvalidArgument,
               fmt::format("MASTER_ADDR {} is {} on this node, a loopback address that other nodes "
                           "do not reach: set AMXTRAIN_SOCKET_IFNAME to the interface between the "
                           "nodes, or MASTER_ADDR to rank 0's address there",
                           quote(launch.master_address), address.ip()));
}

Result<std::vector<Address>> job_store_addresses(const LaunchInfo& launch, Deadline deadline) {
  const bool is_here = !launch.may_span_nodes();
  const bool by_name = !is_meant(launch.master_address);
  const auto loopback = [&] { return resolve("127.0.0.1", launch.master_port); };
  if (!launch.agent_store && is_here && by_name) return loopback();
  auto masters = resolve(launch.master_address, launch.master_port, deadline);
  if (!masters || launch.agent_store) return masters;
  if (is_here) return is_loopback(masters->front()) ? std::move(masters) : loopback();
  if (is_wildcard(masters->front())) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("MASTER_ADDR {} is every address of a machine, which leads nowhere and "
                    "would be served to every network: set it to rank 0's address or name",
                    quote(launch.master_address)));
  }
  const Address first = masters->front();
  if (auto reached = check_reached_by_others(launch, first); !reached) {
    if (launch.interface.empty()) return std::move(reached).error();
    // Rank 0 or another one of its node: nobody else has a name of that node that leads to itself.
    AMXT_ASSIGN(const Address own, own_address(launch.interface, first));
    return std::vector<Address>{own.at_port(launch.master_port)};
  }
  if (launch.rank != 0) return masters;
  return to_listen_at(launch, *std::move(masters));
}

Result<std::unique_ptr<TcpStoreServer>> serve_job_store(const LaunchInfo& launch,
                                                        const Secret& secret, Log* log,
                                                        Deadline deadline) {
  TcpStoreServer::Options options;
  options.secret = Secret(secret);
  options.max_connections = std::max<size_t>(512, 2 * static_cast<size_t>(launch.world_size) + 64);
  bool told = log == nullptr;
  for (;;) {
    auto addresses = job_store_addresses(launch, deadline);
    if (addresses) return TcpStoreServer::start(*addresses, options);
    const bool later = addresses.error().code() == Code::kNotFound;
    if (later) tell_unresolved(addresses.error(), log, &told);
    if (!later || deadline.left_ns() <= kPauseNs) return std::move(addresses).error();
    poll(nullptr, 0, Deadline::after(kPauseNs).poll_ms());
  }
}

Result<std::unique_ptr<TcpStoreClient>> connect_to_job_store(const LaunchInfo& launch,
                                                             const Secret& secret, Log* log,
                                                             Deadline deadline,
                                                             TcpStoreClient::Options options) {
  if (secret && launch.agent_store && log != nullptr) {
    log->info(
        "the store of torchrun's agent cannot ask for a secret: it carries addresses and nonces "
        "only, and the connections between ranks prove the secret");
  }
  if (!launch.agent_store) options.secret = Secret(secret);
  bool told = log == nullptr, told_waiting = told;
  const Deadline patience = Deadline::after(kPatienceNs);
  const auto find_addresses = [&](Deadline until) {
    auto addresses = job_store_addresses(launch, until);
    if (!addresses && addresses.error().code() == Code::kNotFound) {
      tell_unresolved(addresses.error(), log, &told);
    } else if (addresses && patience.passed() && !std::exchange(told_waiting, true)) {
      log->info(fmt::format("rank {}: still waiting for the store at {}, which {} serves",
                            launch.rank, addresses->front().text,
                            launch.agent_store ? "torchrun's agent" : "rank 0"));
    }
    return addresses;
  };
  return TcpStoreClient::connect(find_addresses, deadline, options);
}

}  // namespace amxt::comm
