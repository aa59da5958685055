#include "io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <random>
#include <thread>

#include "support/model_files.h"

namespace amxt::io {
namespace {

using test::length_bytes;
using test::safetensors_bytes;
using test::TemporaryDirectory;
using testing::ElementsAre;
using testing::HasSubstr;

// One tensor 't' of 4 bytes, its entry as given.
std::string entry_file(const std::string& entry, size_t data_bytes = 4) {
  return safetensors_bytes("{\"t\":" + entry + "}", data_bytes);
}
std::string shape_file(const std::string& shape) {
  return entry_file(R"({"dtype":"U8","shape":)" + shape + R"(,"data_offsets":[0,4]})");
}
std::string named_file(const std::string& name) {
  return safetensors_bytes("{\"" + name + R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                           4);
}
// Two tensors of one byte each, at the offsets given.
std::string two_file(const std::string& a, const std::string& b, size_t data_bytes) {
  return safetensors_bytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + a +
                               R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" + b + "}}",
                           data_bytes);
}
std::string nested(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

struct Malformed {
  const char* name;
  std::string bytes;
  std::vector<std::string> says;  // beside the file's name
};

void PrintTo(const Malformed& malformed, std::ostream* out) { *out << malformed.name; }

class SafetensorsRefused : public testing::TestWithParam<Malformed> {};

TEST_P(SafetensorsRefused, NamesFileAndCause) {
  TemporaryDirectory directory;
  const std::string path = directory / "model.safetensors";
  test::write_bytes(path, GetParam().bytes);
  const auto file = SafetensorsFile::open(path);
  ASSERT_FALSE(file.ok()) << "a malformed file was accepted";
  EXPECT_THAT(file.error().message(), testing::StartsWith("'" + path + "': "));
  EXPECT_EQ(file.error().message().find('\n'), std::string::npos);
  for (const std::string& text : GetParam().says)
    EXPECT_THAT(file.error().message(), HasSubstr(text));
}

const Malformed kMalformed[] = {
    {"Case01_EmptyFile", "", {"the file is empty"}},
    {"Case02_OneByte", "x", {"1 bytes at offset 0"}},
    {"Case02_SevenBytes", "1234567", {"7 bytes at offset 0"}},
    {"Case03_HeaderLongerThanFile",
     length_bytes(3) + "{}",
     {"header length at offset 0 is 3", "2 bytes behind it"}},
    {"Case04_LengthOfAllOnes",
     length_bytes(UINT64_MAX) + "{}",
     {"18446744073709551615", "limit is 100000000"}},
    {"Case04_LengthThatWrapsWithItsOwn8Bytes",
     length_bytes(UINT64_MAX - 7) + "{}",
     {"limit is 100000000"}},
    {"Case05_LengthOneAboveLimit",
     length_bytes(100'000'001) + "{}",
     {"100000001", "limit is 100000000"}},
    {"Case05_LengthAtLimitInShortFile", length_bytes(100'000'000) + "{}", {"2 bytes behind it"}},
    {"Case06_LengthZero", length_bytes(0) + "{}", {"header length at offset 0 is 0"}},
    {"Case07_HeaderNotUtf8", safetensors_bytes("{\"\xff\":1}"), {"header at offset 8", "UTF-8"}},
    {"Case07_OverlongUtf8", safetensors_bytes("{\"\xc0\xaf\":1}"), {"UTF-8"}},
    {"Case08_NotJson",
     safetensors_bytes("{nonsense}"),
     {"header at offset 10",
      "not valid JSON: syntax error while parsing object key - invalid literal"}},
    {"Case08_TruncatedJson", safetensors_bytes(R"({"t":{"dtype":"U8")"), {"not valid JSON"}},
    {"Case08_TwoValues", safetensors_bytes("{}{}"), {"header at offset 10", "not valid JSON"}},
    {"Case08_BytesHiddenBehindNul",
     safetensors_bytes(std::string("{}\0{\"t\":1}", 10)),
     {"header at offset 10", "NUL"}},
    {"Case08_PaddedWithNul", safetensors_bytes(std::string("{}\0\0", 4)), {"NUL"}},
    {"Case08_Comment", safetensors_bytes("{/**/}"), {"not valid JSON"}},
    {"Case08_NaN",
     entry_file(R"({"dtype":"U8","shape":[NaN],"data_offsets":[0,4]})"),
     {"not valid JSON"}},
    {"Case09_Array", safetensors_bytes("[]"), {"begins with '[' instead of '{'"}},
    {"Case09_String", safetensors_bytes("\"x\""), {"instead of '{'"}},
    {"Case09_Null", safetensors_bytes("null"), {"begins with 'n'"}},
    {"Case10_LeadingByteAfterSpaces",
     safetensors_bytes("  x{}"),
     {"header at offset 10", "begins with 'x'"}},
    {"Case10_ByteOrderMark",
     safetensors_bytes("\xef\xbb\xbf{}"),
     {"header at offset 8", "instead of '{'"}},
    {"Case10_OnlySpaces", safetensors_bytes("    "), {"only white space"}},
    {"Case13_DepthBomb", entry_file("{\"x\":" + nested(100'000) + "}"), {"nested deeper than 16"}},
    {"Case13_DepthBombOfTensors",
     entry_file(nested(100'000)),
     {"tensor 't'", "an array instead of an object"}},
    {"Case13_DepthBombInShape", shape_file(nested(100'000)), {"tensor 't'", "'shape'[0]"}},
    {"Case14_DuplicateTensor",
     safetensors_bytes(
         R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"t":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
         4),
     {"tensor 't'", "duplicate"}},
    {"Case14_DuplicateByEscape",
     safetensors_bytes(
         R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"\u0074":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
         4),
     {"tensor 't'", "duplicate"}},
    {"Case14_DuplicateField",
     entry_file(R"({"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]})"),
     {"tensor 't'", "duplicate key 'dtype'"}},
    {"Case14_DuplicateUnknownField",
     entry_file(R"({"x":1,"x":2,"dtype":"U8","shape":[4],"data_offsets":[0,4]})"),
     {"duplicate key 'x'"}},
    {"Case14_DuplicateMetadata",
     safetensors_bytes(R"({"__metadata__":{},"__metadata__":{}})"),
     {"duplicate key '__metadata__'"}},
    {"Case14_DuplicateMetadataKey",
     safetensors_bytes(R"({"__metadata__":{"a":"1","a":"2"}})"),
     {"__metadata__", "duplicate key 'a'"}},
    {"Case16_MetadataNumber",
     safetensors_bytes(R"({"__metadata__":{"a":1}})"),
     {"__metadata__", "'a'", "not a string"}},
    {"Case16_MetadataNull", safetensors_bytes(R"({"__metadata__":{"a":null}})"), {"not a string"}},
    {"Case16_MetadataObject",
     safetensors_bytes(R"({"__metadata__":{"a":{"b":"c"}}})"),
     {"not a string"}},
    {"Case16_MetadataArray",
     safetensors_bytes(R"({"__metadata__":{"a":["b"]}})"),
     {"not a string"}},
    {"Case16_MetadataNotAnObject",
     safetensors_bytes(R"({"__metadata__":"x"})"),
     {"'__metadata__'", "not an object"}},
    {"Case17_NoDtype",
     entry_file(R"({"shape":[4],"data_offsets":[0,4]})"),
     {"tensor 't' (entry at offset 13)", "'dtype' is missing"}},
    {"Case17_NoShape",
     entry_file(R"({"dtype":"U8","data_offsets":[0,4]})"),
     {"tensor 't'", "'shape' is missing"}},
    {"Case17_NoOffsets",
     entry_file(R"({"dtype":"U8","shape":[4]})"),
     {"tensor 't'", "'data_offsets' is missing"}},
    {"Case17_EmptyEntry", entry_file("{}"), {"tensor 't'", "missing"}},
    {"Case17_EntryIsNumber", entry_file("5"), {"tensor 't'", "5 instead of an object"}},
    {"Case17_EntryIsNull", entry_file("null"), {"tensor 't'", "null instead of an object"}},
    {"Case18_UnknownDtype",
     entry_file(R"({"dtype":"F128","shape":[4],"data_offsets":[0,4]})"),
     {"tensor 't'", "unknown dtype 'F128'"}},
    {"Case18_UnsupportedDtype",
     entry_file(R"({"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]})"),
     {"tensor 't'", "dtype F8_E4M3 is not supported"}},
    {"Case18_LowerCaseDtype",
     entry_file(R"({"dtype":"u8","shape":[4],"data_offsets":[0,4]})"),
     {"unknown dtype 'u8'"}},
    {"Case18_DtypeIsNumber",
     entry_file(R"({"dtype":8,"shape":[4],"data_offsets":[0,4]})"),
     {"'dtype' is 8, not a string"}},
    {"Case19_NegativeExtent", shape_file("[-4]"), {"tensor 't'", "'shape'[0]", "-4 is negative"}},
    {"Case19_FractionalExtent", shape_file("[1.5]"), {"tensor 't'", "'1.5' is not a whole number"}},
    {"Case19_ExponentExtent", shape_file("[1e3]"), {"tensor 't'", "'1e3' is not a whole number"}},
    {"Case19_WholeFloatExtent", shape_file("[4.0]"), {"not a whole number"}},
    {"Case19_BooleanExtent", shape_file("[true]"), {"tensor 't'", "true is not a whole number"}},
    {"Case19_StringExtent", shape_file("[\"4\"]"), {"tensor 't'", "not a whole number"}},
    {"Case19_NullExtent", shape_file("[null]"), {"not a whole number"}},
    {"Case19_ObjectExtent", shape_file("[{}]"), {"not a whole number"}},
    {"Case19_ExtentOf2To63",
     shape_file("[9223372036854775808]"),
     {"tensor 't'", "more than 2^63 - 1"}},
    {"Case19_ExtentOf2To64",
     shape_file("[18446744073709551616]"),
     {"tensor 't'", "not a whole number below 2^63"}},
    {"Case19_SecondExtentIsNamed", shape_file("[4,-1]"), {"'shape'[1]"}},
    {"Case19_ShapeIsNumber", shape_file("4"), {"'shape' is 4, not an array"}},
    {"Case19_ShapeIsObject", shape_file("{}"), {"'shape' is an object"}},
    {"Case20_ElementsOverflow", shape_file("[4294967296,4294967296]"), {"tensor 't'", "overflow"}},
    {"Case20_OverflowBehindWhichAZeroStands",
     shape_file("[4294967296,4294967296,0]"),
     {"overflow"}},
    {"Case21_BytesOverflow",
     entry_file(R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,4]})"),
     {"tensor 't'", "bytes", "overflow"}},
    {"Case22_RankNine",
     shape_file("[1,1,1,1,1,1,1,1,4]"),
     {"tensor 't'", "more than 8 dimensions"}},
    {"Case23_OneOffset",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":[0]})"),
     {"tensor 't'", "1 numbers instead of 2"}},
    {"Case23_NoOffset",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":[]})"),
     {"0 numbers instead of 2"}},
    {"Case23_ThreeOffsets",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4,8]})"),
     {"tensor 't'", "more than 2"}},
    {"Case23_OffsetsAreString",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":"04"})"),
     {"'data_offsets' is '04', not an array"}},
    {"Case23_FractionalOffset",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4.5]})"),
     {"'data_offsets'[1]", "not a whole number"}},
    {"Case23_NegativeOffset",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":[-4,0]})"),
     {"'data_offsets'[0]", "negative"}},
    {"Case24_BeginsBehindItsEnd",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":[4,0]})"),
     {"tensor 't'", "[4, 0] end before they begin"}},
    {"Case25_EndsBeyondFile",
     entry_file(R"({"dtype":"U8","shape":[5],"data_offsets":[0,5]})"),
     {"tensor 't'", "1 byte beyond the end of the file at offset 65"}},
    {"Case25_EndsFarBeyondFile",
     entry_file(
         R"({"dtype":"U8","shape":[4],"data_offsets":[9223372036854775803,9223372036854775807]})"),
     {"beyond the end"}},
    {"Case26_FewerBytesThanShape",
     entry_file(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"),
     {"tensor 't'", "hold 4 bytes", "needs 8"}},
    {"Case26_MoreBytesThanShape",
     entry_file(R"({"dtype":"BF16","shape":[1],"data_offsets":[0,4]})"),
     {"tensor 't'", "hold 4 bytes", "needs 2"}},
    {"Case27_HoleAtStart",
     entry_file(R"({"dtype":"U8","shape":[4],"data_offsets":[4,8]})", 8),
     {"tensor 't'", "a hole of 4 bytes behind the header"}},
    {"Case28_HoleBetween",
     two_file("[0,2]", "[3,5]", 5),
     {"tensor 'b'", "a hole of 1 byte behind tensor 'a'"}},
    {"Case29_Overlap", two_file("[0,2]", "[1,3]", 3), {"tensor 'b'", "inside tensor 'a'"}},
    {"Case29_SameBytesTwice", two_file("[0,2]", "[0,2]", 2), {"tensor 'b'", "inside tensor 'a'"}},
    {"Case31_TrailingByte",
     two_file("[0,2]", "[2,4]", 5),
     {"1 bytes at offset", "belong to no tensor"}},
    {"Case31_TrailingBytesWithoutTensors",
     safetensors_bytes("{}", 3),
     {"3 bytes at offset 10 belong to no tensor"}},
    {"Case32_CutByOneByte",
     two_file("[0,2]", "[2,4]", 3),
     {"tensor 'b'", "1 byte beyond the end of the file"}},
    {"Case32_CutByOnePage",
     entry_file(R"({"dtype":"U8","shape":[8192],"data_offsets":[0,8192]})", 4096),
     {"tensor 't'", "4096 bytes beyond"}},
    {"Case34_EmptyName", named_file(""), {"the name is empty"}},
    {"Case34_NameOf4097Bytes",
     named_file(std::string(4097, 'n')),
     {"4097 bytes", "limit is 4096", "nnn...'"}},
    {"Case34_NulInName", named_file("a\\u0000b"), {"'a\\x00b'", "control character"}},
    {"Case34_NewlineInName", named_file("a\\nb"), {"'a\\x0ab'", "control character"}},
    {"Case34_EscapeInName", named_file("a\\u001b[31m"), {"\\x1b", "control character"}},
    {"Case34_LoneSurrogate", named_file("a\\ud800b"), {"not valid JSON"}},
};

