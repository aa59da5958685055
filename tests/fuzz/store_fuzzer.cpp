// Whatever connections say to the store, in whatever pieces: what is stored and held stays within its bounds, and who is dropped hears
// nothing more.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "comm/store_service.h"

namespace {

constexpr size_t kConnections = 4;

void check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

// A byte says which connection speaks (its lower two bits), whether it closes first (bit 2) or greets first (bit 3), the next one how much.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using amxt::comm::StoreService;
  StoreService::Options options;
  options.max_stored_bytes = 1 << 16;
  options.max_held_bytes = 1 << 18;
  if (size > 0 && data[0] == 0xff) options.secret = amxt::comm::Secret("a secret of enough bytes");
  StoreService service(options);
  std::vector<StoreService::Connection*> connections(kConnections, nullptr);
  std::string_view left(reinterpret_cast<const char*>(data), size);
  while (left.size() >= 2) {
    const auto how = static_cast<uint8_t>(left[0]);
    StoreService::Connection*& connection = connections[how % kConnections];
    const size_t count = std::min<size_t>(static_cast<uint8_t>(left[1]), left.size() - 2);
    if (connection != nullptr && (how & 4) != 0) {
      service.close(*connection);
      connection = nullptr;
    }
    if (connection == nullptr) connection = &service.open();
    if ((how & 8) != 0) service.receive(*connection, {"\x00\xce\xf7\x85\x3c", 5});
    service.receive(*connection, left.substr(2, count));
    left.remove_prefix(2 + count);
    for (StoreService::Connection* each : connections) {
      if (each == nullptr) continue;
      check(!each->is_dropped() || each->replies().empty());
      service.taken(*each, each->replies().size() / 2);
      service.taken(*each, each->replies().size());
    }
    check(service.stored_bytes() <= options.max_stored_bytes);
    check(service.held_bytes() <= options.max_held_bytes);
  }
  for (StoreService::Connection* each : connections) {
    if (each != nullptr) service.close(*each);
  }
  check(service.held_bytes() == 0);
  return 0;
}
