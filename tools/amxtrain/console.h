// Console: lines on stdout and stderr, and one passing line (a progress bar) below them on a terminal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace command {

// Thread-safe: lines never mix with each other or with the bar.
void print_line(std::string_view line);  // stdout
// Why a line of stdout could not be written, or 0; a reader that has gone is none.
int print_error();
void error_line(std::string_view line);  // stderr
// True when stderr is a terminal: progress is a bar there, lines otherwise.
bool has_bar();
// Shows `text` as the last line of the terminal, until the next call; empty takes it away.
void show_bar(std::string_view text);

// "label  45% [#########-----------] suffix", cut to the terminal's width. total <= 0: without a bar.
std::string bar_text(std::string_view label, double done, double total, std::string_view suffix);

std::string bytes_text(double bytes);                       // "1.5 GiB"
std::string count_text(int64_t count);                      // "1,234,567"
std::string counted(int64_t count, std::string_view noun);  // "1 file", "1,234 files"
std::string duration_text(double seconds);                  // "1:02:03"
// `text`, filled with spaces up to `width`.
std::string padded(std::string_view text, size_t width);
std::string padded_left(std::string_view text, size_t width);

// Seconds of a clock that never jumps.
double now();

// At most so many times a second, and for the last one always.
class Throttle {
 public:
  explicit Throttle(double per_second) : interval_(1 / per_second) {}
  bool due() {
    const double time = now();
    if (time - last_ < interval_) return false;
    last_ = time;
    return true;
  }

 private:
  double interval_;
  double last_ = -1e9;
};

}  // namespace command
