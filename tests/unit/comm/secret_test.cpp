#include "comm/secret.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace amxt::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class SecretFile : public testing::Test {
 protected:
  SecretFile() { std::filesystem::create_directories(folder_); }
  ~SecretFile() override { std::filesystem::remove_all(folder_); }

  Result<Secret> load(const std::string& content, mode_t mode = 0600) {
    std::ofstream(path_, std::ios::binary) << content;
    chmod(path_.c_str(), mode);
    return load_secret(path_);
  }

  const std::string folder_ = fmt::format("{}/secret-{}", testing::TempDir(), getpid());
  const std::string path_ = folder_ + "/key";
};

TEST_F(SecretFile, HoldsTheBytesWithoutTheNewlineAtTheEnd) {
  const auto plain = load("0123456789abcdef");
  ASSERT_TRUE(plain) << plain.error().message();
  EXPECT_EQ(plain->bytes(), "0123456789abcdef");
  EXPECT_EQ(load("0123456789abcdef\r\n")->bytes(), plain->bytes());
  const std::string binary("\0\n\xff key with spaces\0 inside", 26);
  EXPECT_EQ(load(binary)->bytes(), binary);
  EXPECT_EQ(load(std::string(Secret::kMaxBytes, 'k') + "\n")->bytes().size(), Secret::kMaxBytes);
}

TEST_F(SecretFile, OthersMustNotBeAbleToReadIt) {
  for (const mode_t mode : {0640, 0604, 0620, 0601, 0777}) {
    const auto secret = load("0123456789abcdef", mode);
    ASSERT_FALSE(secret) << "mode " << mode;
    EXPECT_EQ(secret.error().code(), Code::kInvalidArgument);
    EXPECT_THAT(secret.error().message(),
                AllOf(HasSubstr(path_), HasSubstr(fmt::format("{:04o}", mode)),
                      HasSubstr("chmod 600"), Not(HasSubstr("0123456789abcdef"))));
  }
  EXPECT_TRUE(load("0123456789abcdef", 0400));
}

TEST_F(SecretFile, TooShortAndTooLongAreRefusedWithTheLimits) {
  for (const std::string& content :
       {std::string(), std::string("0123456789abcde"), std::string("0123456789abcde\n\n\n\n"),
        std::string(Secret::kMaxBytes + 1, 'k')}) {
    const auto secret = load(content);
    ASSERT_FALSE(secret) << content.size() << " bytes";
    EXPECT_THAT(secret.error().message(), AllOf(HasSubstr("16 to 4096"), HasSubstr(path_)));
  }
  EXPECT_FALSE(load(std::string(1 << 20, 'k')));
}

TEST_F(SecretFile, WhatIsNoFileIsNamed) {
  const auto missing = load_secret(folder_ + "/nothing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), Code::kNotFound);
  EXPECT_THAT(missing.error().message(), HasSubstr("nothing"));
  const auto directory = load_secret(folder_);
  ASSERT_FALSE(directory);
  EXPECT_THAT(directory.error().message(), HasSubstr("not a regular file"));
  ASSERT_EQ(mkfifo((folder_ + "/fifo").c_str(), 0600), 0);
  EXPECT_FALSE(load_secret(folder_ + "/fifo"));
}

Challenge challenge(uint8_t first) {
  Challenge bytes;
  for (uint8_t& byte : bytes) byte = first++;
  return bytes;
}

std::string hex(const Answer& answer) {
  std::string text;
  for (const uint8_t byte : answer) text += fmt::format("{:02x}", byte);
  return text;
}

// Worked out with Python's hmac module: HMAC-SHA256(key, b"amxtrain 1" + role + clients + servers + purpose).
TEST(SecretAnswer, IsHmacSha256OfRoleChallengesAndPurpose) {
  const Secret secret("0123456789abcdef");
  EXPECT_EQ(hex(answer_challenge(secret, Role::kClient, challenge(0), challenge(100), "store")),
            "45a608888c5091ff25a4a984e73d7e8739a17c0706f5573f5ea992166c969499");
  EXPECT_EQ(hex(answer_challenge(secret, Role::kServer, challenge(0), challenge(100), "store")),
            "c18e4213f1a1653cc61c7f63cc614a550fdf2295338694f8346c99085bbe42a8");
}

TEST(SecretAnswer, DependsOnEverything) {
  const Secret secret("0123456789abcdef");
  const Answer answer =
      answer_challenge(secret, Role::kClient, challenge(0), challenge(100), "store");
  const auto other = [&](const Secret& key, Role role, const Challenge& clients,
                         const Challenge& servers, std::string_view purpose) {
    return is_same(answer, answer_challenge(key, role, clients, servers, purpose));
  };
  EXPECT_TRUE(other(secret, Role::kClient, challenge(0), challenge(100), "store"));
  EXPECT_FALSE(
      other(Secret("0123456789abcdeF"), Role::kClient, challenge(0), challenge(100), "store"));
  EXPECT_FALSE(other(secret, Role::kServer, challenge(0), challenge(100), "store"));
  EXPECT_FALSE(other(secret, Role::kClient, challenge(1), challenge(100), "store"));
  EXPECT_FALSE(other(secret, Role::kClient, challenge(0), challenge(101), "store"));
  EXPECT_FALSE(other(secret, Role::kClient, challenge(0), challenge(100), "stores"));
}

TEST(SecretAnswer, OneBitAnywhereIsSeen) {
  const Answer answer = answer_challenge(Secret("0123456789abcdef"), Role::kClient, challenge(0),
                                         challenge(100), "store");
  for (size_t bit = 0; bit < 8 * kAnswerBytes; ++bit) {
    Answer changed = answer;
    changed[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
    EXPECT_FALSE(is_same(answer, changed)) << "bit " << bit;
  }
}

TEST(SecretAnswer, ChallengesAreNewEachTime) { EXPECT_NE(*make_challenge(), *make_challenge()); }

TEST(SecretBytes, AMovedSecretIsEmpty) {
  Secret one("0123456789abcdef");
  const Secret other = std::move(one);
  EXPECT_TRUE(other);
  EXPECT_FALSE(one);  // NOLINT(bugprone-use-after-move): what is tested
}

}  // namespace
}  // namespace amxt::comm
