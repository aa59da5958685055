#include "io/dataset.h"

#include <gmock/gmock.h>

#include <random>

#include "base/file.h"
#include "data_files.h"

namespace amxt::io {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A sample with arrays of its own.
struct Sample {
  std::vector<int32_t> token, target, document_start, position;
  std::vector<float> weight;
  SampleCounts counts;

  explicit Sample(size_t length)
      : token(length, 77),
        target(length, 77),
        document_start(length, 77),
        position(length, 77),
        weight(length, 77) {}
  SampleView view() { return {token, target, document_start, position, weight}; }
};

class DatasetTest : public DataFiles {
 protected:
  static DatasetOptions options(std::vector<std::string> paths, int64_t length,
                                PackMode mode = PackMode::kPack) {
    DatasetOptions o;
    o.paths = std::move(paths);
    o.sequence_length = length;
    o.mode = mode;
    return o;
  }
  static std::unique_ptr<Dataset> open(const DatasetOptions& options) {
    auto data = Dataset::open(options);
    if (data) return std::move(data).value();
    ADD_FAILURE() << data.error().message();
    return nullptr;
  }
  static Sample read(const Dataset& data, int64_t sample) {
    Sample s(static_cast<size_t>(data.options().sequence_length));
    const auto counts = data.read(sample, s.view());
    EXPECT_TRUE(counts) << counts.error().message();
    if (counts) s.counts = *counts;
    return s;
  }
  static void refused(const DatasetOptions& options, Code code, const std::string& part) {
    const auto data = Dataset::open(options);
    ASSERT_FALSE(data) << "expected an error with: " << part;
    EXPECT_EQ(data.error().code(), code) << data.error().message();
    EXPECT_THAT(data.error().message(), HasSubstr(part));
  }
};

constexpr int32_t kNone = kNoTarget;

TEST_F(DatasetTest, PacksDocumentsBackToBackWithStrideT) {
  const auto data = open(options(
      {tensors("a.safetensors", {offsets({0, 3, 10}), tokens16({1, 2, 3, 4, 5, 6, 7, 8, 9, 10})})},
      4));
  ASSERT_TRUE(data);
  EXPECT_EQ(data->samples(), 3);
  EXPECT_EQ(data->documents(), 2);
  EXPECT_EQ(data->tokens(), 10);

  const Sample first = read(*data, 0);
  EXPECT_THAT(first.token, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(first.target, ElementsAre(2, 3, kNone, kNone));
  EXPECT_THAT(first.document_start, ElementsAre(0, 0, 0, 3));
  EXPECT_THAT(first.position, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(first.weight, ElementsAre(1, 1, 0, 0));
  EXPECT_EQ(first.counts.tokens, 4);
  EXPECT_EQ(first.counts.counted, 2);
  EXPECT_EQ(first.counts.weight, 2);

  // The document goes on: its positions begin anew, and the target beyond the sample is dropped.
  const Sample second = read(*data, 1);
  EXPECT_THAT(second.token, ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(second.target, ElementsAre(6, 7, 8, kNone));
  EXPECT_THAT(second.position, ElementsAre(0, 1, 2, 3));
}

TEST_F(DatasetTest, KeepsAndPadsTheLastShortSample) {
  const auto data = open(options({bin<uint16_t>("a.bin", {1, 2, 3, 4, 5, 6})}, 4));
  ASSERT_TRUE(data);
  ASSERT_EQ(data->samples(), 2);
  const Sample last = read(*data, 1);
  EXPECT_THAT(last.token, ElementsAre(5, 6, 0, 0));
  EXPECT_THAT(last.target, ElementsAre(6, kNone, kNone, kNone));
  EXPECT_THAT(last.document_start, ElementsAre(0, 0, 2, 3));
  EXPECT_THAT(last.position, ElementsAre(0, 1, 0, 0));
  EXPECT_THAT(last.weight, ElementsAre(1, 0, 0, 0));
  EXPECT_EQ(last.counts.tokens, 2);
  EXPECT_EQ(last.counts.counted, 1);
}

TEST_F(DatasetTest, PacksAcrossFilesInTheOrderGiven) {
  const std::string a = bin<uint16_t>("a.bin", {1, 2, 3});
  const std::string b = npy<int64_t>("b.npy", "<i8", "(2, 2)", {4, 5, 6, 7});
  const std::string c = tensors("c.safetensors", {offsets({0, 1}), tokens16({8}), weights8({0})});
  const auto data = open(options({a, b, c}, 8));
  ASSERT_TRUE(data);
  EXPECT_EQ(data->samples(), 1);
  EXPECT_EQ(data->documents(), 4);
  EXPECT_TRUE(data->has_loss_weight());
  EXPECT_EQ(data->largest_token(), 8);
  const Sample s = read(*data, 0);
  EXPECT_THAT(s.token, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  EXPECT_THAT(s.target, ElementsAre(2, 3, kNone, 5, kNone, 7, kNone, kNone));
  EXPECT_THAT(s.document_start, ElementsAre(0, 0, 0, 3, 3, 5, 5, 7));
  EXPECT_THAT(open(options({b, a}, 8))->read(0, Sample(8).view())->tokens, 7);
}

TEST_F(DatasetTest, PacksNothingOfEmptyDocuments) {
  const auto data = open(options(
      {tensors("a.safetensors", {offsets({0, 0, 2, 2, 2, 3, 3}), tokens16({1, 2, 3})})}, 4));
  ASSERT_TRUE(data);
  EXPECT_EQ(data->documents(), 6);
  EXPECT_EQ(data->samples(), 1);
  const Sample s = read(*data, 0);
  EXPECT_THAT(s.document_start, ElementsAre(0, 0, 2, 3));
  EXPECT_EQ(s.counts.tokens, 3);
}

TEST_F(DatasetTest, GivesTheSeparatorToTheDocumentThatItEnds) {
  DatasetOptions o = options({bin<uint16_t>("a.bin", {5, 0, 6, 0})}, 4);
  o.separator = 0;
  const Sample s = read(*open(o), 0);
  EXPECT_THAT(s.target, ElementsAre(0, kNone, 0, kNone));
  EXPECT_THAT(s.document_start, ElementsAre(0, 0, 2, 2));
}

TEST_F(DatasetTest, WeighsATargetByItsOwnWeight) {
  // The prompt 1 2 is read, the completion 3 4 learned: positions 1 and 2 predict it.
  const auto data = open(options(
      {tensors("a.safetensors", {offsets({0, 4}), tokens16({1, 2, 3, 4}), weights8({0, 0, 1, 1})})},
      4));
  const Sample s = read(*data, 0);
  EXPECT_THAT(s.target, ElementsAre(2, 3, 4, kNone));
  EXPECT_THAT(s.weight, ElementsAre(0, 1, 1, 0));
  EXPECT_EQ(s.counts.tokens, 4);
  EXPECT_EQ(s.counts.counted, 2);
  EXPECT_EQ(s.counts.weight, 2);
}

TEST_F(DatasetTest, SumsFractionalWeights) {
  const auto data =
      open(options({tensors("a.safetensors", {offsets({0, 4}), weights32({9, 0.5f, 0, 0.25f}),
                                              tokens16({1, 2, 3, 4})})},
                   4));
  const Sample s = read(*data, 0);
  EXPECT_THAT(s.weight, ElementsAre(0.5f, 0, 0.25f, 0));
  EXPECT_EQ(s.counts.counted, 2);
  EXPECT_EQ(s.counts.weight, 0.75);
}

TEST_F(DatasetTest, PadsEachDocumentAndCutsItAtT) {
  const std::string file =
      tensors("a.safetensors", {offsets({0, 2, 2, 8}), tokens16({1, 2, 3, 4, 5, 6, 7, 8})});
  const auto data = open(options({file}, 4, PackMode::kPad));
  ASSERT_TRUE(data);
  EXPECT_EQ(data->samples(), 3);

  const Sample shorter = read(*data, 0);
  EXPECT_THAT(shorter.token, ElementsAre(1, 2, 0, 0));
  EXPECT_THAT(shorter.target, ElementsAre(2, kNone, kNone, kNone));
  EXPECT_THAT(shorter.document_start, ElementsAre(0, 0, 2, 3));
  EXPECT_EQ(shorter.counts.tokens, 2);

  const Sample empty = read(*data, 1);
  EXPECT_THAT(empty.target, Each(kNone));
  EXPECT_THAT(empty.weight, Each(0));
  EXPECT_EQ(empty.counts.tokens, 0);
  EXPECT_EQ(empty.counts.counted, 0);

  // T positions, T - 1 targets: the rest is dropped, its first token is no target.
  const Sample longer = read(*data, 2);
  EXPECT_THAT(longer.token, ElementsAre(3, 4, 5, 6));
  EXPECT_THAT(longer.target, ElementsAre(4, 5, 6, kNone));
  EXPECT_EQ(longer.counts.tokens, 4);
  EXPECT_EQ(longer.counts.counted, 3);
}

TEST_F(DatasetTest, PadsDocumentsOfStreamsAndRowsAlike) {
  DatasetOptions o = options(
      {bin<uint16_t>("a.bin", {5, 0, 6, 7, 0}), npy<uint8_t>("b.npy", "|u1", "(1, 2)", {8, 9})}, 3,
      PackMode::kPad);
  o.separator = 0;
  const auto data = open(o);
  ASSERT_EQ(data->samples(), 3);
  EXPECT_THAT(read(*data, 0).token, ElementsAre(5, 0, 0));
  EXPECT_EQ(read(*data, 0).counts.tokens, 2);
  EXPECT_THAT(read(*data, 1).token, ElementsAre(6, 7, 0));
  EXPECT_EQ(read(*data, 1).counts.tokens, 3);
  EXPECT_THAT(read(*data, 2).token, ElementsAre(8, 9, 0));
}

TEST_F(DatasetTest, HasNoTargetAtALengthOfOne) {
  const auto data = open(options({bin<uint16_t>("a.bin", {1, 2})}, 1));
  EXPECT_EQ(data->samples(), 2);
  const Sample s = read(*data, 1);
  EXPECT_THAT(s.token, ElementsAre(2));
  EXPECT_THAT(s.target, ElementsAre(kNone));
  EXPECT_EQ(s.counts.counted, 0);
  EXPECT_EQ(s.counts.tokens, 1);
}

// Against a plain loop over everything, with documents, files and lengths of all sizes.
TEST_F(DatasetTest, AgreesWithTheDefinitionOnRandomData) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::vector<std::string> paths;
  std::vector<int32_t> tokens, document;
  std::vector<float> weights;
  int32_t documents = 0;
  for (int f = 0; f < 5; ++f) {
    std::vector<int64_t> bounds = {0};
    std::vector<uint16_t> ids;
    std::vector<uint8_t> masks;
    for (int d = 0; d < 40; ++d, ++documents) {
      for (uint32_t n = random() % 30; n > 0; --n) {
        ids.push_back(static_cast<uint16_t>(random() % 500));
        masks.push_back(static_cast<uint8_t>(random() % 2));
        tokens.push_back(ids.back());
        weights.push_back(masks.back());
        document.push_back(documents);
      }
      bounds.push_back(static_cast<int64_t>(ids.size()));
    }
    paths.push_back(tensors("f" + std::to_string(f) + ".safetensors",
                            {offsets(bounds), tokens16(ids), weights8(masks)}));
  }
  for (const int64_t length : {1, 2, 7, 64, 1000, 100000}) {
    const auto data = open(options(paths, length));
    const auto total = static_cast<int64_t>(tokens.size());
    ASSERT_EQ(data->samples(), (total + length - 1) / length);
    for (int64_t k = 0; k < data->samples(); ++k) {
      const Sample s = read(*data, k);
      for (int64_t t = 0; t < length; ++t) {
        const auto at = static_cast<size_t>(k * length + t);
        const auto i = static_cast<size_t>(t);
        const bool pad = at >= tokens.size();
        const bool has_target =
            !pad && at + 1 < tokens.size() && t + 1 < length && document[at] == document[at + 1];
        ASSERT_EQ(s.token[i], pad ? 0 : tokens[at]);
        ASSERT_EQ(s.target[i], has_target ? tokens[at + 1] : kNone);
        ASSERT_EQ(s.weight[i], has_target ? weights[at + 1] : 0);
        const bool goes_on = !pad && t > 0 && document[at] == document[at - 1];
        ASSERT_EQ(s.position[i], goes_on ? s.position[i - 1] + 1 : 0);
        ASSERT_EQ(s.document_start[i], t - s.position[i]);
      }
    }
  }
}

TEST_F(DatasetTest, CanBeCutAgainWithoutBeingReadAgain) {
  DatasetOptions o = options({bin<uint16_t>("a.bin", {1, 2, 3, 4, 5})}, 0);
  const auto data = open(o);
  ASSERT_TRUE(data);
  EXPECT_EQ(data->samples(), 0);
  EXPECT_FALSE(data->read(0, Sample(0).view()));
  const auto packed = data->at(2, PackMode::kPack);
  ASSERT_TRUE(packed);
  EXPECT_EQ((*packed)->samples(), 3);
  EXPECT_EQ((*packed)->fingerprint(), data->fingerprint());
  const auto padded = (*packed)->at(3, PackMode::kPad);
  ASSERT_TRUE(padded);
  EXPECT_THAT(read(**padded, 0).token, ElementsAre(1, 2, 3));
  EXPECT_EQ(data->at(0, PackMode::kPack).error().code(), Code::kInvalidArgument);
}

TEST_F(DatasetTest, RefusesASampleOrAnArrayThatIsNotThere) {
  const auto data = open(options({bin<uint16_t>("a.bin", {1, 2, 3})}, 2));
  Sample right(2);
  EXPECT_EQ(data->read(2, right.view()).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(data->read(-1, right.view()).error().code(), Code::kInvalidArgument);
  Sample wrong(3);
  EXPECT_EQ(data->read(0, wrong.view()).error().code(), Code::kInvalidArgument);
}

TEST_F(DatasetTest, RefusesOptionsThatCannotBe) {
  const std::string file = bin<uint16_t>("a.bin", {1, 2});
  refused(options({}, 4), Code::kInvalidArgument, "no data file");
  refused(options({file}, -1), Code::kInvalidArgument, "sequence_length -1");
  DatasetOptions o = options({file}, 4);
  o.vocab_size = 10;
  o.separator = 10;
  refused(o, Code::kInvalidArgument, "separator 10");
  // Bounds of documents in the file: no separator is looked for.
  o.paths = {tensors("a.safetensors", {offsets({0, 2}), tokens16({1, 2})})};
  EXPECT_TRUE(open(o));
  o = options({file}, 4);
  o.bin_token_bytes = 3;
  refused(o, Code::kInvalidArgument, "bin_token_bytes 3");
  o = options({file}, 4);
  o.vocab_size = -1;
  refused(o, Code::kInvalidArgument, "vocab_size -1");
}

TEST_F(DatasetTest, RefusesDataWithoutAToken) {
  refused(options({npy<int32_t>("a.npy", "<i4", "(3, 0)", {})}, 4), Code::kFormat,
          "3 documents without a token");
  refused(options({npy<int32_t>("b.npy", "<i4", "(1, 0)", {})}, 4), Code::kFormat,
          "1 document without a token");
}

TEST_F(DatasetTest, NamesTheBadOneOfSeveralFiles) {
  DatasetOptions o =
      options({bin<uint16_t>("good.bin", {1, 2}), bin<uint16_t>("bad.bin", {1, 200})}, 4);
  o.vocab_size = 100;
  refused(o, Code::kFormat, "bad.bin': document 0, position 1: token id 200 is beyond");
}

TEST_F(DatasetTest, HasAnotherFingerprintForAnotherOrderOfFiles) {
  const std::string a = bin<uint16_t>("a.bin", {1, 2});
  const std::string b = bin<uint16_t>("b.bin", {3, 4});
  EXPECT_EQ(open(options({a, b}, 4))->fingerprint(), open(options({a, b}, 8))->fingerprint());
  EXPECT_NE(open(options({a, b}, 4))->fingerprint(), open(options({b, a}, 4))->fingerprint());
}

// --- TokenFileWriter ---

TEST_F(DatasetTest, WritesATokenFileThatItReads) {
  auto writer = TokenFileWriter::create(path("a.safetensors"), 256, true);
  ASSERT_TRUE(writer) << writer.error().message();
  ASSERT_TRUE(
      (*writer)->add_document(std::vector<int32_t>{1, 2, 3}, std::vector<uint8_t>{0, 1, 1}));
  ASSERT_TRUE((*writer)->add_document({}, {}));
  ASSERT_TRUE((*writer)->append(std::vector<int32_t>{4}, {}));
  ASSERT_TRUE((*writer)->append(std::vector<int32_t>{5}, std::vector<float>{0}));
  ASSERT_TRUE((*writer)->end_document());
  EXPECT_EQ((*writer)->documents(), 3);
  EXPECT_EQ((*writer)->tokens(), 5);
  EXPECT_THAT(files_left(), IsEmpty());
  const Status finished = (*writer)->finish();
  ASSERT_TRUE(finished) << finished.error().message();
  EXPECT_THAT(files_left(), ElementsAre("a.safetensors"));

  const auto data = open(options({path("a.safetensors")}, 8));
  ASSERT_TRUE(data);
  EXPECT_EQ(data->documents(), 3);
  const Sample s = read(*data, 0);
  EXPECT_THAT(s.token, ElementsAre(1, 2, 3, 4, 5, 0, 0, 0));
  EXPECT_THAT(s.document_start, ElementsAre(0, 0, 0, 3, 3, 5, 6, 7));
  EXPECT_THAT(s.weight, ElementsAre(1, 1, 0, 0, 0, 0, 0, 0));
}

TEST_F(DatasetTest, WritesMoreThanItsBuffersHold) {
  TokenWriterOptions o;
  o.weights = TokenWeights::kF32;
  auto writer = TokenFileWriter::create(path("a.safetensors"), o);
  ASSERT_TRUE(writer);
  std::vector<int32_t> tokens(1000);
  std::vector<float> weights(1000, 0.5f);
  for (int d = 0; d < 700; ++d) {
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = d * 1000 + static_cast<int32_t>(i);
    ASSERT_TRUE((*writer)->append(tokens, weights));
    ASSERT_TRUE((*writer)->end_document());
  }
  ASSERT_TRUE((*writer)->finish());
  const auto data = open(options({path("a.safetensors")}, 1000));
  ASSERT_TRUE(data);
  ASSERT_EQ(data->samples(), 700);
  for (const int64_t k : {0, 299, 699}) {
    const Sample s = read(*data, k);
    EXPECT_EQ(s.token.front(), k * 1000);
    EXPECT_EQ(s.token.back(), k * 1000 + 999);
    EXPECT_EQ(s.counts.weight, 999 * 0.5);
  }
}

TEST_F(DatasetTest, LeavesOutWeightsThatSayNothingWhenAsked) {
  TokenWriterOptions o;
  o.weights = TokenWeights::kU8;
  o.omit_plain_weights = true;
  auto writer = TokenFileWriter::create(path("a.safetensors"), o);
  ASSERT_TRUE(writer);
  ASSERT_TRUE((*writer)->add_document(std::vector<int32_t>{1, 2}, {}));
  ASSERT_TRUE((*writer)->finish());
  EXPECT_FALSE(open(options({path("a.safetensors")}, 8))->has_loss_weight());
}

TEST_F(DatasetTest, LeavesNothingWhenItIsNotFinished) {
  {
    auto writer = TokenFileWriter::create(path("a.safetensors"), 256, true);
    ASSERT_TRUE(writer);
    ASSERT_TRUE((*writer)->add_document(std::vector<int32_t>{1}, {}));
  }
  EXPECT_THAT(files_left(), IsEmpty());
}

TEST_F(DatasetTest, LeavesNothingWhenTheDiskIsFull) {
  for (const char* operation : {"reserve", "write", "sync", "rename"}) {
    auto writer = TokenFileWriter::create(path("a.safetensors"), 256, false);
    ASSERT_TRUE(writer);
    ASSERT_TRUE((*writer)->add_document(std::vector<int32_t>{1}, {}));
    set_file_fault(
        [&](std::string_view what, const std::string&) { return what == operation ? ENOSPC : 0; });
    const Status status = (*writer)->finish();
    set_file_fault(nullptr);
    ASSERT_FALSE(status) << operation;
    EXPECT_EQ(status.error().code(), Code::kNoSpace) << status.error().message();
    EXPECT_THAT(files_left(), IsEmpty()) << operation;
  }
}

TEST_F(DatasetTest, ReplacesAFileOnlyWhenAsked) {
  write("a.safetensors", "mine");
  EXPECT_EQ(TokenFileWriter::create(path("a.safetensors"), 256, false).error().code(),
            Code::kExists);
  TokenWriterOptions o;
  o.overwrite = true;
  auto writer = TokenFileWriter::create(path("a.safetensors"), o);
  ASSERT_TRUE(writer);
  ASSERT_TRUE((*writer)->add_document(std::vector<int32_t>{1}, {}));
  ASSERT_TRUE((*writer)->finish());
  EXPECT_EQ(open(options({path("a.safetensors")}, 8))->tokens(), 1);
}

TEST_F(DatasetTest, RefusesToOverwriteAFileThatCameMeanwhile) {
  auto writer = TokenFileWriter::create(path("a.safetensors"), 256, false);
  ASSERT_TRUE(writer);
  ASSERT_TRUE((*writer)->add_document(std::vector<int32_t>{1}, {}));
  write("a.safetensors", "mine");
  EXPECT_EQ((*writer)->finish().error().code(), Code::kExists);
  EXPECT_THAT(files_left(), ElementsAre("a.safetensors"));
}

TEST_F(DatasetTest, RefusesToWriteTokensAndWeightsThatCannotBe) {
  auto writer = TokenFileWriter::create(path("a.safetensors"), 100, true);
  ASSERT_TRUE(writer);
  TokenFileWriter& w = **writer;
  const auto refuse = [](const Status& status, const std::string& part) {
    ASSERT_FALSE(status) << "expected: " << part;
    EXPECT_EQ(status.error().code(), Code::kInvalidArgument) << status.error().message();
    EXPECT_THAT(status.error().message(), HasSubstr(part));
  };
  ASSERT_TRUE(w.add_document(std::vector<int32_t>{1}, {}));
  refuse(w.append(std::vector<int32_t>{100}, {}), "document 1, position 0: token id 100");
  refuse(w.append(std::vector<int32_t>{-1}, {}), "token id -1");
  refuse(w.append(std::vector<int32_t>{1}, std::vector<float>{0.5f}), "0.5 is not 0 or 1");
  refuse(w.append(std::vector<int32_t>{1}, std::vector<float>{1, 1}), "2 loss weights for 1");
  TokenWriterOptions o;
  o.weights = TokenWeights::kF32;
  auto floats = TokenFileWriter::create(path("b.safetensors"), o);
  refuse((*floats)->append(std::vector<int32_t>{1}, std::vector<float>{-1}), "-1");
  refuse((*floats)->append(std::vector<int32_t>{1},
                           std::vector<float>{std::numeric_limits<float>::quiet_NaN()}),
         "nan");
  auto plain = TokenFileWriter::create(path("c.safetensors"), 70000, false);
  refuse((*plain)->append(std::vector<int32_t>{1}, std::vector<float>{1}), "without them");
}

TEST_F(DatasetTest, RefusesToFinishWhatIsNotAFile) {
  auto writer = TokenFileWriter::create(path("a.safetensors"), 256, false);
  ASSERT_TRUE(writer);
  EXPECT_EQ((*writer)->finish().error().code(), Code::kInvalidState);
  ASSERT_TRUE((*writer)->end_document());
  EXPECT_THAT((*writer)->finish().error().message(), HasSubstr("no token"));
  EXPECT_FALSE(std::filesystem::exists(path("a.safetensors")));
  ASSERT_TRUE((*writer)->append(std::vector<int32_t>{1}, {}));
  EXPECT_EQ((*writer)->finish().error().code(), Code::kInvalidState);
  ASSERT_TRUE((*writer)->end_document());
  ASSERT_TRUE((*writer)->finish());
  EXPECT_EQ((*writer)->finish().error().code(), Code::kInvalidState);
  EXPECT_EQ((*writer)->end_document().error().code(), Code::kInvalidState);
}

TEST_F(DatasetTest, RefusesPathsThatCannotBeWritten) {
  EXPECT_EQ(TokenFileWriter::create(path("no/a.safetensors"), 256, false).error().code(),
            Code::kNotFound);
  EXPECT_EQ(TokenFileWriter::create(path("a.npy"), 256, false).error().code(),
            Code::kInvalidArgument);
  std::filesystem::create_directory(path("d.safetensors"));
  EXPECT_EQ(TokenFileWriter::create(path("d.safetensors"), 256, false).error().code(),
            Code::kExists);
}

}  // namespace
}  // namespace amxt::io
