#include "base/log.h"

namespace amxt {

void Log::set(Sink sink, LogLevel level) {
  std::lock_guard lock(mutex_);
  level_.store(sink ? static_cast<int32_t>(level) : static_cast<int32_t>(LogLevel::kOff),
               std::memory_order_relaxed);
  sink_ = std::move(sink);
}

void Log::write(LogLevel level, std::string_view line) {
  if (!wants(level)) return;
  std::lock_guard lock(mutex_);
  if (sink_) sink_(level, std::string(line).c_str());
}

}  // namespace amxt
