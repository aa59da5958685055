#include "comm/identity.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <type_traits>
#include <utility>

#include "base/text.h"
#include "base/version.h"
#include "comm/rendezvous_entry.h"

namespace amxt::comm {

static_assert(std::is_trivially_copyable_v<Identity>);

Result<Identity> own_identity(const LaunchInfo& launch, const GroupOptions& options) {
  Identity self;
  self.rank = launch.rank;
  self.world_size = launch.world_size;
  self.local_rank = launch.local_rank;
  self.local_world_size = launch.local_world_size;
  self.pid = getpid();
  self.threads = options.threads;
  self.allows_unauthenticated_data = options.allow_unauthenticated_data ? 1 : 0;
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
  set_word(self.host, host_name());
  set_word(self.build, plain_word(fmt::format("{}-{}", kVersion, kGitCommit)));
  set_word(self.configuration, options.configuration);
  return self;
}

std::string rank_text(const Identity& identity) {
  const std::string host = plain_word(get_word(identity.host));
  return fmt::format("rank {} (pid {}{}{})", identity.rank, identity.pid,
                     host.empty() ? "" : " on host ", host);
}

Error difference(const Identity& one, const Identity& other, const std::string& what,
                 const std::string& ones, const std::string& others) {
  if (one.rank > other.rank) return difference(other, one, what, others, ones);
  return Error(Code::kMismatch, fmt::format("{} was started with {} {}, {} with {}", rank_text(one),
                                            what, ones, rank_text(other), others))
      .with_rank(other.rank);
}

Error there_twice(const Identity& one, const Identity& other) {
  const auto place = [](const Identity& identity) {
    return std::pair(plain_word(get_word(identity.host)), identity.pid);
  };
  auto first = place(one), second = place(other);
  if (second < first) std::swap(first, second);
  const std::string text =
      first.first.empty() ? fmt::format("pids {} and {}", first.second, second.second)
                          : fmt::format("pid {} on host {} and pid {} on host {}", first.second,
                                        first.first, second.second, second.first);
  return Error(Code::kMismatch, fmt::format("rank {} is there twice: {}", one.rank, text))
      .with_rank(one.rank);
}

Status compare(const Identity& self, const Identity& peer) {
  if (peer.rank == self.rank) return there_twice(self, peer);
  if (peer.world_size != self.world_size) {
    return difference(self, peer, "a world size of", std::to_string(self.world_size),
                      std::to_string(peer.world_size));
  }
  if (peer.rank < 0 || peer.rank >= self.world_size) {
    return Error(Code::kMismatch,
                 fmt::format("{} is outside a world of {} ranks", rank_text(peer), self.world_size))
        .with_rank(peer.rank);
  }
  if (peer.allows_unauthenticated_data != self.allows_unauthenticated_data) {
    return difference(self, peer, "allow_unauthenticated_data",
                      std::to_string(self.allows_unauthenticated_data),
                      std::to_string(peer.allows_unauthenticated_data));
  }
  const std::pair<const char*, std::string> words[] = {
      {"amxtrain", get_word(self.build)}, {"configuration", get_word(self.configuration)}};
  const std::string others[] = {get_word(peer.build), get_word(peer.configuration)};
  for (size_t i = 0; i < std::size(words); ++i) {
    if (words[i].second == others[i]) continue;
    return difference(self, peer, words[i].first, quote(words[i].second), quote(others[i]));
  }
  return {};
}

}  // namespace amxt::comm
