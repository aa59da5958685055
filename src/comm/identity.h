// Identity: what a rank says about itself when it meets another, and what two ranks of one job must agree on.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "comm/launch.h"

namespace amxt::comm {

// 128 random bits of one process and one attempt to join.
struct Nonce {
  uint64_t words[2] = {0, 0};
  bool operator==(const Nonce&) const = default;
};

// Sent as it lies in memory, between processes of one build.
struct Identity {
  int32_t rank = -1, world_size = 0, local_rank = -1, local_world_size = 0;
  int32_t pid = 0;
  int32_t threads = 0;
  int32_t allows_unauthenticated_data = 0, reserved = 0;
  Nonce nonce;
  uint64_t cpus[16] = {};        // affinity mask, CPU 0 is bit 0 of word 0
  char build[64] = {};           // version and commit of the library
  char configuration[128] = {};  // GroupOptions.configuration
  char host[64] = {};            // empty on a job of one machine
  char address[48] = {};         // where others reach it; empty on a job of one machine
};

// Cut to fit, always terminated; and back, whatever was sent.
template <size_t size>
void set_word(char (&word)[size], const std::string& text) {
  const size_t count = text.copy(word, size - 1);
  for (size_t i = count; i < size; ++i) word[i] = '\0';
}
template <size_t size>
std::string get_word(const char (&word)[size]) {
  const std::string text(word, size);
  return text.substr(0, text.find('\0'));
}

// With a new nonce; without host and address.
Result<Identity> own_identity(const LaunchInfo& launch, const GroupOptions& options);

// "rank 2 (pid 1234)", "rank 2 (pid 1234 on host b)"
std::string rank_text(const Identity& identity);

// Both sides of a difference say the same: "<lower rank> was started with <what> <one>, <higher rank> with <other>".
Error difference(const Identity& one, const Identity& other, const std::string& what,
                 const std::string& ones, const std::string& others);
// What the processes of one job must agree on.
Status compare(const Identity& self, const Identity& peer);
Error there_twice(const Identity& one, const Identity& other);

}  // namespace amxt::comm
