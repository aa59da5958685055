#include "comm/entry_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/rendezvous_entry.h"

namespace amxt::comm {
namespace {

constexpr int64_t kMaxEntries = 4096;  // of earlier attempts too; the newest count

}  // namespace

EntryList::EntryList(std::unique_ptr<TcpStoreClient> store, const std::string& run_id)
    : store_(std::move(store)),
      folder_(fmt::format("/amxtrain/{}/", run_id.empty() ? "default" : run_id)) {}

std::string EntryList::key(const std::string& name) const { return folder_ + name; }

Status EntryList::append_own(std::string_view text, Deadline deadline) {
  AMXT_ASSIGN(own_, store_->add(key("entries"), 1, deadline));
  next_ = std::max<int64_t>(1, own_ - kMaxEntries);
  return store_->set(key(fmt::format("entry/{}", own_)), text, deadline);
}

Status EntryList::read_new(Deadline deadline,
                           const std::function<void(int64_t, std::string_view)>& read) {
  AMXT_ASSIGN(const int64_t count, store_->add(key("entries"), 0, deadline));
  for (; next_ <= count; ++next_) holes_.push_back(next_);
  for (auto hole = holes_.begin(); hole != holes_.end();) {
    AMXT_ASSIGN(const auto text, store_->find(key(fmt::format("entry/{}", *hole)), deadline));
    if (!text) {
      ++hole;
      continue;
    }
    read(*hole, *text);
    hole = holes_.erase(hole);
  }
  return {};
}

void EntryList::leave_note(const Error& error, Deadline deadline) {
  const auto number = store_->add(key("entries"), 1, deadline);
  if (!number) return;
  (void)store_->set(key(fmt::format("entry/{}", *number)), note_text(error), deadline);
}

}  // namespace amxt::comm
