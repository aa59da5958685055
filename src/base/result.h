// Result<T>: a value or an Error. An Error has a code, a one-line message, and the chain of causes that led to it; nothing in
// src/ throws across a function boundary. Programmer errors are asserts; everything a user can cause is a Result.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace amxt {

// Numeric values are those of amxt_status in include/amxtrain.h (checked there by static_assert).
enum class Code : int32_t {
  kOk = 0,
  kInvalidArgument = 1,
  kInvalidState = 2,
  kNotFound = 3,
  kExists = 4,
  kIo = 5,
  kNoSpace = 6,
  kFormat = 7,
  kCorrupt = 8,
  kUnsupported = 9,
  kOutOfMemory = 10,
  kLimit = 11,
  kTimeout = 12,
  kCancelled = 13,
  kNonfinite = 14,
  kMismatch = 15,
  kForked = 16,
  kUser = 17,
  kInternal = 18,
  // Fatal band: the group is dead, only abort and destroy are allowed.
  kCommPeerLost = 100,
  kCommTimeout = 101,
  kCommAborted = 102,
  kCommProtocol = 103,
};

class [[nodiscard]] Error {
 public:
  Error(Code code, std::string message, int sys_errno = 0)
      : code_(code), sys_errno_(sys_errno), message_(std::move(message)) {}

  Code code() const { return code_; }
  int sys_errno() const { return sys_errno_; }
  // Rank that the error is about or comes from; -1 when it is not about a rank.
  int32_t rank() const { return rank_; }
  Error&& with_rank(int32_t rank) && {
    rank_ = rank;
    return std::move(*this);
  }
  // The message with its context, outermost first: "config.json: key 'hidden_size': missing".
  const std::string& message() const { return message_; }

  // Puts where it happened in front of what happened; the code stays that of the cause.
  Error&& in(std::string_view where) && {
    message_.insert(0, std::string(where) + ": ");
    return std::move(*this);
  }

 private:
  Code code_;
  int sys_errno_;
  int32_t rank_ = -1;
  std::string message_;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Error error) : error_(std::make_unique<Error>(std::move(error))) {}

  bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::optional<T> value_;
  std::unique_ptr<Error> error_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::make_unique<Error>(std::move(error))) {}

  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::unique_ptr<Error> error_;
};

using Status = Result<void>;

// Says in the error of a lost rank what this one was doing when it heard of it; the innermost says it. Any other outcome stays as it is.
template <typename T>
Result<T> during(std::string_view what, Result<T> outcome) {
  if (outcome || outcome.error().code() != Code::kCommPeerLost) return outcome;
  if (outcome.error().message().starts_with("during ")) return outcome;
  return std::move(outcome).error().in("during " + std::string(what));
}

}  // namespace amxt

// Leaves the function with the error of `expression` (a Result), if it has one.
#define AMXT_TRY(expression)                             \
  do {                                                   \
    if (auto amxt_result = (expression); !amxt_result) { \
      return std::move(amxt_result).error();             \
    }                                                    \
  } while (false)

#define AMXT_CONCAT_INNER(a, b) a##b
#define AMXT_CONCAT(a, b) AMXT_CONCAT_INNER(a, b)

// Defines or assigns `target` from a Result, or leaves the function with its error.
#define AMXT_ASSIGN(target, expression) \
  AMXT_ASSIGN_INNER(AMXT_CONCAT(amxt_result_, __LINE__), target, expression)
#define AMXT_ASSIGN_INNER(result, target, expression) \
  auto result = (expression);                         \
  if (!result) return std::move(result).error();      \
  target = std::move(result).value()
