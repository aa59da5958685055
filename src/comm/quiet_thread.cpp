#include "comm/quiet_thread.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>

#include <system_error>
#include <utility>

namespace amxt::comm {

Result<std::thread> start_quiet_thread(const char* name, std::function<void()> body) {
  // A thread inherits the mask of the one that starts it.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread;
  int failure = 0;
  try {
    thread = std::thread(std::move(body));
  } catch (const std::system_error& error) {
    failure = error.code().value();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failure != 0) {
    return Error(Code::kOutOfMemory,
                 fmt::format("thread {}: {}", name, std::generic_category().message(failure)),
                 failure);
  }
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

}  // namespace amxt::comm
