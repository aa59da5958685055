#include "error_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>

#include "session.h"

namespace command {

namespace {

constexpr std::time_t kLaterSeconds = 60;  // longer than others take to notice

// What happened to another rank, or what the launcher itself did.
bool is_consequence(amxt_status status) {
  return status >= AMXT_E_COMM_PEER_LOST || status == AMXT_E_CANCELLED;
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "?";
}

std::string report(const std::string& message) {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  return fmt::format("amxtrain: error: {}\nrank {} of {}, host {}, pid {}, amxtrain {}", message,
                     variable("RANK"), variable("WORLD_SIZE"), host, getpid(),
                     amxt_version_string());
}

Json torchs_object(amxt_status status, const std::string& message) {
  const std::time_t when = std::time(nullptr) + (is_consequence(status) ? kLaterSeconds : 0);
  return {
      {"message",
       {{"message", "AmxtrainError: " + message},
        {"extraInfo", {{"py_callstack", report(message)}, {"timestamp", std::to_string(when)}}}}}};
}

void write_whole(const std::string& path, const std::string& text) {
  const std::string part = fmt::format("{}.{}.part", path, getpid());
  std::ofstream file(part, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) std::remove(part.c_str());
}

}  // namespace

void leave_reason(amxt_status status, const std::string& message) {
  if (const char* path = std::getenv("AMXTRAIN_ERROR_FILE")) {
    write_whole(path, fmt::format("{}\n{}\n", static_cast<int>(status), message));
  }
  if (const char* path = std::getenv("TORCHELASTIC_ERROR_FILE")) {
    write_whole(
        path, torchs_object(status, message).dump(-1, ' ', false, Json::error_handler_t::replace));
  }
}

}  // namespace command
