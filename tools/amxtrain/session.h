// Session: what every command needs: the console, a runtime whose log goes to it, signals that cancel,
// and failures that end the command with one line.
#pragma once

#include <amxtrain.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "console.h"

namespace command {

using Json = nlohmann::ordered_json;

enum ExitCode : int { kSuccess = 0, kFailure = 1, kUsage = 2 };

// Ends the command: `what()` is printed after "amxtrain: error: ".
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& message, int exit_code = kFailure)
      : std::runtime_error(message), exit_code_(exit_code) {}
  // What an option caused is an error of usage, and names the option as it is typed.
  explicit Failure(const amxt_error& error);

  // A signal came between two calls of the library.
  static Failure interrupted() {
    Failure failure("interrupted");
    failure.status_ = AMXT_E_CANCELLED;
    return failure;
  }

  // The same, but for no fault of an option's; with more to say behind it.
  Failure not_of_usage() const {
    Failure failure = *this;
    failure.exit_code_ = kFailure;
    return failure;
  }
  Failure with(const std::string& more) const {
    Failure failure(what() + more, exit_code_);
    failure.status_ = status_;
    return failure;
  }

  int exit_code() const { return exit_code_; }
  amxt_status status() const { return status_; }

 private:
  int exit_code_;
  amxt_status status_ = AMXT_OK;
};

// Calls f(&error) and throws its failure.
template <typename F>
void call(F&& f) {
  amxt_error error = AMXT_ERROR_INIT;
  if (f(&error) != AMXT_OK) throw Failure(error);
}

template <typename T, void (*destroy)(T*)>
struct Destroy {
  void operator()(T* handle) const { destroy(handle); }
};
template <typename T, void (*destroy)(T*)>
using Handle = std::unique_ptr<T, Destroy<T, destroy>>;

using Runtime = Handle<amxt_runtime, amxt_runtime_destroy>;
using Group = Handle<amxt_group, amxt_group_destroy>;
using Model = Handle<amxt_model, amxt_model_destroy>;
using Plan = Handle<amxt_plan, amxt_plan_destroy>;
using Dataset = Handle<amxt_dataset, amxt_dataset_destroy>;
using TokenWriter = Handle<amxt_token_writer, amxt_token_writer_destroy>;
using Trainer = Handle<amxt_trainer, amxt_trainer_destroy>;

// Makes a handle out of f(&raw, &error).
template <typename H, typename F>
H make(F&& f) {
  typename H::pointer raw = nullptr;
  call([&](amxt_error* error) { return f(&raw, error); });
  return H(raw);
}

// Text out of f(&raw, &error); none when the library gave NULL.
template <typename F>
std::optional<std::string> optional_text(F&& f) {
  char* raw = nullptr;
  call([&](amxt_error* error) { return f(&raw, error); });
  if (raw == nullptr) return std::nullopt;
  std::string text = raw;
  amxt_string_destroy(raw);
  return text;
}

template <typename F>
Json json(F&& f) {
  return Json::parse(optional_text(std::forward<F>(f)).value());
}

// Options that every command has.
struct CommonOptions {
  std::optional<int32_t> threads;
  std::optional<std::string> log_level;
  // Of those that join a group.
  bool allow_unauthenticated_data = false;
  std::optional<int64_t> connect_timeout_seconds;
};

class Session {
 public:
  explicit Session(const CommonOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  amxt_runtime* runtime() const { return runtime_.get(); }
  const CommonOptions& options() const { return options_; }

 private:
  const CommonOptions options_;
  Runtime runtime_;
};

// The group that the launcher made.
Group join_group(const Session& session);

// Blocks SIGINT and SIGTERM in this thread and starts the one that takes them: the first cancels the
// calls under way, the second ends the process at once. Called once, before any other thread.
void take_signals();
// The signal that came, or 0.
int signal_taken();

std::string read_file(const std::string& path);

// A message of the library with its fields' names replaced by the options: "micro_batch 0" becomes
// "--micro-batch 0".
std::string in_options(std::string_view message);

// The name in single quotes, control bytes escaped, cut at 128 bytes.
std::string in_quotes(std::string_view name);

}  // namespace command
