// EntryList: the list of entries and notes that the ranks of a job append to in its store, under "/amxtrain/<run id>/".
//
// A number is given out before its entry is written, and the list may hold what earlier attempts left: holes are read again, of very
// long lists only the newest part counts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/tcp_store_client.h"

namespace amxt::comm {

class EntryList {
 public:
  EntryList(std::unique_ptr<TcpStoreClient> store, const std::string& run_id);

  Status append_own(std::string_view text, Deadline deadline);
  // Calls `read(number, text)` for what is new.
  Status read_new(Deadline deadline, const std::function<void(int64_t, std::string_view)>& read);
  void leave_note(const Error& error, Deadline deadline);
  const std::string& address() const { return store_->address(); }
  // 0 before there is one.
  int64_t own_number() const { return own_; }

 private:
  std::string key(const std::string& name) const;

  std::unique_ptr<TcpStoreClient> store_;
  const std::string folder_;
  int64_t own_ = 0, next_ = 1;
  std::vector<int64_t> holes_;
};

}  // namespace amxt::comm
