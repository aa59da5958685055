#include "comm/rendezvous_entry.h"

#include <gtest/gtest.h>

#include <string>

namespace amxt::comm {
namespace {

Entry sample() {
  Entry entry;
  entry.rank = 3;
  entry.world_size = 4;
  entry.pid = 1234;
  entry.protocol = 1;
  entry.nonce = {{0x0123456789ABCDEF, 0xFEDCBA9876543210}};
  entry.machine = "boot-4026531840";
  entry.host = "node-1";
  entry.build = "0.1.0-abc";
  return entry;
}

TEST(RendezvousEntry, ReadsWhatItWrote) {
  const auto entry = parse_entry(entry_text(sample()));
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->rank, 3);
  EXPECT_EQ(entry->world_size, 4);
  EXPECT_EQ(entry->pid, 1234);
  EXPECT_EQ(entry->protocol, 1u);
  EXPECT_EQ(entry->nonce, sample().nonce);
  EXPECT_EQ(entry->machine, "boot-4026531840");
  EXPECT_EQ(entry->host, "node-1");
  EXPECT_EQ(entry->build, "0.1.0-abc");
}

TEST(RendezvousEntry, TheSocketIsNamedByTheNonce) {
  EXPECT_EQ(socket_name(sample().nonce), "amxtrain-0123456789abcdeffedcba9876543210");
}

TEST(RendezvousEntry, EveryMissingFieldMakesItNone) {
  for (const char* field : {"protocol", "rank", "world", "pid", "nonce"}) {
    std::string text = entry_text(sample());
    text.replace(text.find(std::string(" ") + field + "="), 2, " _");
    EXPECT_FALSE(parse_entry(text)) << text;
  }
}

TEST(RendezvousEntry, NoiseIsNone) {
  const std::string good = entry_text(sample());
  for (const std::string& text :
       {std::string(), std::string("amxtrain"), std::string("amxtrain "), good.substr(1),
        std::string(10'000, ' '), good + std::string(2000, ' ')}) {
    EXPECT_FALSE(parse_entry(text)) << text.substr(0, 80);
  }
  for (size_t length = 0; length < good.size(); ++length) (void)parse_entry(good.substr(0, length));
}

TEST(RendezvousEntry, WordsStayPlain) {
  EXPECT_EQ(plain_word("a b\n=\x01.-_9"), "a_b___.-_9");
  EXPECT_EQ(plain_word(std::string(100, 'x')).size(), 63u);
}

TEST(RendezvousEntry, ANoteCarriesTheError) {
  const auto note =
      parse_note(note_text(Error(Code::kMismatch, "rank 1 was\nstarted twice").with_rank(1)));
  ASSERT_TRUE(note);
  EXPECT_EQ(note->code(), Code::kMismatch);
  EXPECT_EQ(note->rank(), 1);
  EXPECT_EQ(note->message(), "rank 1 was started twice");
  for (const char* text : {"", "failed", "failed ", "failed x 1 text", "failed 0 1 text",
                           "failed 1 text", "failed 7 1"}) {
    EXPECT_FALSE(parse_note(text)) << text;
  }
}

}  // namespace
}  // namespace amxt::comm