INSTANTIATE_TEST_SUITE_P(Malformed, SafetensorsRefused, testing::ValuesIn(kMalformed),
                         [](const auto& test) { return std::string(test.param.name); });

struct WellFormed {
  const char* name;
  std::string bytes;
  size_t tensors;
};

void PrintTo(const WellFormed& file, std::ostream* out) { *out << file.name; }

class SafetensorsAccepted : public testing::TestWithParam<WellFormed> {};

TEST_P(SafetensorsAccepted, Opens) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "f", GetParam().bytes);
  const auto file = SafetensorsFile::open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(file->tensors().size(), GetParam().tensors);
}

const WellFormed kWellFormed[] = {
    {"NoTensor", safetensors_bytes("{}"), 0},
    {"SpacesBehind", safetensors_bytes("{}      "), 0},
    {"WhiteSpaceBeforeAndBehind", safetensors_bytes(" \t\r\n{} \n"), 0},
    {"Scalar", entry_file(R"({"dtype":"F32","shape":[],"data_offsets":[0,4]})"), 1},
    {"RankEight", shape_file("[1,1,1,1,1,1,1,4]"), 1},
    {"UnknownFields",
     entry_file(
         R"({"dtype":"U8","x":{"y":[1,{"z":null}]},"shape":[4],"w":1.5,"v":[[]],"data_offsets":[0,4]})"),
     1},
    {"EmptyTensorBetween",
     safetensors_bytes(
         R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"z":{"dtype":"F64","shape":[0,3],"data_offsets":[2,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
         4),
     3},
    {"EmptyTensorWithHugeExtentBehindItsZero",
     entry_file(R"({"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})", 0), 1},
    {"NameOf4096Bytes", named_file(std::string(4096, 'n')), 1},
    {"NameBeyondAscii", named_file("gew\xc3\xb6hnlich \\ud83d\\ude00"), 1},
};

INSTANTIATE_TEST_SUITE_P(WellFormed, SafetensorsAccepted, testing::ValuesIn(kWellFormed),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(SafetensorsFile, TensorsLieInOrderOfOffset) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "f", two_file("[2,4]", "[0,2]", 4));
  const auto file = SafetensorsFile::open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(file->tensors()[0].name, "b");
  EXPECT_EQ(file->tensors()[1].name, "a");
  EXPECT_EQ(file->find("a")->begin, file->file_bytes() - 2);
  EXPECT_EQ(file->find("c"), nullptr);
  const auto missing = file->require("c");
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message(), HasSubstr("tensor 'c' is missing"));
}

