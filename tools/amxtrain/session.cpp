#include "session.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>
#include <utility>

namespace command {

namespace {

std::atomic<int> taken{0};
std::mutex current_mutex;
amxt_runtime* current = nullptr;  // whose calls a signal cancels; null: it ends the process at once
std::atomic<bool> awaits_ranks{false};

void on_log(int32_t level, const char* line, void*) {
  const char* const words[] = {"error: ", "warning: ", "", "debug: "};
  error_line(fmt::format("amxtrain: {}{}", words[level], line));
}

int32_t level_from_name(const std::string& name) {
  const char* const names[] = {"error", "warning", "info", "debug"};
  for (int32_t level = 0; level < 4; ++level) {
    if (name == names[level]) return level;
  }
  return AMXT_LOG_OFF;
}

// Whose calls a signal cancels, for a time.
class Current {
 public:
  explicit Current(amxt_runtime* runtime) {
    std::lock_guard lock(current_mutex);
    before_ = std::exchange(current, runtime);
  }
  ~Current() {
    std::lock_guard lock(current_mutex);
    current = before_;
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  amxt_runtime* before_;
};

// Fields of the header whose names mean nothing else in a message.
struct OptionOfField {
  std::string_view field, option;
};
constexpr OptionOfField kOptions[] = {
    {"sequence_length", "--seq-len"},
    {"micro_batch", "--micro-batch"},
    {"compute_dtype", "--compute-dtype"},
    {"gradient_dtype", "--gradient-dtype"},
    {"learning_rate", "--lr"},
    {"warmup_steps", "--warmup-steps"},
    {"weight_decay", "--weight-decay"},
    {"log_steps", "--log-steps"},
    {"save_steps", "--save-steps"},
    {"eval_steps", "--eval-steps"},
    {"total_steps", "--steps"},
    {"loss_average", "--loss-average"},
    {"bin_dtype", "--bin-dtype"},
    {"allow_unauthenticated_data", "--allow-unauthenticated-data"},
    {"memory_limit_bytes", "--memory-limit"},
    {"node_memory_bytes", "--memory-limit"},
    {"wire_dtype", "--wire-dtype"},
    {"prefetch_parameters", "--prefetch-parameters"},
    {"live_parameters", "--live-parameters"}};
// Fields whose names are words of other messages, too.
constexpr std::string_view kDisagreement = "ranks disagree on ";
constexpr OptionOfField kOptionsThatDiffer[] = {
    {"keep", "--keep-forward"}, {"accumulate", "--accumulate"},
    {"wave", "--wave"},         {"seed", "--seed"},
    {"clip", "--clip"},         {"schedule", "--schedule"},
    {"decay", "--decay"},       {"nonfinite", "--nonfinite"},
    {"beta1", "--beta1"},       {"beta2", "--beta2"},
    {"epsilon", "--epsilon"},   {"mode", "--mode"},
    {"steps", "--steps"},       {"epochs", "--epochs"}};

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.';
}

// `before`: what the message says before the word.
std::string_view option_of(std::string_view word, std::string_view before) {
  if (before.ends_with(kDisagreement)) {
    for (const OptionOfField& each : kOptionsThatDiffer) {
      if (each.field == word) return each.option;
    }
  }
  const size_t dot = word.starts_with("amxt_") ? word.find('.') : std::string_view::npos;
  const std::string_view field = dot != std::string_view::npos ? word.substr(dot + 1) : word;
  for (const OptionOfField& each : kOptions) {
    if (each.field == field) return each.option;
  }
  return word;
}

void cancel_calls() {
  std::lock_guard lock(current_mutex);
  if (current != nullptr) amxt_runtime_cancel(current, nullptr);
}

// Cancels only what is under way, so it is repeated: the signal may come between two calls.
void signal_loop(sigset_t signals) {
  int number = 0;
  while (sigwait(&signals, &number) != 0) {
  }
  taken = number;
  {
    std::lock_guard lock(current_mutex);
    if (current == nullptr) {
      error_line(fmt::format("amxtrain: ended by {}{}", strsignal(number),
                             awaits_ranks ? " while waiting for the other ranks" : ""));
      _exit(128 + number);
    }
  }
  error_line(fmt::format("amxtrain: {}: ending; once more ends at once", strsignal(number)));
  for (;;) {
    cancel_calls();
    const timespec interval{0, 100'000'000};
    const int again = sigtimedwait(&signals, nullptr, &interval);
    if (again > 0) _exit(128 + again);
  }
}

}  // namespace

void take_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread(signal_loop, signals).detach();
}

