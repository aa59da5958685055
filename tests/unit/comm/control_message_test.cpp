#include "comm/control_message.h"

#include <gtest/gtest.h>

#include <string>

namespace amxt::comm {
namespace {

TEST(ControlMessage, ReadsWhatItWrote) {
  Message sent;
  sent.kind = MessageKind::kSegment;
  sent.code = -7;
  sent.about_rank = 3;
  sent.sequence = 1ull << 63;
  sent.bytes = -1;
  sent.payload = std::string("a\0b", 3);
  const std::string bytes = encode(sent);
  EXPECT_EQ(bytes.size(), kMessageHeaderBytes + 3);
  EXPECT_EQ(message_bytes(bytes), bytes.size());
  EXPECT_EQ(message_bytes(bytes.substr(0, kMessageHeaderBytes)), bytes.size());
  const Message got = decode(bytes);
  EXPECT_EQ(got.kind, MessageKind::kSegment);
  EXPECT_EQ(got.code, -7);
  EXPECT_EQ(got.about_rank, 3);
  EXPECT_EQ(got.sequence, 1ull << 63);
  EXPECT_EQ(got.bytes, -1);
  EXPECT_EQ(got.payload, sent.payload);
}

TEST(ControlMessage, AnythingElseIsNone) {
  const std::string good = encode(Message{});
  for (size_t length = 0; length < kMessageHeaderBytes; ++length) {
    EXPECT_FALSE(message_bytes(good.substr(0, length)));
  }
  for (size_t byte = 0; byte < 4; ++byte) {
    std::string other = good;
    other[byte] = static_cast<char>(other[byte] ^ 1);
    EXPECT_FALSE(message_bytes(other)) << "byte " << byte;
  }
  std::string endless = good;
  endless.replace(kMessageHeaderBytes - 8, 8, 8, '\xFF');
  EXPECT_FALSE(message_bytes(endless));
}

TEST(ControlMessage, TextIsCutAndStaysOneLine) {
  Message message;
  message.set_text("a\nb\tc\x7F");
  EXPECT_EQ(message.get_text(), "a b c ");
  message.set_text(std::string(5000, 'x'));
  EXPECT_EQ(message.get_text(), std::string(kMaxText, 'x'));
  message.payload = std::string(5000, 'x');  // whatever was sent
  EXPECT_EQ(message.get_text(), std::string(kMaxText, 'x'));
}

TEST(ControlMessage, AStructIsTakenOnlyWhole) {
  struct Pair {
    int one, other;
  };
  Message message;
  message.set(Pair{1, 2});
  Pair pair{};
  ASSERT_TRUE(message.get(&pair));
  EXPECT_EQ(pair.other, 2);
  message.payload.pop_back();
  EXPECT_FALSE(message.get(&pair));
  message.payload += "xx";
  EXPECT_FALSE(message.get(&pair));
}

}  // namespace
}  // namespace amxt::comm