TEST(SafetensorsFile, Case35_FileCutWhileOpenIsAnErrorNotASignal) {
  TemporaryDirectory directory;
  const std::string path = directory / "f";
  test::write_bytes(path, two_file("[0,2]", "[2,4]", 4));
  const auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(::truncate(path.c_str(), file->file_bytes() - 1), 0);
  std::byte data[2];
  const auto read = file->read(*file->find("b"), 0, data);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
  EXPECT_THAT(read.error().message(),
              testing::StartsWith("'" + path + "': tensor 'b': ends at offset"));
}

TEST(SafetensorsFile, ReadsNothingOutsideTheTensor) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "f", two_file("[0,2]", "[2,4]", 4));
  const auto file = SafetensorsFile::open(directory / "f");
  ASSERT_TRUE(file.ok());
  std::byte data[4];
  const TensorEntry& a = *file->find("a");
  EXPECT_TRUE(file->read(a, 0, std::span(data).first(2)).ok());
  EXPECT_TRUE(file->read(a, 2, std::span(data).first(0)).ok());
  for (const auto& [offset, bytes] :
       {std::pair<int64_t, size_t>{0, 3}, {1, 2}, {3, 0}, {-1, 1}, {INT64_MAX, 1}}) {
    const auto read = file->read(a, offset, std::span(data).first(bytes));
    ASSERT_FALSE(read.ok()) << offset;
    EXPECT_THAT(read.error().message(), HasSubstr("tensor 'a'"));
  }
}

