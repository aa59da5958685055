#include "io/token_file.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <limits>

#include "data_files.h"

namespace amxt::io {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class TokenFileTest : public DataFiles {
 protected:
  static std::unique_ptr<TokenFile> open(const std::string& path,
                                         const TokenFileOptions& options = {}) {
    auto file = TokenFile::open(path, options);
    if (file) return std::move(file).value();
    ADD_FAILURE() << file.error().message();
    return nullptr;
  }
  static void refused(const std::string& path, const TokenFileOptions& options, Code code,
                      const std::vector<std::string>& parts) {
    const auto file = TokenFile::open(path, options);
    ASSERT_FALSE(file) << path << ": expected an error";
    EXPECT_EQ(file.error().code(), code) << file.error().message();
    for (const std::string& part : parts) {
      EXPECT_THAT(file.error().message(), HasSubstr(part));
    }
    EXPECT_THAT(file.error().message(), HasSubstr(path.substr(path.rfind('/') + 1)));
  }
  static std::vector<int32_t> all_tokens(const TokenFile& file) {
    std::vector<int32_t> tokens(static_cast<size_t>(file.facts().tokens));
    const Status status = file.read_tokens(0, tokens);
    EXPECT_TRUE(status) << status.error().message();
    return tokens;
  }
  static std::vector<int64_t> all_begins(const TokenFile& file) {
    std::vector<int64_t> begins;
    for (int64_t d = 0; d <= file.facts().documents; ++d) {
      begins.push_back(file.document_begin(d).value());
    }
    return begins;
  }
  static std::vector<int> all_starts(const TokenFile& file) {
    const std::vector<int32_t> tokens = all_tokens(file);
    std::vector<uint8_t> starts(tokens.size());
    const Status status = file.mark_starts(0, tokens, starts);
    EXPECT_TRUE(status) << status.error().message();
    starts[0] = 9;  // says nothing
    return {starts.begin(), starts.end()};
  }
};

TEST_F(TokenFileTest, ReadsASafetensorsFile) {
  const auto file = open(tensors("a.safetensors", {offsets({0, 2, 2, 5}), tokens16({1, 2, 3, 4, 5}),
                                                   weights8({0, 1, 0, 1, 1})}));
  ASSERT_TRUE(file);
  EXPECT_EQ(file->facts().tokens, 5);
  EXPECT_EQ(file->facts().documents, 3);
  EXPECT_EQ(file->facts().largest_token, 5);
  EXPECT_TRUE(file->facts().has_loss_weight);
  EXPECT_THAT(all_tokens(*file), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(all_begins(*file), ElementsAre(0, 2, 2, 5));
  EXPECT_THAT(all_starts(*file), ElementsAre(9, 0, 1, 0, 0));
  std::vector<float> weights(3);
  ASSERT_TRUE(file->read_weights(1, weights));
  EXPECT_THAT(weights, ElementsAre(1, 0, 1));
}

TEST_F(TokenFileTest, ReadsUint32TokensAndFloatWeights) {
  const std::vector<uint32_t> tokens = {70000, 2147483647};
  const auto file = open(tensors(
      "a.safetensors",
      {offsets({0, 2}), weights32({0.5f, 2.0f}), {"tokens", "U32", "[2]", bytes_of(tokens)}}));
  ASSERT_TRUE(file);
  EXPECT_THAT(all_tokens(*file), ElementsAre(70000, 2147483647));
  std::vector<float> weights(2);
  ASSERT_TRUE(file->read_weights(0, weights));
  EXPECT_THAT(weights, ElementsAre(0.5f, 2.0f));
}

TEST_F(TokenFileTest, WeighsEveryTokenAsOneWithoutWeights) {
  const auto file = open(bin<uint16_t>("a.bin", {1, 2, 3}));
  ASSERT_TRUE(file);
  EXPECT_FALSE(file->facts().has_loss_weight);
  std::vector<float> weights(2);
  ASSERT_TRUE(file->read_weights(1, weights));
  EXPECT_THAT(weights, ElementsAre(1, 1));
}

TEST_F(TokenFileTest, ReadsEveryIntegerTypeOfNpy) {
  EXPECT_THAT(all_tokens(*open(npy<int8_t>("i1.npy", "|i1", "(2,)", {7, 127}))),
              ElementsAre(7, 127));
  EXPECT_THAT(all_tokens(*open(npy<uint8_t>("u1.npy", "|u1", "(2,)", {7, 255}))),
              ElementsAre(7, 255));
  EXPECT_THAT(all_tokens(*open(npy<int16_t>("i2.npy", "<i2", "(2,)", {7, 256}))),
              ElementsAre(7, 256));
  EXPECT_THAT(all_tokens(*open(npy<uint16_t>("u2.npy", "<u2", "(2,)", {7, 65535}))),
              ElementsAre(7, 65535));
  EXPECT_THAT(all_tokens(*open(npy<int32_t>("i4.npy", "<i4", "(2,)", {7, 70000}))),
              ElementsAre(7, 70000));
  EXPECT_THAT(all_tokens(*open(npy<uint32_t>("u4.npy", "<u4", "(2,)", {7, 70000}))),
              ElementsAre(7, 70000));
  EXPECT_THAT(all_tokens(*open(npy<int64_t>("i8.npy", "<i8", "(2,)", {7, 70000}))),
              ElementsAre(7, 70000));
  EXPECT_THAT(all_tokens(*open(npy<uint64_t>("u8.npy", "<u8", "(2,)", {7, 70000}))),
              ElementsAre(7, 70000));
}

TEST_F(TokenFileTest, ReadsBigEndianNpy) {
  EXPECT_THAT(all_tokens(*open(npy<uint16_t>("a.npy", ">u2", "(2,)", {0x0102, 0xFF00}))),
              ElementsAre(0x0201, 0x00FF));
  EXPECT_THAT(all_tokens(*open(npy<int32_t>("b.npy", ">i4", "(1,)", {0x01020000}))),
              ElementsAre(0x0201));
  EXPECT_THAT(all_tokens(*open(npy<int64_t>("c.npy", ">i8", "(1,)", {0x0102000000000000}))),
              ElementsAre(0x0201));
}

TEST_F(TokenFileTest, TakesARowOfATwoDimensionalNpyAsADocument) {
  const auto file = open(npy<int32_t>("a.npy", "<i4", "(2, 3)", {1, 2, 3, 4, 5, 6}), {0, 2, 0});
  ASSERT_TRUE(file);
  EXPECT_EQ(file->facts().documents, 2);
  EXPECT_THAT(all_begins(*file), ElementsAre(0, 3, 6));
  EXPECT_THAT(all_starts(*file), ElementsAre(9, 0, 0, 1, 0, 0));
}

TEST_F(TokenFileTest, TakesAStreamWithoutASeparatorAsOneDocument) {
  const auto file = open(bin<uint16_t>("a.bin", {1, 0, 2}));
  ASSERT_TRUE(file);
  EXPECT_THAT(all_begins(*file), ElementsAre(0, 3));
  EXPECT_THAT(all_starts(*file), ElementsAre(9, 0, 0));
}

TEST_F(TokenFileTest, CutsAStreamBehindEachSeparator) {
  TokenFileOptions options;
  options.separator = 0;
  const auto file = open(bin<uint16_t>("a.bin", {5, 0, 0, 6, 7, 0, 8}), options);
  ASSERT_TRUE(file);
  EXPECT_EQ(file->facts().documents, 4);
  EXPECT_THAT(all_begins(*file), ElementsAre(0, 2, 3, 6, 7));
  EXPECT_THAT(all_starts(*file), ElementsAre(9, 0, 1, 1, 0, 0, 1));
}

TEST_F(TokenFileTest, CountsNoDocumentBehindTheLastSeparator) {
  TokenFileOptions options;
  options.separator = 9;
  const auto file = open(npy<uint16_t>("a.npy", "<u2", "(3,)", {5, 6, 9}), options);
  ASSERT_TRUE(file);
  EXPECT_THAT(all_begins(*file), ElementsAre(0, 3));
}

TEST_F(TokenFileTest, FindsEachOfMoreDocumentsThanItKeepsTheStartsOf) {
  const int64_t documents = (int64_t{1} << 20) + 5000;
  std::vector<uint16_t> tokens;
  std::vector<int64_t> begins;
  for (int64_t d = 0; d < documents; ++d) {
    begins.push_back(static_cast<int64_t>(tokens.size()));
    tokens.insert(tokens.end(), static_cast<size_t>(d % 3), 7);
    tokens.push_back(0);
  }
  TokenFileOptions options;
  options.separator = 0;
  const auto file = open(bin("a.bin", tokens), options);
  ASSERT_TRUE(file);
  ASSERT_EQ(file->facts().documents, documents);
  for (int64_t d = 0; d < documents; d += 997) {
    ASSERT_EQ(file->document_begin(d).value(), begins[static_cast<size_t>(d)]) << "document " << d;
  }
  EXPECT_EQ(file->document_begin(documents - 1).value(), begins.back());
  EXPECT_EQ(file->document_begin(documents).value(), file->facts().tokens);
}

TEST_F(TokenFileTest, ReadsBinByTheVocabularyOrAsAsked) {
  TokenFileOptions small;
  small.vocab_size = 65536;
  EXPECT_THAT(all_tokens(*open(bin<uint16_t>("a.bin", {1, 65535}), small)), ElementsAre(1, 65535));
  TokenFileOptions large;
  large.vocab_size = 65537;
  EXPECT_THAT(all_tokens(*open(bin<uint32_t>("b.bin", {1, 65536}), large)), ElementsAre(1, 65536));
  TokenFileOptions asked = small;
  asked.bin_token_bytes = 4;
  EXPECT_THAT(all_tokens(*open(bin<uint32_t>("c.bin", {1, 2}), asked)), ElementsAre(1, 2));
}

TEST_F(TokenFileTest, NamesFileDocumentAndPositionOfATokenBeyondTheVocabulary) {
  TokenFileOptions options;
  options.vocab_size = 100;
  const std::vector<std::string> third = {"document 1, position 2", "token id 100",
                                          "vocabulary of 100"};
  refused(tensors("a.safetensors", {offsets({0, 2, 5}), tokens16({1, 2, 3, 4, 100})}), options,
          Code::kFormat, third);
  refused(npy<int32_t>("rows.npy", "<i4", "(2, 3)", {1, 2, 3, 4, 5, 100}), options, Code::kFormat,
          third);
  options.separator = 2;
  refused(bin<uint16_t>("stream.bin", {1, 2, 3, 4, 100}), options, Code::kFormat, third);
}

TEST_F(TokenFileTest, FindsABadTokenFarBehindTheFirstBlock) {
  std::vector<uint16_t> tokens(2000000, 1);
  for (size_t i = 999; i < tokens.size(); i += 1000) tokens[i] = 0;
  tokens[1900007] = 300;
  TokenFileOptions options;
  options.vocab_size = 256;
  options.separator = 0;
  refused(bin("a.bin", tokens), options, Code::kFormat,
          {"document 1900, position 7", "token id 300"});
}

TEST_F(TokenFileTest, RefusesNegativeAndHugeTokens) {
  refused(npy<int32_t>("a.npy", "<i4", "(2,)", {0, -1}), {}, Code::kFormat,
          {"token id -1 is negative", "position 1"});
  refused(npy<int8_t>("b.npy", "|i1", "(1,)", {-5}), {}, Code::kFormat, {"token id -5"});
  refused(npy<int64_t>("c.npy", "<i8", "(1,)", {int64_t{1} << 31}), {}, Code::kFormat,
          {"2147483648", "2^31"});
  refused(npy<uint64_t>("d.npy", "<u8", "(1,)", {std::numeric_limits<uint64_t>::max()}), {},
          Code::kFormat, {"18446744073709551615"});
  // Not taken for 1 by looking at the low half alone.
  TokenFileOptions options;
  options.vocab_size = 10;
  refused(npy<int64_t>("e.npy", "<i8", "(1,)", {(int64_t{1} << 32) + 1}), options, Code::kFormat,
          {"4294967297"});
}

TEST_F(TokenFileTest, RefusesAnOddNumberOfBytesInABinFile) {
  refused(write("a.bin", "abc"), {}, Code::kFormat, {"3 bytes", "uint16"});
  TokenFileOptions options;
  options.bin_token_bytes = 4;
  refused(write("b.bin", "abcdef"), options, Code::kFormat, {"6 bytes", "uint32"});
}

TEST_F(TokenFileTest, RefusesAFileWithoutADocument) {
  refused(write("a.bin", ""), {}, Code::kFormat, {"no document"});
  refused(npy<int32_t>("b.npy", "<i4", "(0,)", {}), {}, Code::kFormat, {"no document"});
  refused(npy<int32_t>("c.npy", "<i4", "(0, 8)", {}), {}, Code::kFormat, {"no document"});
  refused(tensors("d.safetensors", {offsets({0}), tokens16({})}), {}, Code::kFormat,
          {"no document"});
  refused(tensors("e.safetensors", {offsets({}), tokens16({})}), {}, Code::kFormat,
          {"no document"});
}

TEST_F(TokenFileTest, TakesDocumentsWithoutATokenForDocuments) {
  const auto file = open(npy<int32_t>("a.npy", "<i4", "(4, 0)", {}));
  ASSERT_TRUE(file);
  EXPECT_EQ(file->facts().documents, 4);
  EXPECT_EQ(file->facts().tokens, 0);
  EXPECT_EQ(file->facts().largest_token, -1);
}

TEST_F(TokenFileTest, RefusesDocumentOffsetsThatDoNotFit) {
  refused(tensors("a.safetensors", {offsets({1, 3}), tokens16({1, 2, 3})}), {}, Code::kFormat,
          {"document_offsets", "the first is 1, not 0"});
  refused(tensors("b.safetensors", {offsets({0, 2, 1, 3}), tokens16({1, 2, 3})}), {}, Code::kFormat,
          {"document_offsets", "number 2 is 1, below 2"});
  refused(tensors("c.safetensors", {offsets({0, 2}), tokens16({1, 2, 3})}), {}, Code::kFormat,
          {"document_offsets", "the last is 2", "3 tokens"});
  refused(tensors("d.safetensors", {offsets({0, 4}), tokens16({1, 2, 3})}), {}, Code::kFormat,
          {"document_offsets", "the last is 4", "3 tokens"});
  refused(tensors("e.safetensors", {offsets({0, -1, 3}), tokens16({1, 2, 3})}), {}, Code::kFormat,
          {"number 1 is -1"});
}

TEST_F(TokenFileTest, RefusesTensorsOfAnotherTypeShapeOrName) {
  const Part tokens = tokens16({1, 2});
  refused(tensors("a.safetensors", {tokens}), {}, Code::kFormat, {"document_offsets"});
  refused(tensors("b.safetensors", {offsets({0, 2})}), {}, Code::kFormat, {"tokens"});
  refused(
      tensors("c.safetensors", {offsets({0, 2}), {"tokens", "I32", "[2]", std::string(8, '\0')}}),
      {}, Code::kFormat, {"'tokens'", "I32", "U16 or U32"});
  refused(
      tensors("d.safetensors", {{"document_offsets", "I32", "[2]", std::string(8, '\0')}, tokens}),
      {}, Code::kFormat, {"'document_offsets'", "I32", "I64"});
  refused(
      tensors("e.safetensors", {offsets({0, 2}), {"tokens", "U16", "[1,2]", std::string(4, '\0')}}),
      {}, Code::kFormat, {"'tokens'", "2 dimensions"});
  refused(tensors("f.safetensors",
                  {offsets({0, 2}), tokens, {"loss_weights", "U8", "[2]", std::string(2, '\0')}}),
          {}, Code::kFormat, {"'loss_weights'"});
}

TEST_F(TokenFileTest, RefusesLossWeightsThatCannotBe) {
  const Part tokens = tokens16({1, 2, 3});
  refused(tensors("a.safetensors", {offsets({0, 3}), tokens, weights8({1, 1})}), {}, Code::kFormat,
          {"loss_weight", "2 weights for 3 tokens"});
  refused(tensors("b.safetensors",
                  {offsets({0, 3}), tokens, {"loss_weight", "I64", "[3]", std::string(24, '\0')}}),
          {}, Code::kFormat, {"loss_weight", "I64", "U8 or F32"});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  refused(tensors("c.safetensors", {offsets({0, 1, 3}), weights32({1, 1, nan}), tokens}), {},
          Code::kFormat, {"document 1, position 1", "nan", "not finite"});
  refused(tensors("d.safetensors", {offsets({0, 1, 3}), weights32({1, inf, 1}), tokens}), {},
          Code::kFormat, {"document 1, position 0", "inf", "not finite"});
  refused(tensors("e.safetensors", {offsets({0, 3}), weights32({-0.5f, 1, 1}), tokens}), {},
          Code::kFormat, {"document 0, position 0", "-0.5", "negative"});
}

TEST_F(TokenFileTest, RefusesATruncatedFile) {
  const std::string whole = tensors("a.safetensors", {offsets({0, 3}), tokens16({1, 2, 3})});
  std::filesystem::resize_file(whole, std::filesystem::file_size(whole) - 2);
  EXPECT_FALSE(TokenFile::open(whole, {}));
  const std::string array = npy<int32_t>("b.npy", "<i4", "(3,)", {1, 2, 3});
  std::filesystem::resize_file(array, std::filesystem::file_size(array) - 4);
  refused(array, {}, Code::kCorrupt, {"needs 12 bytes"});
}

TEST_F(TokenFileTest, SaysWhenAFileIsChangedUnderIt) {
  const std::string name = bin<uint16_t>("a.bin", {1, 2, 3, 4});
  TokenFileOptions options;
  options.vocab_size = 10;
  const auto file = open(name, options);
  ASSERT_TRUE(file);
  std::vector<int32_t> tokens(4);
  bin<uint16_t>("a.bin", {1, 2, 99, 4});
  Status status = file->read_tokens(0, tokens);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), HasSubstr("changed after it was opened"));
  std::filesystem::resize_file(name, 4);
  status = file->read_tokens(0, tokens);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kCorrupt);
}

