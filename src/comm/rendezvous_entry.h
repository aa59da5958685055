// The lines that ranks leave in the store's list: who is there, and why someone gave up.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "comm/control_message.h"
#include "comm/identity.h"
#include "comm/socket.h"

namespace amxt::comm {

struct Entry {
  int rank = -1, world_size = 0, pid = 0;
  uint32_t protocol = 0;
  Nonce nonce;
  std::string machine, host, build;
  std::string node;  // the node's id as given, may be empty
  std::string
      address;  // "10.0.0.1:4711" or "[fd00::1]:4711"; empty: it listens on its machine only
};

// Back from an entry's address; numbers only.
std::optional<Address> parse_address(std::string_view text);

// Letters, digits, '.', '-' and '_'; anything else becomes '_'; cut at 63 characters.
std::string plain_word(std::string text);
// What this machine calls itself, as a plain word.
std::string host_name();
// The abstract unix socket of the rank with that nonce.
std::string socket_name(const Nonce& nonce);

std::string entry_text(const Entry& entry);
// Anything may lie in a store: nothing when it is no entry.
std::optional<Entry> parse_entry(std::string_view text);

std::string note_text(const Error& error);
std::optional<Error> parse_note(std::string_view text);

}  // namespace amxt::comm