class NotAFile : public testing::TestWithParam<bool> {
 protected:
  Result<SafetensorsFile> open(const std::string& directory, const std::string& name) {
    return GetParam() ? SafetensorsFile::open_beneath(directory, name)
                      : SafetensorsFile::open(directory + "/" + name);
  }
  TemporaryDirectory directory_;
};

TEST_P(NotAFile, Case36_Directory) {
  std::filesystem::create_directory(directory_ / "d");
  const auto file = open(directory_.path(), "d");
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(file.error().message(), HasSubstr("is a directory, not a regular file"));
}

TEST_P(NotAFile, Case36_FifoDoesNotBlock) {
  ASSERT_EQ(::mkfifo((directory_ / "fifo").c_str(), 0600), 0);
  const auto file = open(directory_.path(), "fifo");
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(file.error().message(), HasSubstr("is a FIFO, not a regular file"));
}

TEST_P(NotAFile, Case36_Device) {
  const auto file = open("/dev", "zero");
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(file.error().message(), HasSubstr("is a character device"));
}

TEST_P(NotAFile, Missing) {
  const auto file = open(directory_.path(), "none");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().code(), Code::kNotFound);
  EXPECT_THAT(file.error().message(), HasSubstr("none'"));
}

INSTANTIATE_TEST_SUITE_P(Opened, NotAFile, testing::Bool(),
                         [](const auto& test) { return test.param ? "Beneath" : "ByPath"; });