TEST_F(TokenFileTest, RefusesOtherNamesAndMissingFiles) {
  refused(write("a.txt", "text"), {}, Code::kFormat, {".safetensors, .npy or .bin"});
  refused(path("none.bin"), {}, Code::kNotFound, {});
  std::filesystem::create_directory(path("folder.npy"));
  refused(path("folder.npy"), {}, Code::kFormat, {"directory"});
}

TEST_F(TokenFileTest, HasAnotherFingerprintForOtherTokensBoundsOrWeights) {
  const auto print = [](const std::string& file, const TokenFileOptions& options = {}) {
    return open(file, options)->facts().fingerprint;
  };
  const Part tokens = tokens16({1, 2, 3});
  const uint64_t first = print(tensors("a.safetensors", {offsets({0, 3}), tokens}));
  EXPECT_EQ(first, print(tensors("b.safetensors", {offsets({0, 3}), tokens})));
  EXPECT_NE(first, print(tensors("c.safetensors", {offsets({0, 1, 3}), tokens})));
  EXPECT_NE(first, print(tensors("d.safetensors", {offsets({0, 3}), tokens16({1, 2, 4})})));
  EXPECT_NE(first, print(tensors("e.safetensors", {offsets({0, 3}), tokens, weights8({1, 1, 0})})));
  TokenFileOptions cut;
  cut.separator = 2;
  const std::string stream = bin<uint16_t>("a.bin", {1, 2, 3});
  EXPECT_NE(print(stream), print(stream, cut));
}

}  // namespace
}  // namespace amxt::io
