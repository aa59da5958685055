#include "comm/tcp_store_client.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/text.h"
#include "comm/tcp_store_protocol.h"

namespace amxt::comm {
namespace {

constexpr int64_t kFirstPauseNs = 10'000'000;
constexpr int64_t kLongestPauseNs = 500'000'000;
constexpr int64_t kCancelTimeoutNs = 5'000'000'000;

void pause_until(Deadline deadline) { poll(nullptr, 0, deadline.poll_ms()); }

Status check_size(std::string_view key, std::string_view value = {}) {
  if (key.size() > kMaxStoreKeyBytes) {
    return Error(Code::kLimit, fmt::format("store key {} has {} bytes, the limit is {}", quote(key),
                                           key.size(), kMaxStoreKeyBytes));
  }
  if (value.size() > kMaxStoreValueBytes) {
    return Error(Code::kLimit,
                 fmt::format("the value of store key {} has {} bytes, the limit is {}", quote(key),
                             value.size(), kMaxStoreValueBytes));
  }
  return {};
}

// A store never takes zero keys: some versions read the first one unasked.
Result<std::string> keys_request(StoreOperation operation, std::span<const std::string> keys) {
  if (keys.empty() || keys.size() > kMaxStoreKeys) {
    return Error(Code::kInvalidArgument,
                 fmt::format("{} store keys in one request, 1 to {} are allowed", keys.size(),
                             kMaxStoreKeys));
  }
  std::string request = store_request(operation);
  append_integer<uint64_t>(&request, keys.size());
  for (const std::string& key : keys) {
    AMXT_TRY(check_size(key));
    append_string(&request, key);
  }
  return request;
}

// Whether another attempt may help: nobody there yet, or a full backlog.
bool is_worth_retrying(const Error& error) { return error.code() == Code::kIo; }

}  // namespace

Result<std::unique_ptr<TcpStoreClient>> TcpStoreClient::connect(const std::string& host, int port,
                                                                Deadline deadline) {
  return connect(host, port, deadline, Options());
}

Result<std::unique_ptr<TcpStoreClient>> TcpStoreClient::connect(const std::string& host, int port,
                                                                Deadline deadline,
                                                                const Options& options) {
  return connect([&](Deadline until) { return resolve(host, port, until); }, deadline, options);
}

Result<std::unique_ptr<TcpStoreClient>> TcpStoreClient::connect(const FindAddresses& find_addresses,
                                                                Deadline deadline,
                                                                const Options& options) {
  int64_t pause_ns = kFirstPauseNs;
  for (;;) {
    const auto addresses = find_addresses(deadline);
    std::optional<Error> last;
    if (!addresses) {
      last = addresses.error();
      if (last->code() != Code::kNotFound) return *std::move(last);
    } else {
      for (const Address& address : *addresses) {
        auto client = try_connect(address, deadline, options);
        if (client) return client;
        if (!is_worth_retrying(client.error())) return client;
        last = std::move(client).error();
      }
    }
    if (deadline.left_ns() <= pause_ns) {
      return Error(last->code() == Code::kIo ? Code::kTimeout : last->code(), last->message(),
                   last->sys_errno());
    }
    pause_until(deadline.earlier(Deadline::after(pause_ns)));
    pause_ns = std::min(2 * pause_ns, kLongestPauseNs);
  }
}

Result<std::unique_ptr<TcpStoreClient>> TcpStoreClient::try_connect(const Address& address,
                                                                    Deadline deadline,
                                                                    const Options& options) {
  auto socket = connect_tcp(address, deadline);
  if (!socket) {
    const int error = socket.error().sys_errno();
    const char* what = error == ECONNREFUSED ? "nothing listens there" : "not reached";
    return std::move(socket).error().in(fmt::format("store {}: {}", address.text, what));
  }
  std::unique_ptr<TcpStoreClient> client(
      new TcpStoreClient(std::move(*socket), address.text, options));
  const Deadline answer_by = deadline.earlier(Deadline::after(options.ping_timeout_ns));
  auto greeted = client->greet(answer_by);
  if (!greeted && greeted.error().code() == Code::kTimeout) {
    return Error(
        Code::kTimeout,
        fmt::format("store {}: accepts connections and never answers: not a c10d TCPStore, "
                    "or one that is stopped",
                    address.text));
  }
  if (!greeted && greeted.error().code() == Code::kIo) {
    return std::move(greeted).error().in(fmt::format(
        "store {}: closes new connections: not a c10d TCPStore{}, or one that is full",
        address.text, options.secret ? " that knows secrets (AMXTRAIN_SECRET_FILE)" : ""));
  }
  if (!greeted) return std::move(greeted).error().in("store " + address.text);
  return client;
}

Status TcpStoreClient::greet(Deadline deadline) {
  // One segment: a store may judge the first byte and the magic number by one read.
  std::string hello = store_request(StoreOperation::kValidate);
  append_integer(&hello, kStoreMagic);
  AMXT_TRY(send_all(socket_.get(), hello, deadline));
  if (options_.secret) AMXT_TRY(prove(deadline));
  return ping(deadline);
}

Status TcpStoreClient::prove(Deadline deadline) {
  AMXT_ASSIGN(const Challenge clients, make_challenge());
  std::string request = store_request(StoreOperation::kProve);
  request.append(reinterpret_cast<const char*>(clients.data()), clients.size());
  AMXT_TRY(send_all(socket_.get(), request, deadline));
  Challenge servers{};
  AMXT_TRY(receive_all(socket_.get(), reinterpret_cast<char*>(servers.data()), servers.size(),
                       deadline));
  if (servers == Challenge{}) {
    return Error(Code::kUnsupported,
                 "rank 0 has no secret, and this rank has one (AMXTRAIN_SECRET_FILE)");
  }
  const auto answer = [&](Role role) {
    return answer_challenge(options_.secret, role, clients, servers, kStorePurpose);
  };
  const Answer own = answer(Role::kClient);
  AMXT_TRY(
      send_all(socket_.get(), {reinterpret_cast<const char*>(own.data()), own.size()}, deadline));
  Answer theirs{};
  AMXT_TRY(
      receive_all(socket_.get(), reinterpret_cast<char*>(theirs.data()), theirs.size(), deadline));
  if (!is_same(theirs, answer(Role::kServer))) {
    return Error(Code::kMismatch,
                 "rank 0 does not have the same secret as this rank (AMXTRAIN_SECRET_FILE)");
  }
  return {};
}

Status TcpStoreClient::ping(Deadline deadline) {
  const auto nonce = static_cast<uint32_t>(getpid());
  std::string ping = store_request(StoreOperation::kPing);
  append_integer(&ping, nonce);
  AMXT_TRY(send_all(socket_.get(), ping, deadline));
  uint32_t echo = 0;
  char bytes[sizeof echo];
  AMXT_TRY(receive_all(socket_.get(), bytes, sizeof bytes, deadline));
  std::memcpy(&echo, bytes, sizeof echo);
  if (echo == kStoreAsksForSecret) {
    return Error(Code::kMismatch,
                 "rank 0 asks for a secret, and this rank has none (AMXTRAIN_SECRET_FILE)");
  }
  if (echo != nonce) {
    return Error(Code::kCommProtocol, fmt::format("not a c10d TCPStore: it answers {}",
                                                  quote(std::string_view(bytes, sizeof bytes))));
  }
  return {};
}

Error TcpStoreClient::broken(Error error) {
  socket_.reset();
  return std::move(error).in("store " + address_);
}

Status TcpStoreClient::send(std::string_view request, Deadline deadline) {
  if (!socket_) {
    return Error(Code::kInvalidState,
                 fmt::format("store {}: the connection was closed by an earlier error", address_));
  }
  auto sent = send_all(socket_.get(), request, reply_by(deadline));
  if (!sent) return broken(std::move(sent).error());
  return {};
}

Status TcpStoreClient::receive(char* bytes, size_t count, Deadline deadline) {
  auto received = receive_all(socket_.get(), bytes, count, reply_by(deadline));
  if (!received) return broken(std::move(received).error());
  return {};
}

template <typename Integer>
Result<Integer> TcpStoreClient::receive_integer(Deadline deadline) {
  char bytes[sizeof(Integer)];
  AMXT_TRY(receive(bytes, sizeof bytes, deadline));
  Integer value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

Result<std::string> TcpStoreClient::receive_string(Deadline deadline) {
  AMXT_ASSIGN(const uint64_t length, receive_integer<uint64_t>(deadline));
  if (length > kMaxStoreValueBytes) {
    return broken(Error(Code::kCommProtocol, fmt::format("a reply of {} bytes, the limit is {}",
                                                         length, kMaxStoreValueBytes)));
  }
  std::string text(length, '\0');
  AMXT_TRY(receive(text.data(), text.size(), deadline));
  return text;
}

Status TcpStoreClient::set(std::string_view key, std::string_view value, Deadline deadline) {
  AMXT_TRY(check_size(key, value));
  std::string request = store_request(StoreOperation::kSet);
  append_string(&request, key);
  append_string(&request, value);
  return send(request, deadline);
}

Result<std::string> TcpStoreClient::get(std::string_view key, Deadline deadline) {
  const std::string keys[] = {std::string(key)};
  AMXT_TRY(wait(keys, deadline));
  std::string request = store_request(StoreOperation::kGet);
  append_string(&request, key);
  AMXT_TRY(send(request, deadline));
  return receive_string(deadline);
}

// Some stores close the connection when a missing key is read, so it is asked for first.
Result<std::optional<std::string>> TcpStoreClient::find(std::string_view key, Deadline deadline) {
  const std::string keys[] = {std::string(key)};
  AMXT_ASSIGN(const bool there, check(keys, deadline));
  if (!there) return std::optional<std::string>();
  std::string request = store_request(StoreOperation::kGet);
  append_string(&request, key);
  AMXT_TRY(send(request, deadline));
  AMXT_ASSIGN(std::string value, receive_string(deadline));
  return std::optional<std::string>(std::move(value));
}

Status TcpStoreClient::wait(std::span<const std::string> keys, Deadline deadline) {
  AMXT_ASSIGN(const std::string request, keys_request(StoreOperation::kWait, keys));
  AMXT_TRY(send(request, deadline));
  char reply = 0;
  auto received = receive_all(socket_.get(), &reply, 1, deadline);
  if (!received && received.error().code() == Code::kTimeout) {
    AMXT_TRY(cancel_wait());
    return Error(Code::kTimeout,
                 fmt::format("store {}: key {}{} did not appear within the deadline", address_,
                             quote(keys[0]), keys.size() > 1 ? " or one of those after it" : ""));
  }
  if (!received) return broken(std::move(received).error());
  if (reply != static_cast<char>(kStoreStopWaiting)) {
    return broken(Error(Code::kCommProtocol, fmt::format("answers {} to a wait", int{reply})));
  }
  return {};
}

// The answer to the wait may be on its way: then the answer to the cancel comes behind it.
Status TcpStoreClient::cancel_wait() {
  const Deadline deadline = Deadline::after(kCancelTimeoutNs);
  AMXT_TRY(send(store_request(StoreOperation::kCancelWait), deadline));
  char reply = 0;
  AMXT_TRY(receive(&reply, 1, deadline));
  if (reply == static_cast<char>(kStoreStopWaiting)) AMXT_TRY(receive(&reply, 1, deadline));
  if (reply != static_cast<char>(kStoreWaitCancelled)) {
    return broken(
        Error(Code::kCommProtocol, fmt::format("answers {} to a cancelled wait", int{reply})));
  }
  return {};
}

Result<bool> TcpStoreClient::check(std::span<const std::string> keys, Deadline deadline) {
  AMXT_ASSIGN(const std::string request, keys_request(StoreOperation::kCheck, keys));
  AMXT_TRY(send(request, deadline));
  AMXT_ASSIGN(const uint8_t reply, receive_integer<uint8_t>(deadline));
  if (reply != kStoreReady && reply != kStoreNotReady) {
    return broken(Error(Code::kCommProtocol, fmt::format("answers {} to a check", int{reply})));
  }
  return reply == kStoreReady;
}

Result<int64_t> TcpStoreClient::add(std::string_view key, int64_t amount, Deadline deadline) {
  AMXT_TRY(check_size(key));
  std::string request = store_request(StoreOperation::kAdd);
  append_string(&request, key);
  append_integer(&request, amount);
  AMXT_TRY(send(request, deadline));
  return receive_integer<int64_t>(deadline);
}

Result<std::string> TcpStoreClient::compare_set(std::string_view key, std::string_view expected,
                                                std::string_view desired, Deadline deadline) {
  AMXT_TRY(check_size(key, expected));
  AMXT_TRY(check_size(key, desired));
  std::string request = store_request(StoreOperation::kCompareSet);
  append_string(&request, key);
  append_string(&request, expected);
  append_string(&request, desired);
  AMXT_TRY(send(request, deadline));
  return receive_string(deadline);
}

Result<bool> TcpStoreClient::remove(std::string_view key, Deadline deadline) {
  AMXT_TRY(check_size(key));
  std::string request = store_request(StoreOperation::kDelete);
  append_string(&request, key);
  AMXT_TRY(send(request, deadline));
  AMXT_ASSIGN(const int64_t removed, receive_integer<int64_t>(deadline));
  return removed > 0;
}

Result<int64_t> TcpStoreClient::key_count(Deadline deadline) {
  AMXT_TRY(send(store_request(StoreOperation::kKeyCount), deadline));
  return receive_integer<int64_t>(deadline);
}

}  // namespace amxt::comm
