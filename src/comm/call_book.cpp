#include "comm/call_book.h"

#include <fmt/format.h>

#include <algorithm>

namespace amxt::comm {
namespace {

constexpr size_t kKept = 64;       // calls that have ended, and what others told
constexpr size_t kToldAtOnce = 4;  // of a queue of calls the first ones matter

}  // namespace

CallBook::Begun CallBook::begin(const CollectiveCall& call, bool is_collective, int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  const uint64_t number = next_++;
  const Entry& own =
      entries_.emplace_back(Entry{number, call, is_collective, false, false, now_ns});
  ++under_way_;
  Begun begun{number, rests_, std::nullopt};
  rests_ = false;
  if (number <= last_heard_) {
    for (const Told& told : heard_) {
      if (!begun.mismatch && told.number == number) begun.mismatch = compare(own, told);
    }
  }
  while (entries_.size() > kKept && entries_.front().ended) entries_.pop_front();
  return begun;
}

void CallBook::end(uint64_t number) {
  const std::lock_guard lock(mutex_);
  if (entries_.empty() || number < entries_.front().number || number >= next_) return;
  Entry& entry = entries_[number - entries_.front().number];
  if (entry.ended) return;
  entry.ended = true;
  --under_way_;
}

std::vector<CallBook::Told> CallBook::late(int64_t since_ns) {
  const std::lock_guard lock(mutex_);
  std::vector<Told> all;
  size_t seen = 0;
  for (Entry& entry : entries_) {
    if (seen == under_way_ || all.size() == kToldAtOnce) break;
    if (entry.ended) continue;
    ++seen;
    if (entry.told || entry.begun_ns > since_ns) continue;
    entry.told = true;
    all.push_back(as_told(entry));
  }
  return all;
}

bool CallBook::rests() {
  const std::lock_guard lock(mutex_);
  rests_ = under_way_ == 0;
  return rests_;
}

size_t CallBook::under_way() const {
  const std::lock_guard lock(mutex_);
  return under_way_;
}

std::optional<CallBook::Told> CallBook::only() const {
  const std::lock_guard lock(mutex_);
  if (under_way_ != 1) return std::nullopt;
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [](const Entry& entry) { return !entry.ended; });
  return as_told(*found);
}

std::optional<Error> CallBook::hear(const Told& told) {
  const std::lock_guard lock(mutex_);
  heard_.push_back(told);
  if (heard_.size() > kKept) heard_.pop_front();
  last_heard_ = std::max(last_heard_, told.number);
  if (entries_.empty() || told.number < entries_.front().number || told.number >= next_) return {};
  return compare(entries_[told.number - entries_.front().number], told);
}

bool CallBook::is_news(const Told& told) {
  const std::lock_guard lock(mutex_);
  for (const Told& other : news_) {
    if (other.number == told.number && other.text == told.text) return false;
  }
  news_.push_back(told);
  if (news_.size() > kKept) news_.pop_front();
  return true;
}

CallBook::Told CallBook::as_told(const Entry& entry) const {
  return {rank_, entry.number, entry.is_collective, entry.call.text()};
}

std::optional<Error> CallBook::compare(const Entry& own, const Told& other) const {
  if (own.is_collective && other.is_collective) return std::nullopt;
  const std::string text = own.call.text();
  if (text == other.text) return std::nullopt;
  const bool first = rank_ < other.rank;
  return Error(Code::kCommProtocol,
               fmt::format("the ranks disagree: rank {} calls {}, rank {} calls {}",
                           first ? rank_ : other.rank, first ? text : other.text,
                           first ? other.rank : rank_, first ? other.text : text))
      .with_rank(std::max(rank_, other.rank));
}

}  // namespace amxt::comm
