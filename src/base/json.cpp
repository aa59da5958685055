#include "base/json.h"

#include <fmt/format.h>

#include <string>
#include <unordered_set>
#include <vector>

#include "base/text.h"

namespace amxt {
namespace {

// Builds the value while it checks what nlohmann's own parser lets pass.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  Json take() { return std::move(root_); }
  std::optional<Error> take_error() { return std::move(error_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") == std::string::npos) {
      return fail(fmt::format("whole number {} does not fit 64 bits", quote(text)));
    }
    return put(value);
  }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t&) override { return fail("binary value"); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (!stack_.back().keys.insert(name).second) {
      const char* what = stack_.size() == 1 ? limits_.member : "key";
      return fail(fmt::format("duplicate {} {}", what, quote(name)));
    }
    stack_.back().key = std::move(name);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    return fail(fmt::format("not valid JSON at byte {}: {}", position, parse_reason(e.what())));
  }

 private:
  struct Level {
    Json* value;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  bool fail(std::string message) {
    if (!error_) error_.emplace(Code::kFormat, std::move(message));
    return false;
  }

  Json* place(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    // Keys were proven unique: the ordered map's linear search would make this quadratic.
    auto& members = parent.get_ref<Json::object_t&>();
    static_cast<std::vector<std::pair<const std::string, Json>>&>(members).emplace_back(
        stack_.back().key, std::move(value));
    return &members.back().second;
  }

  bool put(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (static_cast<int>(stack_.size()) >= limits_.depth) {
      return fail(fmt::format("nested deeper than {} levels", limits_.depth));
    }
    Json* at = place(std::move(value));
    stack_.push_back({at, {}, {}});
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  Json root_;
  std::vector<Level> stack_;
  std::optional<Error> error_;
};

}  // namespace

// "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ... - invalid literal; last read: ..."
std::string parse_reason(std::string_view what) {
  if (const size_t at = what.find("] "); at != std::string_view::npos) what.remove_prefix(at + 2);
  if (const size_t at = what.find(": ");
      what.starts_with("parse error") && at != std::string_view::npos) {
    what.remove_prefix(at + 2);
  }
  return std::string(what.substr(0, what.find("; last read")));
}

Result<Json> parse_json(std::string_view text, const JsonLimits& limits) {
  if (!is_utf8(text)) return Error(Code::kFormat, "not valid UTF-8");
  // The parser takes a NUL for the end of its input, so that what stands behind it would go unread.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    return Error(Code::kFormat, fmt::format("not valid JSON at byte {}: a NUL byte", at + 1));
  }
  Builder builder(limits);
  try {
    if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
      if (auto error = builder.take_error()) return std::move(*error);
      return Error(Code::kFormat, "not valid JSON");
    }
  } catch (const std::exception& e) {
    return Error(Code::kFormat, fmt::format("not valid JSON: {}", quote(e.what())));
  }
  return builder.take();
}

}  // namespace amxt
