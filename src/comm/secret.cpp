#include "comm/secret.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/text.h"
#include "comm/socket.h"

namespace amxt::comm {
namespace {

constexpr std::string_view kLabel = "amxtrain 1";

Status check_file(const Descriptor& file) {
  struct stat info{};
  if (fstat(file.get(), &info) != 0) return system_error("stat", errno);
  if (!S_ISREG(info.st_mode)) return Error(Code::kInvalidArgument, "not a regular file");
  if (info.st_uid != geteuid() && info.st_uid != 0) {
    return Error(Code::kInvalidArgument,
                 fmt::format("belongs to user {}, not to {} or root", info.st_uid, geteuid()));
  }
  if ((info.st_mode & 077) != 0) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("has mode {:04o}, which lets others at it: chmod 600", info.st_mode & 07777));
  }
  return {};
}

Result<Secret> read_secret(const std::string& path) {
  // Non-blocking: a FIFO must not stop the start.
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) return system_error("open", errno);
  AMXT_TRY(check_file(file));
  char bytes[Secret::kMaxBytes + 2];
  size_t count = 0;
  while (count < sizeof bytes) {
    const ssize_t got = read(file.get(), bytes + count, sizeof bytes - count);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("read", errno);
    if (got == 0) break;
    count += static_cast<size_t>(got);
  }
  const bool whole = count < sizeof bytes;
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  while (whole && count > 0 && is_space(bytes[count - 1])) --count;
  Secret secret(std::string_view(bytes, count));
  OPENSSL_cleanse(bytes, sizeof bytes);
  if (count < Secret::kMinBytes || count > Secret::kMaxBytes) {
    return Error(Code::kInvalidArgument, fmt::format("holds {} bytes, a secret has {} to {}",
                                                     whole ? std::to_string(count) : "more",
                                                     Secret::kMinBytes, Secret::kMaxBytes));
  }
  return secret;
}

}  // namespace

Secret::~Secret() { wipe(); }

Secret::Secret(Secret&& other) noexcept : bytes_(other.bytes_) { other.wipe(); }

Secret& Secret::operator=(Secret&& other) noexcept {
  if (this != &other) {
    wipe();
    bytes_ = other.bytes_;
    other.wipe();
  }
  return *this;
}

void Secret::wipe() {
  OPENSSL_cleanse(bytes_.data(), bytes_.size());
  bytes_.clear();
}

Result<Secret> load_secret(const std::string& path) {
  auto secret = read_secret(path);
  if (!secret) {
    return std::move(secret).error().in(
        fmt::format("secret file {} (AMXTRAIN_SECRET_FILE)", quote(path)));
  }
  return secret;
}

Result<Challenge> make_challenge() {
  Challenge challenge;
  if (getrandom(challenge.data(), challenge.size(), 0) != ssize_t{kChallengeBytes}) {
    return system_error("getrandom", errno);
  }
  return challenge;
}

Answer answer_challenge(const Secret& secret, Role role, const Challenge& clients,
                        const Challenge& servers, std::string_view purpose) {
  // All parts before the last have a fixed length: no two calls hash the same bytes.
  std::string text(kLabel);
  text += static_cast<char>(role);
  text.append(clients.begin(), clients.end());
  text.append(servers.begin(), servers.end());
  text += purpose;
  Answer answer{};
  unsigned int length = 0;
  const std::string_view key = secret.bytes();
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), answer.data(), &length);
  return answer;
}

bool is_same(const Answer& one, const Answer& other) {
  return CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0;
}

}  // namespace amxt::comm
