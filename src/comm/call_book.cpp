#include "comm/call_book.h"

#include <fmt/format.h>

#include <algorithm>

namespace amxt::comm {
namespace {

constexpr size_t kKept = 64;       // calls that have ended, and what others told
constexpr size_t kToldAtOnce = 4;  // of a queue of calls the first ones matter
constexpr size_t kEarly = 256;     // what others told of communicators that are not open here
constexpr size_t kNamed = 8;       // ranks of a communicator in a message

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

CallBook::Begun CallBook::begin(const Letter& letter) {
  const std::lock_guard lock(mutex_);
  const int peer = ranks_.empty() ? letter.peer : ranks_.at(static_cast<size_t>(letter.peer));
  const uint64_t ordinal = ++begun_[{peer, letter.sends}];
  letters_.push_back({letter, next_letter_, next_, ordinal, false, 0});
  letters_.back().letter.peer = peer;
  Begun begun{next_letter_++, rests_, std::nullopt};
  rests_ = false;
  return begun;
}

std::optional<CallBook::Told> CallBook::end_letter(uint64_t number) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(letters_.begin(), letters_.end(),
                   [number](const Waiting& waiting) { return waiting.number == number; });
  if (found == letters_.end()) return std::nullopt;
  Told told = as_told(*found);
  const bool was_told = found->told;
  letters_.erase(found);
  if (!was_told) return std::nullopt;
  told.over = true;
  return told;
}

std::vector<CallBook::Told> CallBook::late_letters(int64_t now_ns, int64_t receive_ns,
                                                   int64_t send_ns) {
  const std::lock_guard lock(mutex_);
  std::vector<Told> all;
  if (letters_.empty()) return all;
  // They run one by one, with the collectives, in the order of the program.
  Waiting& first = letters_.front();
  for (const Entry& entry : entries_) {
    if (entry.number >= first.position) break;
    if (!entry.ended && entry.is_collective) return all;
  }
  if (first.first_ns == 0) first.first_ns = now_ns;
  if (!first.told && now_ns - first.first_ns >= (first.letter.sends ? send_ns : receive_ns)) {
    first.told = true;
    all.push_back(as_told(first));
  }
  return all;
}

std::optional<Error> CallBook::deadlock(int64_t since_ns) const {
  const std::lock_guard lock(mutex_);
  for (const Told& told : awaited_) {
    const auto begun = begun_.find({told.rank, !told.sends});
    if (begun != begun_.end() && begun->second >= told.ordinal) continue;
    for (const Entry& own : entries_) {
      if (own.ended || own.number < told.number || own.begun_ns > since_ns) continue;
      // Another thread may come with the other end while this one is in a barrier or a trainer's call, but not where the ranks block.
      const bool is_last = own.is_collective || std::string_view(own.call.name) == "finalize";
      if (!is_last && !told.blocks) continue;
      return Error(Code::kCommProtocol,
                   fmt::format("{}: rank {} calls {} {} rank {}, rank {} calls {}", disagreement(),
                               told.rank, told.text, told.sends ? "to" : "from", rank_, rank_,
                               own.call.text()))
          .with_rank(std::max(rank_, told.rank));
    }
  }
  return std::nullopt;
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
  rests_ = under_way_ == 0 && letters_.empty();
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
  if (told.peer >= 0) {
    if (told.peer != rank_) return {};
    std::erase_if(awaited_, [&](const Told& other) {
      return other.rank == told.rank && other.sends == told.sends;  // it waits in one at a time
    });
    if (!told.over) awaited_.push_back(told);
    return {};
  }
  heard_.push_back(told);
  if (heard_.size() > kKept) heard_.pop_front();
  last_heard_ = std::max(last_heard_, told.number);
  if (entries_.empty() || told.number < entries_.front().number || told.number >= next_) return {};
  return compare(entries_[told.number - entries_.front().number], told);
}

bool CallBook::is_news(const Told& told) {
  const std::lock_guard lock(mutex_);
  if (told.peer >= 0) return true;  // of one rank alone
  for (const Told& other : news_) {
    if (other.communicator == told.communicator && other.number == told.number &&
        other.text == told.text)
      return false;
  }
  news_.push_back(told);
  if (news_.size() > kKept) news_.pop_front();
  return true;
}

CallBook::Told CallBook::as_told(const Entry& entry) const {
  Told told;
  told.communicator = communicator_;
  told.rank = rank_;
  told.number = entry.number;
  told.is_collective = entry.is_collective;
  told.text = entry.call.text();
  return told;
}

CallBook::Told CallBook::as_told(const Waiting& waiting) const {
  Told told;
  told.communicator = communicator_;
  told.rank = rank_;
  told.number = waiting.position;
  told.text = waiting.letter.call.text();
  told.peer = waiting.letter.peer;
  told.ordinal = waiting.ordinal;
  told.sends = waiting.letter.sends;
  told.blocks = waiting.letter.blocks;
  return told;
}

std::optional<Error> CallBook::compare(const Entry& own, const Told& other) const {
  if (own.is_collective && other.is_collective) return std::nullopt;
  const std::string text = own.call.text();
  if (text == other.text) return std::nullopt;
  const bool first = rank_ < other.rank;
  return Error(Code::kCommProtocol,
               fmt::format("{}: rank {} calls {}, rank {} calls {}", disagreement(),
                           first ? rank_ : other.rank, first ? text : other.text,
                           first ? other.rank : rank_, first ? other.text : text))
      .with_rank(std::max(rank_, other.rank));
}

// The error ends the whole group, where a part's own ranks would mislead.
std::string CallBook::disagreement() const {
  if (ranks_.empty()) return "the ranks disagree";
  std::string ranks;
  for (size_t i = 0; i < ranks_.size() && i < kNamed; ++i)
    ranks += fmt::format("{}{}", i == 0 ? "" : ", ", ranks_[i]);
  if (ranks_.size() > kNamed) ranks += fmt::format(" and {} more", ranks_.size() - kNamed);
  return fmt::format("the ranks disagree in the part of ranks {}", ranks);
}

// --- CallBooks --------------------------------------------------------------------------------

std::shared_ptr<CallBook> CallBooks::find(uint64_t communicator) const {
  if (communicator == 0) return first_;
  const std::lock_guard lock(mutex_);
  const auto found = parts_.find(communicator);
  return found == parts_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<CallBook>> CallBooks::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<CallBook>> all{first_};
  for (const auto& [communicator, book] : parts_) all.push_back(book);
  return all;
}

void CallBooks::open(uint64_t communicator, std::vector<int> ranks) {
  const auto book = std::make_shared<CallBook>(rank_, communicator, std::move(ranks));
  const std::lock_guard lock(mutex_);
  for (const CallBook::Told& told : early_) {
    if (told.communicator == communicator) (void)book->hear(told);  // no call has begun here
  }
  std::erase_if(early_, [communicator](const CallBook::Told& told) {
    return told.communicator == communicator;
  });
  parts_[communicator] = book;
}

void CallBooks::close(uint64_t communicator) {
  const std::lock_guard lock(mutex_);
  parts_.erase(communicator);
}

std::optional<Error> CallBooks::hear(const CallBook::Told& told) {
  if (told.communicator == 0) return first_->hear(told);
  const std::lock_guard lock(mutex_);
  const auto found = parts_.find(told.communicator);
  if (found != parts_.end()) return found->second->hear(told);
  early_.push_back(told);
  if (early_.size() > kEarly) early_.pop_front();
  return std::nullopt;
}

}  // namespace amxt::comm
