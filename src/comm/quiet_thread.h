// A thread of the library's own, which takes none of the host's signals.
#pragma once

#include <functional>
#include <thread>

#include "base/result.h"

namespace amxt::comm {

// `name` is at most 15 characters, as seen in ps -L. kOutOfMemory when the system has no thread left.
Result<std::thread> start_quiet_thread(const char* name, std::function<void()> body);

}  // namespace amxt::comm
