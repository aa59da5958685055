#include "base/text.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace amxt {
namespace {

TEST(TextTest, QuoteEscapesWhatATerminalWouldTakeForACommand) {
  EXPECT_EQ(quote("model.norm.weight"), "'model.norm.weight'");
  EXPECT_EQ(quote("a\nb\x1b[31m"), "'a\\x0ab\\x1b[31m'");
  EXPECT_EQ(quote("it's \\"), "'it\\x27s \\x5c'");
  EXPECT_EQ(quote("caf\xc3\xa9"), "'caf\xc3\xa9'");
  EXPECT_EQ(quote("\xff\xc3"), "'\\xff\\xc3'");
  EXPECT_EQ(quote(std::string("a\0b", 3)), "'a\\x00b'");
}

TEST(TextTest, QuoteCutsAt128Bytes) {
  EXPECT_EQ(quote(std::string(128, 'x')), "'" + std::string(128, 'x') + "'");
  EXPECT_EQ(quote(std::string(129, 'x')), "'" + std::string(128, 'x') + "...'");
  // No character is cut in two.
  EXPECT_EQ(quote(std::string(127, 'x') + "\xc3\xa9"), "'" + std::string(127, 'x') + "...'");
}

TEST(TextTest, BytesHaveUnits) {
  EXPECT_EQ(bytes_text(0), "0 bytes");
  EXPECT_EQ(bytes_text(1023), "1023 bytes");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
  EXPECT_EQ(bytes_text(uint64_t{24} << 30), "24.0 GiB");
}

TEST(TextTest, OneOfAThingIsNoPlural) {
  EXPECT_EQ(counted(0, "file"), "0 files");
  EXPECT_EQ(counted(1, "file"), "1 file");
  EXPECT_EQ(counted(2, "local rank"), "2 local ranks");
  EXPECT_EQ(bytes_text(1), "1 byte");
}

TEST(TextTest, SystemErrorsKeepTheirNumberAndGetACode) {
  const Error full = system_error("'f'", ENOSPC);
  EXPECT_EQ(full.code(), Code::kNoSpace);
  EXPECT_EQ(full.sys_errno(), ENOSPC);
  EXPECT_EQ(full.message(), "'f': No space left on device");
  EXPECT_EQ(system_error("x", ENOENT).code(), Code::kNotFound);
  EXPECT_EQ(system_error("x", EEXIST).code(), Code::kExists);
  EXPECT_EQ(system_error("x", EIO).code(), Code::kIo);
}

TEST(TextTest, Utf8RefusesSurrogatesOverlongFormsAndCutSequences) {
  EXPECT_TRUE(is_utf8("plain, \xc3\xa9, \xe2\x82\xac, \xf0\x9f\x98\x80"));
  EXPECT_FALSE(is_utf8("\xed\xa0\x80"));      // surrogate
  EXPECT_FALSE(is_utf8("\xc0\xaf"));          // overlong
  EXPECT_FALSE(is_utf8("\xe0\x80\x80"));      // overlong
  EXPECT_FALSE(is_utf8("\xf4\x90\x80\x80"));  // beyond U+10FFFF
  EXPECT_FALSE(is_utf8("\xe2\x82"));
}

}  // namespace
}  // namespace amxt
