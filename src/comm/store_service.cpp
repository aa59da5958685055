#include "comm/store_service.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>

namespace amxt::comm {
namespace {

// The longest request of one key is a compare_set; those of several keys get no more. Whoever sends more before it is whole is cut off.
constexpr size_t kMaxRequestBytes = 2 * kMaxStoreValueBytes + kMaxStoreKeyBytes + 64;
constexpr size_t kMaxReplyBytes = kMaxRequestBytes;
// With this much to take first, a connection's next requests wait.
constexpr size_t kPendingReplyBytes = 64 << 10;
// Of an empty buffer.
constexpr size_t kKeptBytes = 1 << 10;

size_t cost(std::string_view key, std::string_view value) {
  return key.size() + value.size() + 128;  // the entry itself
}

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::string_view text_of(const Challenge& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

// Reads a request from the front of what has arrived; what it gives points there.
class StoreService::Request {
 public:
  enum class State { kWhole, kPartial, kBad };

  explicit Request(std::string_view bytes) : left_(bytes), all_(bytes.size()) {}

  template <typename Integer>
  Integer integer() {
    Integer value{};
    if (!take(sizeof value)) return value;
    std::memcpy(&value, taken_.data(), sizeof value);
    return value;
  }
  template <size_t kCount>
  std::array<uint8_t, kCount> bytes() {
    std::array<uint8_t, kCount> value{};
    if (take(kCount)) std::memcpy(value.data(), taken_.data(), kCount);
    return value;
  }
  std::string_view string(size_t limit) {
    const auto length = integer<uint64_t>();
    if (state_ != State::kWhole) return {};
    if (length > limit) {
      state_ = State::kBad;
      return {};
    }
    return take(length) ? taken_ : std::string_view();
  }
  std::string_view key() { return string(kMaxStoreKeyBytes); }
  std::string_view value() { return string(kMaxStoreValueBytes); }
  // 1 to kMaxStoreKeys.
  uint64_t count() {
    const auto count = integer<uint64_t>();
    if (whole() && (count == 0 || count > kMaxStoreKeys)) state_ = State::kBad;
    return whole() ? count : 0;
  }
  std::vector<std::string_view> keys() {
    std::vector<std::string_view> keys;
    for (uint64_t left = count(); left > 0 && whole(); --left) keys.push_back(key());
    return keys;
  }
  void bad() { state_ = State::kBad; }
  bool whole() const { return state_ == State::kWhole; }
  State state() const { return state_; }
  size_t used() const { return all_ - left_.size(); }

 private:
  bool take(size_t count) {
    if (state_ != State::kWhole) return false;
    if (left_.size() < count) {
      state_ = State::kPartial;
      return false;
    }
    taken_ = left_.substr(0, count);
    left_.remove_prefix(count);
    return true;
  }

  std::string_view left_, taken_;
  size_t all_;
  State state_ = State::kWhole;
};

StoreService::Connection& StoreService::open() { return connections_.emplace_back(); }

void StoreService::close(Connection& connection) {
  held_bytes_ -= connection.held_;
  connections_.remove_if([&](const Connection& each) { return &each == &connection; });
}

void StoreService::receive(Connection& connection, std::string_view bytes) {
  if (connection.dropped_) return;
  connection.in_.append(bytes);
  serve(connection);
}

void StoreService::taken(Connection& connection, size_t bytes) {
  connection.out_.erase(0, bytes);
  serve(connection);
}

// All whole requests that have arrived, as long as their replies are taken.
void StoreService::serve(Connection& connection) {
  size_t used = 0;
  while (!connection.dropped_ && used < connection.in_.size() &&
         connection.out_.size() < kPendingReplyBytes) {
    Request request(std::string_view(connection.in_).substr(used));
    const size_t before = connection.out_.size();
    if (!serve_one(connection, request)) {
      connection.out_.resize(std::min(before, connection.out_.size()));
      if (request.state() == Request::State::kBad) drop(connection);
      break;
    }
    used += request.used();
  }
  connection.in_.erase(0, used);
  if (connection.in_.size() > kMaxRequestBytes) drop(connection);
  settle(connection);
}

// False when the request is not whole yet or not a request.
bool StoreService::serve_one(Connection& connection, Request& request) {
  switch (connection.state_) {
    case Connection::State::kGreeting:
      return greet(connection, request);
    case Connection::State::kProving:
      return prove(connection, request);
    case Connection::State::kAnswering:
      return judge(connection, request);
    case Connection::State::kServed:
      answer(connection, request);
      return request.whole();
    case Connection::State::kRefused:
      request.bytes<1>();  // whatever it says
      return request.whole();
  }
  return false;
}

bool StoreService::greet(Connection& connection, Request& request) {
  const auto operation = static_cast<StoreOperation>(request.integer<uint8_t>());
  if (request.whole() && operation != StoreOperation::kValidate) request.bad();
  const auto magic = request.integer<uint32_t>();
  if (request.whole() && magic != kStoreMagic) request.bad();
  if (!request.whole()) return false;
  connection.state_ = options_.secret ? Connection::State::kProving : Connection::State::kServed;
  return true;
}

bool StoreService::prove(Connection& connection, Request& request) {
  const auto operation = static_cast<StoreOperation>(request.integer<uint8_t>());
  if (request.whole() && operation == StoreOperation::kPing) {
    request.integer<uint32_t>();
    if (!request.whole()) return false;
    append_integer(&connection.out_, kStoreAsksForSecret);
    connection.state_ = Connection::State::kRefused;
    return true;
  }
  if (request.whole() && operation != StoreOperation::kProve) request.bad();
  connection.clients_ = request.bytes<kChallengeBytes>();
  if (!request.whole()) return false;
  auto challenge = make_challenge();
  if (!challenge) {
    request.bad();
    return false;
  }
  connection.servers_ = *challenge;
  connection.out_ += text_of(connection.servers_);
  connection.state_ = Connection::State::kAnswering;
  return true;
}

bool StoreService::judge(Connection& connection, Request& request) {
  const Answer answer = request.bytes<kAnswerBytes>();
  if (!request.whole()) return false;
  const auto right = [&](Role role) {
    return answer_challenge(options_.secret, role, connection.clients_, connection.servers_,
                            kStorePurpose);
  };
  const bool is_right = is_same(answer, right(Role::kClient));
  connection.out_ += text_of(is_right ? right(Role::kServer) : Answer{});
  connection.state_ = is_right ? Connection::State::kServed : Connection::State::kRefused;
  return true;
}

void StoreService::answer(Connection& connection, Request& request) {
  const auto operation = static_cast<StoreOperation>(request.integer<uint8_t>());
  // Until a wait is answered only its end may be asked for.
  const bool waits = connection.wait_ != Connection::Wait::kNone;
  if (waits && operation != StoreOperation::kCancelWait) return request.bad();
  std::string* const out = &connection.out_;
  switch (operation) {
    case StoreOperation::kSet:
      set(request);
      break;
    case StoreOperation::kCompareSet:
      compare_set(request, out);
      break;
    case StoreOperation::kGet:
      get(request, out);
      break;
    case StoreOperation::kAdd:
      add(request, out);
      break;
    case StoreOperation::kCheck: {
      const auto keys = request.keys();
      const bool ready = std::all_of(keys.begin(), keys.end(), [&](std::string_view key) {
        return values_.contains(std::string(key));
      });
      append_integer(out, ready ? kStoreReady : kStoreNotReady);
      break;
    }
    case StoreOperation::kWait:
      wait(connection, request);
      break;
    case StoreOperation::kKeyCount:
      append_integer<int64_t>(out, static_cast<int64_t>(values_.size()));
      break;
    case StoreOperation::kDelete:
      remove(request, out);
      break;
    case StoreOperation::kAppend:
      append(request);
      break;
    case StoreOperation::kMultiGet:
      multi_get(request, out);
      break;
    case StoreOperation::kMultiSet:
      multi_set(request);
      break;
    case StoreOperation::kCancelWait:
      connection.wait_ = Connection::Wait::kNone;
      connection.awaited_.clear();
      append_integer(out, kStoreWaitCancelled);
      break;
    case StoreOperation::kPing:
      append_integer(out, request.integer<uint32_t>());
      return;
    case StoreOperation::kListKeys:
      list_keys(request, out);
      break;
    case StoreOperation::kBarrier:
      barrier(connection, request);
      break;
    case StoreOperation::kProve:
      // Not among what follows a proof.
      if (options_.secret) return request.bad();
      request.bytes<kChallengeBytes>();
      if (!request.whole()) return;
      connection.has_asked_for_secret_ = true;
      *out += text_of(Challenge{});
      return;
    case StoreOperation::kValidate:
    default:
      return request.bad();
  }
  if (request.whole()) connection.in_use_ = true;
}

std::string_view StoreService::value_of(std::string_view key) const {
  const auto found = values_.find(std::string(key));
  return found == values_.end() ? std::string_view() : std::string_view(found->second);
}

void StoreService::set(Request& request) {
  const std::string_view key = request.key();
  const std::string_view value = request.value();
  if (request.whole()) store(request, key, value);
}

void StoreService::append(Request& request) {
  const std::string_view key = request.key();
  const std::string_view value = request.value();
  if (!request.whole()) return;
  std::string longer(value_of(key));
  if (longer.size() + value.size() > kMaxStoreValueBytes) return request.bad();
  longer += value;
  store(request, key, longer);
}

void StoreService::multi_set(Request& request) {
  std::vector<std::pair<std::string_view, std::string_view>> pairs;
  for (uint64_t left = request.count(); left > 0 && request.whole(); --left) {
    const std::string_view key = request.key();
    pairs.emplace_back(key, request.value());
  }
  for (const auto& [key, value] : pairs) {
    if (request.whole()) store(request, key, value);
  }
}

void StoreService::get(Request& request, std::string* out) {
  const std::string_view key = request.key();
  if (request.whole()) append_string(out, value_of(key));
}

void StoreService::multi_get(Request& request, std::string* out) {
  const auto keys = request.keys();
  if (!request.whole()) return;
  for (const std::string_view key : keys) {
    append_string(out, value_of(key));
    if (out->size() > kMaxReplyBytes) return request.bad();
  }
}

void StoreService::compare_set(Request& request, std::string* out) {
  const std::string_view key = request.key();
  const std::string_view expected = request.value();
  const std::string_view desired = request.value();
  if (!request.whole()) return;
  const auto found = values_.find(std::string(key));
  const bool missing = found == values_.end();
  if (missing ? expected.empty() : found->second == expected) {
    append_string(out, desired);
    store(request, key, desired);
  } else {
    // As torch's store does: a missing key with an expectation is answered with the expectation.
    append_string(out, missing ? expected : std::string_view(found->second));
  }
}

// A number as decimal text, 0 where there is none; false when it is no number or would be too large.
bool StoreService::sum(Request& request, std::string_view key, int64_t amount, int64_t* result) {
  const auto found = values_.find(std::string(key));
  const auto before = found == values_.end() ? 0 : parse_number(found->second);
  if (!before || __builtin_add_overflow(*before, amount, result)) {
    request.bad();
    return false;
  }
  store(request, key, std::to_string(*result));
  return request.whole();
}

void StoreService::add(Request& request, std::string* out) {
  const std::string_view key = request.key();
  const auto amount = request.integer<int64_t>();
  int64_t result = 0;
  if (request.whole() && sum(request, key, amount, &result)) append_integer(out, result);
}

void StoreService::wait(Connection& connection, Request& request) {
  const auto keys = request.keys();
  if (!request.whole()) return;
  connection.wait_ = Connection::Wait::kKeys;
  connection.awaited_.assign(keys.begin(), keys.end());
  wake_up();
}

void StoreService::barrier(Connection& connection, Request& request) {
  const std::string_view key = request.key();
  const auto world = request.integer<int64_t>();
  int64_t count = 0;
  if (!request.whole()) return;
  connection.wait_ = Connection::Wait::kBarrier;
  connection.awaited_.assign(1, std::string(key));
  connection.world_ = world;
  (void)sum(request, key, 1, &count);
}

void StoreService::remove(Request& request, std::string* out) {
  const std::string_view key = request.key();
  if (!request.whole()) return;
  const auto found = values_.find(std::string(key));
  append_integer<int64_t>(out, found != values_.end() ? 1 : 0);
  if (found == values_.end()) return;
  stored_bytes_ -= cost(found->first, found->second);
  values_.erase(found);
}

void StoreService::list_keys(Request& request, std::string* out) {
  append_integer<int64_t>(out, static_cast<int64_t>(values_.size()));
  for (const auto& [key, value] : values_) {
    append_string(out, key);
    if (out->size() > kMaxReplyBytes) return request.bad();
  }
}

// A request that would pass the bound on memory is refused like a malformed one.
void StoreService::store(Request& request, std::string_view key, std::string_view value) {
  const auto found = values_.find(std::string(key));
  const size_t old = found == values_.end() ? 0 : cost(key, found->second);
  if (stored_bytes_ - old + cost(key, value) > options_.max_stored_bytes) return request.bad();
  stored_bytes_ += cost(key, value) - old;
  values_[std::string(key)] = value;
  wake_up();
}

bool StoreService::has_come(const Connection& connection) const {
  if (connection.wait_ == Connection::Wait::kKeys) {
    return std::all_of(connection.awaited_.begin(), connection.awaited_.end(),
                       [&](const std::string& key) { return values_.contains(key); });
  }
  return parse_number(value_of(connection.awaited_.front())).value_or(0) >= connection.world_;
}

void StoreService::wake_up() {
  for (Connection& connection : connections_) {
    if (connection.wait_ == Connection::Wait::kNone || !has_come(connection)) continue;
    connection.wait_ = Connection::Wait::kNone;
    connection.awaited_.clear();
    append_integer(&connection.out_, kStoreStopWaiting);
  }
}

void StoreService::drop(Connection& connection) {
  connection.dropped_ = true;
  connection.wait_ = Connection::Wait::kNone;
  connection.in_ = {};
  connection.out_ = {};
  connection.awaited_ = {};
}

// Counts again what is held for the connection; above the bound on all together, who holds most goes.
void StoreService::settle(Connection& connection) {
  for (std::string* const buffer : {&connection.in_, &connection.out_}) {
    if (buffer->empty() && buffer->capacity() > kKeptBytes) *buffer = {};
  }
  size_t held = connection.in_.capacity() + connection.out_.capacity();
  for (const std::string& key : connection.awaited_) held += key.capacity() + sizeof key;
  held_bytes_ += held - connection.held_;
  connection.held_ = held;
  while (held_bytes_ > options_.max_held_bytes) {
    const auto most = std::max_element(
        connections_.begin(), connections_.end(),
        [](const Connection& one, const Connection& other) { return one.held_ < other.held_; });
    drop(*most);
    held_bytes_ -= most->held_;
    most->held_ = 0;
  }
}

}  // namespace amxt::comm
