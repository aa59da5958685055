#include "console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace command {

namespace {

std::mutex mutex;
std::string shown;  // the bar, as it stands on the terminal
int failed_print = 0;

size_t terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 80;
  return size.ws_col;
}

// One write, so that lines of several processes do not mix.
void write_all(int descriptor, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = write(descriptor, text.data() + done, text.size() - done);
    if (count <= 0) {  // nobody is left to tell
      if (descriptor == STDOUT_FILENO && errno != EPIPE && errno != EBADF) failed_print = errno;
      return;
    }
    done += static_cast<size_t>(count);
  }
}

void print(int descriptor, std::string_view line) {
  std::lock_guard lock(mutex);
  if (shown.empty()) {
    write_all(descriptor, std::string(line) + "\n");
    return;
  }
  write_all(STDERR_FILENO, "\r\033[K");
  write_all(descriptor, std::string(line) + "\n");
  write_all(STDERR_FILENO, shown);
}

}  // namespace

int print_error() {
  std::lock_guard lock(mutex);
  return failed_print;
}

void print_line(std::string_view line) { print(STDOUT_FILENO, line); }
void error_line(std::string_view line) { print(STDERR_FILENO, line); }

bool has_bar() {
  static const bool terminal = [] {
    const char* term = std::getenv("TERM");
    return isatty(STDERR_FILENO) == 1 && !(term != nullptr && std::string_view(term) == "dumb");
  }();
  return terminal;
}

void show_bar(std::string_view text) {
  if (!has_bar()) return;
  std::lock_guard lock(mutex);
  if (text.empty() && shown.empty()) return;
  shown = text;
  write_all(STDERR_FILENO, "\r\033[K" + shown);
}

std::string bar_text(std::string_view label, double done, double total, std::string_view suffix) {
  constexpr int kCells = 24;
  std::string text(label);
  if (total > 0) {
    const double part = std::clamp(done / total, 0.0, 1.0);
    const int full = static_cast<int>(std::floor(part * kCells));
    text += fmt::format(" {:3.0f}% [{}{}]", std::floor(part * 100), std::string(full, '#'),
                        std::string(kCells - full, '-'));
  }
  text += ' ';
  text += suffix;
  return text.substr(0, terminal_width() - 1);
}

std::string bytes_text(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  bytes /= 1024;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, bytes < 10 ? 2 : bytes < 100 ? 1 : 0, units[unit]);
}

std::string count_text(int64_t count) {
  std::string text = std::to_string(count);
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > (count < 0 ? 1 : 0); at -= 3) {
    text.insert(static_cast<size_t>(at), ",");
  }
  return text;
}

std::string counted(int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count_text(count), noun, count == 1 ? "" : "s");
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string padded(std::string_view text, size_t width) {
  std::string result(text);
  if (result.size() < width) result.append(width - result.size(), ' ');
  return result;
}

std::string padded_left(std::string_view text, size_t width) {
  if (text.size() >= width) return std::string(text);
  return std::string(width - text.size(), ' ') + std::string(text);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace command
