#include "comm/control_message.h"

#include <algorithm>

namespace amxt::comm {
namespace {

struct Header {
  uint32_t magic = kMessageMagic;
  MessageKind kind;
  int32_t code, about_rank;
  uint64_t sequence;
  int64_t bytes;
  uint64_t payload_bytes;
};
static_assert(sizeof(Header) == kMessageHeaderBytes && std::is_trivially_copyable_v<Header>);

}  // namespace

void Message::set_text(std::string_view text) { payload = text.substr(0, kMaxText); }

std::string Message::get_text() const {
  std::string line = payload.substr(0, std::min(kMaxText, payload.find('\0')));
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, ' ');
  return line;
}

std::string encode(const Message& message) {
  Header header{};
  header.magic = kMessageMagic;
  header.kind = message.kind;
  header.code = message.code;
  header.about_rank = message.about_rank;
  header.sequence = message.sequence;
  header.bytes = message.bytes;
  header.payload_bytes = message.payload.size();
  std::string bytes;
  bytes.reserve(sizeof header + message.payload.size());
  bytes.append(reinterpret_cast<const char*>(&header), sizeof header);
  bytes += message.payload;
  return bytes;
}

std::optional<size_t> message_bytes(std::string_view bytes) {
  Header header;
  if (bytes.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kMessageMagic) return std::nullopt;
  if (header.payload_bytes > SIZE_MAX - sizeof header) return std::nullopt;
  return sizeof header + header.payload_bytes;
}

Message decode(std::string_view bytes) {
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  Message message;
  message.kind = header.kind;
  message.code = header.code;
  message.about_rank = header.about_rank;
  message.sequence = header.sequence;
  message.bytes = header.bytes;
  message.payload = bytes.substr(sizeof header);
  return message;
}

}  // namespace amxt::comm
