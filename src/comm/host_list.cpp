#include "comm/host_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <utility>

#include "base/text.h"

namespace amxt::comm {
namespace {

constexpr size_t kMaxNameBytes = 255;  // as DNS has it
constexpr size_t kMaxDigits = 9;

bool is_name_byte(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '.' || c == '_';
}

class Reader {
 public:
  explicit Reader(std::string_view list) : list_(list), left_(list) {}

  Result<std::vector<std::string>> read() {
    std::vector<std::string> hosts;
    do {
      AMXT_ASSIGN(std::vector<std::string> names, names_of_one());
      if (hosts.size() + names.size() > kMaxHosts) return too_many();
      std::move(names.begin(), names.end(), std::back_inserter(hosts));
    } while (take(','));
    if (!left_.empty()) return malformed();
    return hosts;
  }

 private:
  // Up to the next comma outside of brackets.
  Result<std::vector<std::string>> names_of_one() {
    std::vector<std::string> names = {""};
    while (!left_.empty() && left_.front() != ',') {
      if (take('[')) {
        AMXT_ASSIGN(const std::vector<std::string> numbers, numbers_in_brackets());
        if (names.size() * numbers.size() > kMaxHosts) return too_many();
        std::vector<std::string> longer;
        for (const std::string& name : names) {
          for (const std::string& number : numbers) longer.push_back(name + number);
        }
        names = std::move(longer);
      } else {
        if (!is_name_byte(left_.front())) return malformed();
        for (std::string& name : names) name += left_.front();
        left_.remove_prefix(1);
      }
      if (names.front().size() > kMaxNameBytes) return malformed();
    }
    if (names.front().empty()) return malformed();
    return names;
  }

  Result<std::vector<std::string>> numbers_in_brackets() {
    std::vector<std::string> numbers;
    do {
      const std::string_view low = digits();
      const std::string_view high = take('-') ? digits() : low;
      uint32_t from = 0, to = 0;
      if (!parse(low, &from) || !parse(high, &to) || from > to) return malformed();
      if (numbers.size() + (to - from) >= kMaxHosts) return too_many();
      for (uint32_t number = from; number <= to; ++number) {
        numbers.push_back(fmt::format("{:0{}}", number, low.size()));
      }
    } while (take(','));
    if (!take(']')) return malformed();
    return numbers;
  }

  static bool parse(std::string_view text, uint32_t* number) {
    if (text.empty() || text.size() > kMaxDigits) return false;
    std::from_chars(text.data(), text.data() + text.size(), *number);
    return true;
  }

  std::string_view digits() {
    size_t count = 0;
    while (count < left_.size() && std::isdigit(static_cast<unsigned char>(left_[count]))) ++count;
    const std::string_view taken = left_.substr(0, count);
    left_.remove_prefix(count);
    return taken;
  }

  bool take(char c) {
    if (!left_.starts_with(c)) return false;
    left_.remove_prefix(1);
    return true;
  }

  Error malformed() const {
    return Error(Code::kFormat, fmt::format("{} is no list of hosts: at byte {}", quote(list_),
                                            list_.size() - left_.size()));
  }
  Error too_many() const {
    return Error(Code::kLimit, fmt::format("{} names more than {} hosts", quote(list_), kMaxHosts));
  }

  const std::string_view list_;
  std::string_view left_;
};

}  // namespace

Result<std::vector<std::string>> expand_host_list(std::string_view list) {
  return Reader(list).read();
}

}  // namespace amxt::comm
