// Secret: what the ranks of a job know and nobody else does (AMXTRAIN_SECRET_FILE), and the proof that a peer knows it too.
//
// Mutual challenge and response by HMAC-SHA256: each side of a connection sends 32 fresh random bytes; each answers with the HMAC, keyed
// by the secret, of its own role, both challenges and what the connection is for. The roles differ, so that an answer sent back proves
// nothing; the challenges are new, so that a recorded one doesn't either. Nothing is encrypted and nothing after the proof is signed.
//
// Invariant: the secret is in no error, log or answer, and its memory is wiped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace amxt::comm {

class Secret {
 public:
  static constexpr size_t kMinBytes = 16, kMaxBytes = 4096;

  Secret() = default;  // none: connections prove nothing
  explicit Secret(std::string_view bytes) : bytes_(bytes) {}
  ~Secret();
  Secret(const Secret&) = default;
  Secret& operator=(const Secret&) = delete;
  Secret(Secret&& other) noexcept;
  Secret& operator=(Secret&& other) noexcept;

  explicit operator bool() const { return !bytes_.empty(); }
  std::string_view bytes() const { return bytes_; }

 private:
  void wipe();
  std::string bytes_;
};

// The content of a file that belongs to this user or root and that nobody else may read (0600 or less); white space at its end, as editors
// leave it, does not count. Errors name the path: missing, not a file, open to others, kMinBytes to kMaxBytes.
Result<Secret> load_secret(const std::string& path);

inline constexpr size_t kChallengeBytes = 32, kAnswerBytes = 32;
using Challenge = std::array<uint8_t, kChallengeBytes>;
using Answer = std::array<uint8_t, kAnswerBytes>;
enum class Role : uint8_t {
  kClient = 1,
  kServer = 2
};  // who answers: the side that connected, the side that accepted

Result<Challenge> make_challenge();
// `purpose` is the same on both sides: what is connected, as "store" or the nonces of two ranks.
Answer answer_challenge(const Secret& secret, Role role, const Challenge& clients,
                        const Challenge& servers, std::string_view purpose);
// In a time that does not depend on where they differ.
bool is_same(const Answer& one, const Answer& other);

}  // namespace amxt::comm
