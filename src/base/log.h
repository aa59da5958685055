// Log: one line, a level, a sink that the host gave. The library itself prints nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace amxt {

enum class LogLevel : int32_t { kError = 0, kWarning = 1, kInfo = 2, kDebug = 3, kOff = -1 };

// Thread-safe; lines of several threads never interleave. The sink is called with the lock held: it must not log.
class Log {
 public:
  using Sink = std::function<void(LogLevel, const char* line)>;

  void set(Sink sink, LogLevel level);
  bool wants(LogLevel level) const {
    return static_cast<int32_t>(level) <= level_.load(std::memory_order_relaxed);
  }
  void write(LogLevel level, std::string_view line);
  void error(std::string_view line) { write(LogLevel::kError, line); }
  void warning(std::string_view line) { write(LogLevel::kWarning, line); }
  void info(std::string_view line) { write(LogLevel::kInfo, line); }
  void debug(std::string_view line) { write(LogLevel::kDebug, line); }

 private:
  std::mutex mutex_;
  Sink sink_;
  std::atomic<int32_t> level_{static_cast<int32_t>(LogLevel::kOff)};
};

}  // namespace amxt
