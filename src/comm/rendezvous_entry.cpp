#include "comm/rendezvous_entry.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>

namespace amxt::comm {
namespace {

constexpr std::string_view kEntry = "amxtrain ", kNote = "failed ";
constexpr size_t kMaxBytes = 1024;

std::string hex(const Nonce& nonce) {
  return fmt::format("{:016x}{:016x}", nonce.words[0], nonce.words[1]);
}

template <typename Number>
bool parse(std::string_view text, Number* value, int base = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value, base);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string plain_word(std::string text) {
  std::replace_if(
      text.begin(), text.end(),
      [](unsigned char c) { return !std::isalnum(c) && c != '.' && c != '-' && c != '_'; }, '_');
  return text.substr(0, 63);
}

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return plain_word(name);
}

std::string socket_name(const Nonce& nonce) { return "amxtrain-" + hex(nonce); }

std::optional<Address> parse_address(std::string_view text) {
  const size_t colon = text.rfind(':');
  int port = 0;
  if (colon == text.npos || !parse(text.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return std::nullopt;
  }
  std::string ip(text.substr(0, colon));
  sockaddr_in four{};
  if (inet_pton(AF_INET, ip.c_str(), &four.sin_addr) == 1) {
    four.sin_family = AF_INET;
    return address_from(reinterpret_cast<const sockaddr*>(&four)).at_port(port);
  }
  if (ip.size() < 2 || ip.front() != '[' || ip.back() != ']') return std::nullopt;
  ip = ip.substr(1, ip.size() - 2);
  sockaddr_in6 six{};
  if (inet_pton(AF_INET6, ip.c_str(), &six.sin6_addr) != 1) return std::nullopt;
  six.sin6_family = AF_INET6;
  return address_from(reinterpret_cast<const sockaddr*>(&six)).at_port(port);
}

std::string entry_text(const Entry& entry) {
  return fmt::format(
      "{}protocol={} rank={} world={} pid={} nonce={} machine={} host={} build={} node={} "
      "address={}",
      kEntry, entry.protocol, entry.rank, entry.world_size, entry.pid, hex(entry.nonce),
      entry.machine, entry.host, entry.build, entry.node, entry.address);
}

std::optional<Entry> parse_entry(std::string_view text) {
  if (text.size() > kMaxBytes || !text.starts_with(kEntry)) return std::nullopt;
  std::map<std::string_view, std::string_view> fields;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    const size_t equals = word.find('=');
    if (equals != word.npos) fields[word.substr(0, equals)] = word.substr(equals + 1);
  }
  Entry entry;
  const std::string_view nonce = fields["nonce"];
  if (!parse(fields["protocol"], &entry.protocol) || !parse(fields["rank"], &entry.rank) ||
      !parse(fields["world"], &entry.world_size) || !parse(fields["pid"], &entry.pid) ||
      nonce.size() != 32 || !parse(nonce.substr(0, 16), &entry.nonce.words[0], 16) ||
      !parse(nonce.substr(16), &entry.nonce.words[1], 16)) {
    return std::nullopt;
  }
  entry.machine = plain_word(std::string(fields["machine"]));
  entry.host = plain_word(std::string(fields["host"]));
  entry.build = plain_word(std::string(fields["build"]));
  entry.node = plain_word(std::string(fields["node"]));
  const auto address = parse_address(fields["address"]);
  if (address) entry.address = address->text;
  return entry;
}

std::string note_text(const Error& error) {
  return fmt::format("{}{} {} {}", kNote, static_cast<int>(error.code()), error.rank(),
                     error.message().substr(0, kMaxBytes));
}

std::optional<Error> parse_note(std::string_view text) {
  if (!text.starts_with(kNote)) return std::nullopt;
  text.remove_prefix(kNote.size());
  int code = 0, rank = -1;
  for (int* value : {&code, &rank}) {
    const std::string_view word = text.substr(0, text.find(' '));
    if (!parse(word, value) || word.size() == text.size()) return std::nullopt;
    text.remove_prefix(word.size() + 1);
  }
  if (code <= 0) return std::nullopt;
  Message message;  // makes it one line of bounded length
  message.set_text(text);
  return Error(static_cast<Code>(code), message.get_text()).with_rank(rank);
}

}  // namespace amxt::comm