TEST(SafetensorsFile, Case36_LinkOutOfTheDirectoryIsRefusedAndSaysHowToGoRound) {
  TemporaryDirectory directory;
  std::filesystem::create_directories(directory / "snapshots/1");
  test::write_bytes(directory / "blob", safetensors_bytes("{}"));
  std::filesystem::create_symlink("../../blob", directory / "snapshots/1/model.safetensors");
  const auto file = SafetensorsFile::open_beneath(directory / "snapshots/1", "model.safetensors");
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(file.error().message(), HasSubstr("a symbolic link that leaves its directory"));
  EXPECT_THAT(file.error().message(), HasSubstr("copy or a hard link"));
}

TEST(SafetensorsFile, LinkWithinTheDirectoryIsFollowed) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "blob", safetensors_bytes("{}"));
  std::filesystem::create_symlink("blob", directory / "model.safetensors");
  EXPECT_TRUE(SafetensorsFile::open_beneath(directory.path(), "model.safetensors").ok());
}

// Any change of a byte of the header is refused or leaves a file whose every tensor can still be read.
TEST(SafetensorsFile, ByteChangesNeverLeadOutOfTheFile) {
  TemporaryDirectory directory;
  const std::string good = safetensors_bytes(
      R"({"__metadata__":{"format":"pt"},"a.w":{"dtype":"BF16","shape":[4,8],"data_offsets":[0,64]},)"
      R"("a.b":{"dtype":"F32","shape":[16],"data_offsets":[64,128]},"c":{"dtype":"U8","shape":[],"data_offsets":[128,129]}})",
      129);
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const size_t header = good.size() - 129;
  std::vector<std::byte> data(129);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = good;
    for (uint32_t changes = 1 + random() % 3; changes > 0; --changes) {
      bytes[random() % header] =
          static_cast<char>(i % 2 ? random() : "0123456789[]{},:\"-. "[random() % 20]);
    }
    test::write_bytes(directory / "f", bytes);
    const auto file = SafetensorsFile::open(directory / "f");
    if (!file) continue;
    for (const TensorEntry& tensor : file->tensors()) {
      ASSERT_TRUE(
          file->read(tensor, 0, std::span(data).first(static_cast<size_t>(tensor.bytes()))).ok());
    }
  }
}