int signal_taken() { return taken; }

Session::Session(const CommonOptions& options) : options_(options) {
  amxt_runtime_options runtime_options = AMXT_RUNTIME_OPTIONS_INIT;
  runtime_options.threads = options.threads.value_or(AMXT_UNSET_I32);
  if (options.log_level) runtime_options.log_level = level_from_name(*options.log_level);
  runtime_options.log = on_log;
  try {
    runtime_ = make<Runtime>([&](amxt_runtime** out, amxt_error* error) {
      return amxt_runtime_create(&runtime_options, out, error);
    });
  } catch (const Failure& failure) {
    throw failure.not_of_usage();  // options were checked: it is AMXTRAIN_LOG
  }
  std::lock_guard lock(current_mutex);
  current = runtime_.get();
}

Session::~Session() {
  std::lock_guard lock(current_mutex);
  current = nullptr;
}

Group join_group(const Session& session) {
  // Waiting for the other ranks, which may take minutes: there is nothing to lose yet.
  const Current nothing(nullptr);
  awaits_ranks = true;
  amxt_group_options options = AMXT_GROUP_OPTIONS_INIT;
  options.allow_unauthenticated_data = session.options().allow_unauthenticated_data ? 1 : 0;
  if (const auto seconds = session.options().connect_timeout_seconds) {
    options.connect_timeout_ns = AMXT_SECONDS(*seconds);
  }
  try {
    return make<Group>([&](amxt_group** out, amxt_error* error) {
      const amxt_status status =
          amxt_group_create_from_env(session.runtime(), &options, out, error);
      awaits_ranks = false;
      return status;
    });
  } catch (const Failure& failure) {
    throw failure.not_of_usage();  // the environment is the launcher's
  }
}

Failure::Failure(const amxt_error& error)
    : std::runtime_error(in_options(error.message)), exit_code_(kFailure), status_(error.code) {
  const bool of_environment =
      std::string_view(error.message).find("AMXTRAIN_") != std::string::npos;
  if (error.code == AMXT_E_INVALID_ARGUMENT && !of_environment) exit_code_ = kUsage;
}

std::string in_options(std::string_view message) {
  std::string text;
  for (size_t at = 0; at < message.size();) {
    // A name of the user's stays as it is; "model's" is none.
    if (message[at] == '\'' && (at == 0 || !is_word(message[at - 1]))) {
      const size_t end = message.find('\'', at + 1);
      const size_t length = end == std::string_view::npos ? message.size() - at : end + 1 - at;
      text += message.substr(at, length);
      at += length;
      continue;
    }
    size_t end = at;
    while (end < message.size() && is_word(message[end])) ++end;
    if (end == at) {
      text += message[at++];
      continue;
    }
    text += option_of(message.substr(at, end - at), message.substr(0, at));
    at = end;
  }
  return text;
}

std::string read_file(const std::string& path) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) {
    throw Failure(fmt::format("{}: {}", in_quotes(path), std::strerror(errno)));
  }
  if (!S_ISREG(status.st_mode)) throw Failure(in_quotes(path) + ": not a regular file");
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.good() && !file.eof()) {
    throw Failure(fmt::format("{}: {}", in_quotes(path), std::strerror(errno)));
  }
  if (!file.is_open()) throw Failure(in_quotes(path) + ": cannot be opened");
  return text;
}

std::string in_quotes(std::string_view name) {
  std::string text = "'";
  for (const char c : name.substr(0, 128)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || c == '\'' || c == '\\') {
      text += fmt::format("\\x{:02x}", byte);
    } else {
      text += c;
    }
  }
  return text + (name.size() > 128 ? "...'" : "'");
}

}  // namespace command
