#include "io/npy.h"

#include <gmock/gmock.h>

#include "data_files.h"

namespace amxt::io {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Npy : public DataFiles {
 protected:
  static Result<NpyHeader> parse(const std::string& bytes) {
    return parse_npy_header(std::as_bytes(std::span(bytes)), static_cast<int64_t>(bytes.size()));
  }
  static Result<NpyHeader> parse_dictionary(const std::string& dictionary, size_t data_bytes,
                                            int version = 1) {
    return parse(npy_bytes(dictionary, std::string(data_bytes, '\0'), version));
  }
  static void refused(const Result<NpyHeader>& header, Code code, const std::string& part) {
    ASSERT_FALSE(header) << "expected an error with: " << part;
    EXPECT_EQ(header.error().code(), code) << header.error().message();
    EXPECT_THAT(header.error().message(), HasSubstr(part));
  }
  static std::string dictionary(const std::string& descr, const std::string& shape) {
    return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
  }
};

TEST_F(Npy, ReadsWhatNumpyWrites) {
  for (const int version : {1, 2, 3}) {
    const auto header = parse_dictionary(dictionary("<u2", "(3,)") + "      \n", 6, version);
    ASSERT_TRUE(header) << header.error().message();
    EXPECT_EQ(header->item_bytes, 2);
    EXPECT_FALSE(header->is_signed);
    EXPECT_FALSE(header->big_endian);
    EXPECT_THAT(header->shape, ElementsAre(3));
    EXPECT_EQ(header->items, 3);
  }
}

TEST_F(Npy, KnowsEveryIntegerType) {
  for (const char* type : {"i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"}) {
    for (const char* order : {"<", ">", "=", "|", ""}) {
      const int bytes = type[1] - '0';
      const auto header = parse_dictionary(dictionary(std::string(order) + type, "(5,)"),
                                           5 * static_cast<size_t>(bytes));
      ASSERT_TRUE(header) << order << type << ": " << header.error().message();
      EXPECT_EQ(header->item_bytes, bytes);
      EXPECT_EQ(header->is_signed, type[0] == 'i');
      EXPECT_EQ(header->big_endian, order[0] == '>');
    }
  }
}

TEST_F(Npy, ReadsShapesOfOneAndTwoDimensionsAndOfPython2) {
  EXPECT_THAT(parse_dictionary(dictionary("<i4", "(2, 3)"), 24)->shape, ElementsAre(2, 3));
  EXPECT_THAT(parse_dictionary(dictionary("<i4", "(2L, 3L)"), 24)->shape, ElementsAre(2, 3));
  EXPECT_EQ(parse_dictionary(dictionary("<i4", "(0, 3)"), 0)->items, 0);
}

TEST_F(Npy, RefusesOtherTypesByName) {
  for (const auto& [type, why] :
       std::vector<std::pair<std::string, std::string>>{{"<f4", "floating point"},
                                                        {"<f8", "floating point"},
                                                        {"|b1", "boolean"},
                                                        {"<c8", "complex"},
                                                        {"|O", "Python objects"},
                                                        {"<U3", "text"},
                                                        {"|S3", "text"},
                                                        {"<i3", "unknown"},
                                                        {"<i16", "unknown"},
                                                        {"<", "unknown"},
                                                        {"", "unknown"},
                                                        {"<M8[s]", "unknown"}}) {
    refused(parse_dictionary(dictionary(type, "(1,)"), 8), Code::kUnsupported, why);
    refused(parse_dictionary(dictionary(type, "(1,)"), 8), Code::kUnsupported, "'" + type + "'");
  }
  refused(parse_dictionary("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,)}", 4),
          Code::kUnsupported, "record");
}

TEST_F(Npy, RefusesFortranOrderByName) {
  refused(parse_dictionary("{'descr': '<i4', 'fortran_order': True, 'shape': (2, 3)}", 24),
          Code::kUnsupported, "fortran_order");
}

TEST_F(Npy, RefusesOtherDimensions) {
  refused(parse_dictionary(dictionary("<i4", "()"), 4), Code::kUnsupported, "0 dimensions");
  refused(parse_dictionary(dictionary("<i4", "(1, 1, 1)"), 4), Code::kUnsupported, "(1, 1, 1)");
}

TEST_F(Npy, RefusesAShapeThatTheFileDoesNotHave) {
  refused(parse_dictionary(dictionary("<i4", "(3,)"), 11), Code::kCorrupt, "needs 12 bytes");
  refused(parse_dictionary(dictionary("<i4", "(3,)"), 13), Code::kCorrupt, "there are 13");
  refused(parse_dictionary(dictionary("<i8", "(1152921504606846976, 2)"), 0), Code::kFormat,
          "too large");
  refused(parse_dictionary(dictionary("<i8", "(4611686018427387904, 4)"), 0), Code::kFormat,
          "too large");
  refused(parse_dictionary(dictionary("<i8", "(99999999999999999999,)"), 0), Code::kFormat,
          "not a size");
}

TEST_F(Npy, RefusesBrokenHeaders) {
  for (const char* text :
       {"",
        "{",
        "{}",
        "[]",
        "{'descr'}",
        "{'descr': }",
        "{'descr': '<i4'",
        "{'descr: '<i4'}",
        "{'descr': '<i4', 'fortran_order': False}",
        "{'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<i4', 'shape': (1,)}",
        "{'descr': '<i4', 'fortran_order': 0, 'shape': (1,)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': 1}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1 1)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1,)} x",
        "{'descr': '<i4', 'descr': '<i4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1,), 'extra': 1}",
        "{'descr': 4, 'fortran_order': False, 'shape': (1,)}"}) {
    refused(parse_dictionary(text, 4), Code::kFormat, "header");
  }
}

TEST_F(Npy, RefusesWhatIsNoNpyFile) {
  refused(parse(""), Code::kFormat, "NUMPY");
  refused(parse("PK\x03\x04 an npz file"), Code::kFormat, "NUMPY");
  refused(parse("\x93NUMPY"), Code::kCorrupt, "10 bytes");
  refused(parse(std::string("\x93NUMPY\x02\x00\x01\x00", 10)), Code::kCorrupt, "12 bytes");
  refused(parse(std::string("\x93NUMPY\x04\x00\x01\x00\x00\x00", 12)), Code::kUnsupported, "4.0");
  refused(parse(std::string("\x93NUMPY\x01\x00\x10\x00{", 11)), Code::kCorrupt, "15 bytes before");
  refused(parse(std::string("\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF{", 13)), Code::kFormat,
          "4294967295 bytes");
}

TEST_F(Npy, NamesTheFile) {
  const auto file = File::open_read(write("x.npy", "nothing"));
  ASSERT_TRUE(file);
  const auto header = read_npy_header(*file);
  ASSERT_FALSE(header);
  EXPECT_THAT(header.error().message(), HasSubstr("x.npy"));
}

}  // namespace
}  // namespace amxt::io