std::vector<TensorPlan> small_plan() {
  return {{"a", DType::kBF16, {2, 3}},
          {"b.bias", DType::kF32, {}},
          {"empty", DType::kI64, {0, 5}},
          {"c", DType::kU8, {3}}};
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

// Gives every tensor but `left_out` its bytes.
void write_all(SafetensorsWriter& writer, std::string_view left_out = "") {
  for (const TensorEntry& tensor : writer.tensors()) {
    if (tensor.name == left_out) continue;
    const std::string data(static_cast<size_t>(tensor.bytes()), tensor.name[0]);
    ASSERT_TRUE(writer.write(tensor, 0, bytes_of(data)).ok());
  }
}

TEST(SafetensorsWriter, WhatIsWrittenIsReadBack) {
  TemporaryDirectory directory;
  auto writer =
      SafetensorsWriter::create(directory / "f", small_plan(), {{"format", "pt"}, {"step", "7"}});
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  write_all(*writer);
  ASSERT_TRUE(writer->finish().ok());

  const auto file = SafetensorsFile::open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(file->file_bytes(), writer->file_bytes());
  EXPECT_THAT(file->metadata(), ElementsAre(std::pair("format", "pt"), std::pair("step", "7")));
  ASSERT_EQ(file->tensors().size(), 4u);
  EXPECT_THAT(file->find("a")->shape, ElementsAre(2, 3));
  EXPECT_THAT(file->find("b.bias")->shape, testing::IsEmpty());
  EXPECT_THAT(file->find("empty")->shape, ElementsAre(0, 5));
  EXPECT_EQ(file->find("a")->begin % 8, 0) << "the data part is aligned";
  for (const TensorEntry& tensor : file->tensors()) {
    std::string data(static_cast<size_t>(tensor.bytes()), '?');
    ASSERT_TRUE(file->read(tensor, 0, std::as_writable_bytes(std::span(data))).ok());
    EXPECT_EQ(data, std::string(data.size(), tensor.name[0]));
  }
}

TEST(SafetensorsWriter, PiecesOfAnyOrderAndThreadMakeTheTensor) {
  TemporaryDirectory directory;
  auto writer = SafetensorsWriter::create(directory / "f", {{"t", DType::kU8, {4096}}});
  ASSERT_TRUE(writer.ok());
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int piece = 15; piece >= 0; --piece) {
        const int place = piece * 4 + thread;
        const std::string data(64, static_cast<char>(place));
        EXPECT_TRUE(writer->write(writer->tensors()[0], place * 64, bytes_of(data)).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(writer->finish().ok());
  const std::string bytes = test::read_bytes(directory / "f");
  for (size_t i = 0; i < 4096; ++i)
    ASSERT_EQ(bytes[bytes.size() - 4096 + i], static_cast<char>(i / 64));
}

TEST(SafetensorsWriter, MissingBytesAreNamedAtTheEnd) {
  TemporaryDirectory directory;
  auto writer = SafetensorsWriter::create(directory / "f", small_plan());
  ASSERT_TRUE(writer.ok());
  write_all(*writer, "c");
  const auto finished = writer->finish();
  ASSERT_FALSE(finished.ok());
  EXPECT_THAT(finished.error().message(), HasSubstr("tensor 'c': 0 of 3 bytes were written"));
}

TEST(SafetensorsWriter, FileOfAKilledWriterIsNotReadable) {
  TemporaryDirectory directory;
  {
    auto writer = SafetensorsWriter::create(directory / "f", small_plan());
    ASSERT_TRUE(writer.ok());
    write_all(*writer);
  }
  EXPECT_FALSE(SafetensorsFile::open(directory / "f").ok());
}

TEST(SafetensorsWriter, ExistingFileStaysAsItIs) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "f", "precious");
  const auto writer = SafetensorsWriter::create(directory / "f", small_plan());
  ASSERT_FALSE(writer.ok());
  EXPECT_EQ(writer.error().code(), Code::kExists);
  EXPECT_EQ(test::read_bytes(directory / "f"), "precious");
}

