#include "checkpoint/agreement.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string_view>
#include <utility>

namespace amxt::checkpoint {
namespace {

constexpr int64_t kGraceNs = 10'000'000'000;
constexpr size_t kMessageLimit = 4096;

// "k" and the payload, or "e", code, errno and message.
std::string encode(const Result<std::string>& outcome) {
  if (outcome) return "k" + *outcome;
  const Error& error = outcome.error();
  return fmt::format("e{} {} {}", static_cast<int32_t>(error.code()), error.sys_errno(),
                     error.message().substr(0, kMessageLimit));
}

int take_number(std::string_view* text) {
  int value = 0;
  const auto [end, failure] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (failure != std::errc()) return static_cast<int>(Code::kInternal);
  text->remove_prefix(static_cast<size_t>(end - text->data()));
  if (!text->empty()) text->remove_prefix(1);
  return value;
}

Error decode_error(std::string_view text) {
  text.remove_prefix(1);
  const int code = take_number(&text);
  const int sys_errno = take_number(&text);
  return Error(static_cast<Code>(code), std::string(text), sys_errno);
}

bool is_late(Code code) { return code == Code::kCancelled || code == Code::kTimeout; }

bool is_fatal(Code code) {
  return static_cast<int32_t>(code) >= static_cast<int32_t>(Code::kCommPeerLost);
}

Deadline with_grace(Deadline deadline) {
  if (deadline.is_never()) return deadline;
  return Deadline::after(std::min(deadline.left_ns(), INT64_MAX - kGraceNs) + kGraceNs);
}

}  // namespace

Result<std::vector<std::string>> agree(comm::Group& group, Result<std::string> mine,
                                       Deadline deadline) {
  if (group.size() == 1) {
    if (!mine) return std::move(mine).error();
    return std::vector<std::string>{std::move(*mine)};
  }
  // A dead group can't agree on anything.
  if (!mine && is_fatal(mine.error().code())) return std::move(mine).error();
  AMXT_ASSIGN(std::vector<std::string> all, group.exchange(encode(mine), with_grace(deadline)));
  int worst = -1;
  bool worst_is_late = false;
  for (int rank = 0; rank < static_cast<int>(all.size()); ++rank) {
    const std::string& text = all[static_cast<size_t>(rank)];
    if (text.empty()) {
      return Error(Code::kCommProtocol, fmt::format("rank {}: an empty agreement", rank))
          .with_rank(rank);
    }
    if (text.front() == 'k') continue;
    const bool late = is_late(decode_error(text).code());
    if (worst >= 0 && (late || !worst_is_late)) continue;
    worst = rank;
    worst_is_late = late;
  }
  if (worst >= 0) {
    return decode_error(all[static_cast<size_t>(worst)])
        .in(fmt::format("rank {}", worst))
        .with_rank(worst);
  }
  for (std::string& text : all) text.erase(0, 1);
  return all;
}

Status agree(comm::Group& group, Status mine, Deadline deadline) {
  Result<std::string> outcome = std::string();
  if (!mine) outcome = std::move(mine).error();
  AMXT_TRY(agree(group, std::move(outcome), deadline));
  return {};
}

}  // namespace amxt::checkpoint