TEST(SafetensorsWriter, WritesNothingOutsideTheTensor) {
  TemporaryDirectory directory;
  auto writer = SafetensorsWriter::create(directory / "f", small_plan());
  ASSERT_TRUE(writer.ok());
  const auto written = writer->write(*writer->find("c"), 1, bytes_of("xxx"));
  ASSERT_FALSE(written.ok());
  EXPECT_THAT(written.error().message(), HasSubstr("tensor 'c'"));
}

class FaultyDisk : public testing::Test {
 protected:
  void fail(std::string operation, int error) {
    set_file_fault([operation, error](std::string_view at, const std::string&) {
      return at == operation ? error : 0;
    });
  }
  void TearDown() override { set_file_fault({}); }
  TemporaryDirectory directory_;
};

TEST_F(FaultyDisk, FullDiskShowsBeforeAnythingIsWritten) {
  fail("reserve", ENOSPC);
  const auto writer = SafetensorsWriter::create(directory_ / "f", small_plan());
  ASSERT_FALSE(writer.ok());
  EXPECT_EQ(writer.error().code(), Code::kNoSpace);
}

TEST_F(FaultyDisk, FailedWriteNamesTheTensor) {
  auto writer = SafetensorsWriter::create(directory_ / "f", small_plan());
  ASSERT_TRUE(writer.ok());
  fail("write", EIO);
  const auto written = writer->write(*writer->find("c"), 0, bytes_of("xxx"));
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().code(), Code::kIo);
  EXPECT_THAT(written.error().message(), HasSubstr("/f': tensor 'c': "));
}

TEST_F(FaultyDisk, FailedSyncIsAnError) {
  auto writer = SafetensorsWriter::create(directory_ / "f", small_plan());
  ASSERT_TRUE(writer.ok());
  write_all(*writer);
  fail("sync", EIO);
  EXPECT_FALSE(writer->finish().ok());
}

TEST_F(FaultyDisk, FailedReadNamesTheTensor) {
  test::write_bytes(directory_ / "f", two_file("[0,2]", "[2,4]", 4));
  const auto file = SafetensorsFile::open(directory_ / "f");
  ASSERT_TRUE(file.ok());
  fail("read", EIO);
  std::byte data[2];
  const auto read = file->read(*file->find("b"), 0, data);
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(read.error().message(), HasSubstr("/f': tensor 'b': "));
}

struct BadPlan {
  const char* name;
  std::vector<TensorPlan> tensors;
  std::string says;
};

void PrintTo(const BadPlan& plan, std::ostream* out) { *out << plan.name; }

class PlanRefused : public testing::TestWithParam<BadPlan> {};

TEST_P(PlanRefused, BeforeAFileIsMade) {
  TemporaryDirectory directory;
  const auto writer = SafetensorsWriter::create(directory / "f", GetParam().tensors);
  ASSERT_FALSE(writer.ok());
  EXPECT_THAT(writer.error().message(), HasSubstr(GetParam().says));
  EXPECT_FALSE(std::filesystem::exists(directory / "f"));
}

INSTANTIATE_TEST_SUITE_P(
    Plans, PlanRefused,
    testing::Values(
        BadPlan{"NamedTwice",
                {{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}},
                "tensor 'a': named twice"},
        BadPlan{"EmptyName", {{"", DType::kU8, {1}}}, "not a name"},
        BadPlan{"MetadataAsName", {{"__metadata__", DType::kU8, {1}}}, "not a name"},
        BadPlan{"NegativeExtent", {{"a", DType::kU8, {-1}}}, "negative"},
        BadPlan{"RankNine", {{"a", DType::kU8, std::vector<int64_t>(9, 1)}}, "8 dimensions"},
        BadPlan{"Overflow", {{"a", DType::kF64, {INT64_MAX}}}, "overflows"},
        BadPlan{
            "SumOverflow", {{"a", DType::kU8, {INT64_MAX}}, {"b", DType::kU8, {1}}}, "overflows"}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace amxt::io
