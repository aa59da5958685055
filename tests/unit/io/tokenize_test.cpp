#include "io/tokenize.h"

#include <gmock/gmock.h>

#include "data_files.h"
#include "io/dataset.h"

namespace amxt::io {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class Tokenize : public DataFiles {
 protected:
  TokenizeOptions options(std::vector<std::string> paths) const {
    TokenizeOptions o;
    o.out = path("out.safetensors");
    o.paths = std::move(paths);
    return o;
  }
  // All documents as text, masked bytes in capitals (the tests' texts have none).
  std::vector<std::string> documents(int64_t longest = 64) const {
    DatasetOptions o;
    o.paths = {path("out.safetensors")};
    o.mode = PackMode::kPad;
    o.sequence_length = longest;
    o.vocab_size = kByteVocabulary;
    const auto data = Dataset::open(o);
    EXPECT_TRUE(data) << data.error().message();
    const auto size = static_cast<size_t>(o.sequence_length);
    std::vector<int32_t> token(size), target(size), start(size), position(size);
    std::vector<float> weight(size);
    std::vector<std::string> all;
    for (int64_t d = 0; d < (*data)->samples(); ++d) {
      const auto counts = (*data)->read(d, {token, target, start, position, weight});
      EXPECT_TRUE(counts) << counts.error().message();
      std::string text;
      for (size_t t = 0; t < static_cast<size_t>(counts->tokens); ++t) {
        // The first byte is never a target: its weight does not show.
        const bool masked = t > 0 && weight[t - 1] == 0;
        const char c = static_cast<char>(token[t]);
        text += masked && c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
      }
      all.push_back(text);
    }
    return all;
  }
  void refused(const TokenizeOptions& options, Code code,
               const std::vector<std::string>& parts) const {
    const auto summary = tokenize(options);
    ASSERT_FALSE(summary) << "expected an error";
    EXPECT_EQ(summary.error().code(), code) << summary.error().message();
    for (const std::string& part : parts) EXPECT_THAT(summary.error().message(), HasSubstr(part));
    EXPECT_FALSE(std::filesystem::exists(path("out.safetensors")));
  }
};

TEST_F(Tokenize, TakesATextFileAsOneDocumentOfBytes) {
  const std::string bytes = std::string("\xFF\x00 caf\xC3\xA9\n", 9);
  const auto summary = tokenize(options({write("a.txt", bytes), write("b.md", "two")}));
  ASSERT_TRUE(summary) << summary.error().message();
  EXPECT_EQ(summary->documents, 2);
  EXPECT_EQ(summary->tokens, 12);
  EXPECT_EQ(summary->masked, 0);
  EXPECT_THAT(documents(), ElementsAre(bytes, "two"));
}

TEST_F(Tokenize, TakesALineOfJsonlAsADocument) {
  const auto summary = tokenize(options({write("a.jsonl",
                                               "{\"text\": \"one\\u00e9\"}\n"
                                               "\n"
                                               "{\"id\": 7, \"text\": \"two\"}\r\n"
                                               "{\"text\": \"\"}\n"
                                               "{\"text\": \"last\"}")}));
  ASSERT_TRUE(summary) << summary.error().message();
  EXPECT_EQ(summary->documents, 4);
  EXPECT_THAT(documents(), ElementsAre("one\xC3\xA9", "two", "", "last"));
}

TEST_F(Tokenize, MasksThePrompt) {
  const auto summary = tokenize(
      options({write("a.jsonl",
                     "{\"prompt\": \"2+2? \", \"completion\": \"four\"}\n{\"text\": \"all\"}\n"
                     "{\"prompt\": \"ask\", \"completion\": \"say\"}\n")}));
  ASSERT_TRUE(summary) << summary.error().message();
  EXPECT_EQ(summary->masked, 8);
  EXPECT_THAT(documents(), ElementsAre("2+2? four", "all", "aSKsay"));
}

TEST_F(Tokenize, WritesNoLossWeightWhereNothingIsMasked) {
  ASSERT_TRUE(tokenize(options({write("a.jsonl", "{\"text\": \"x\"}")})));
  DatasetOptions o;
  o.paths = {path("out.safetensors")};
  EXPECT_FALSE((*Dataset::open(o))->has_loss_weight());
}

TEST_F(Tokenize, ReadsFilesLargerThanABlockAndLinesAcrossBlocks) {
  std::string text;
  while (text.size() < (5 << 19)) text += "abcdefghij";
  std::string lines;
  for (int i = 0; i < 3; ++i) lines += "{\"text\": \"" + text.substr(0, 900000) + "\"}\n";
  const auto summary = tokenize(options({write("a.txt", text), write("b.jsonl", lines)}));
  ASSERT_TRUE(summary) << summary.error().message();
  const std::vector<std::string> all = documents(3 << 20);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_TRUE(all[0] == text);
  for (int i = 1; i < 4; ++i) EXPECT_TRUE(all[static_cast<size_t>(i)] == text.substr(0, 900000));
}

TEST_F(Tokenize, NamesFileAndLineOfABadRecord) {
  const auto bad = [&](const std::string& line) {
    return options(
        {write("a.jsonl", "{\"text\": \"fine\"}\n\n" + line + "\n{\"text\": \"fine\"}\n")});
  };
  refused(bad("{\"text\": \"x\""), Code::kFormat, {"a.jsonl", "line 3", "JSON"});
  refused(bad("[1, 2]"), Code::kFormat, {"line 3", "not a JSON object"});
  refused(bad("{\"text\": 5}"), Code::kFormat, {"line 3", "'text'", "not a text"});
  refused(bad("{\"prompt\": \"x\"}"), Code::kFormat, {"line 3", "neither"});
  refused(bad("{\"completion\": \"x\"}"), Code::kFormat, {"line 3", "neither"});
  refused(bad("{\"messages\": []}"), Code::kFormat, {"line 3", "neither"});
  refused(bad("{\"prompt\": null, \"completion\": \"x\"}"), Code::kFormat, {"line 3", "'prompt'"});
  refused(bad("{\"text\": \"x\", \"prompt\": \"y\"}"), Code::kFormat, {"line 3", "both"});
  refused(bad("{\"text\": \"x\", \"text\": \"y\"}"), Code::kFormat, {"line 3", "duplicate"});
  refused(bad("{\"text\": \"\xFF\"}"), Code::kFormat, {"line 3", "UTF-8"});
  refused(bad("{\"text\": \"x\"} {\"text\": \"y\"}"), Code::kFormat, {"line 3"});
  EXPECT_THAT(files_left(), ElementsAre("a.jsonl"));
}

TEST_F(Tokenize, RefusesALineLongerThanMemoryShouldHold) {
  const std::string name = write("a.jsonl", "{\"text\": \"x\"}\n");
  std::filesystem::resize_file(name, static_cast<uintmax_t>(kJsonLineLimit) + (2 << 20));
  refused(options({name}), Code::kLimit, {"a.jsonl", "line 2", "64.0 MiB"});
}

TEST_F(Tokenize, RefusesWhatIsNotThereBeforeItWrites) {
  refused(options({}), Code::kInvalidArgument, {"no text file"});
  refused(options({write("a.txt", "x"), path("none.txt")}), Code::kNotFound, {"none.txt"});
  std::filesystem::create_directory(path("folder"));
  refused(options({path("folder")}), Code::kFormat, {"folder", "directory"});
  refused(options({write("a.json", "[]")}), Code::kFormat, {"a.json", "one document a line"});
}

// Training would refuse such a file.
TEST_F(Tokenize, RefusesTextWithoutAToken) {
  const std::string lines = write("empty.jsonl", "\n \n");
  const std::string text = write("empty.txt", "");
  const std::string record = write("record.jsonl", "{\"text\": \"\"}\n");
  refused(options({lines}), Code::kFormat, {"empty.jsonl", "no document"});
  refused(options({text}), Code::kFormat, {"empty.txt", "1 document and no token"});
  refused(options({record}), Code::kFormat, {"record.jsonl", "no token"});
  refused(options({text, lines, record}), Code::kFormat, {"empty.txt' and 2 other files"});
  EXPECT_THAT(files_left(),
              testing::UnorderedElementsAre("empty.jsonl", "empty.txt", "record.jsonl"));
  // Beside others an empty document does no harm.
  EXPECT_TRUE(tokenize(options({text, write("a.txt", "x")})));
}

TEST_F(Tokenize, ReplacesAFileOnlyWhenAsked) {
  TokenizeOptions o = options({write("a.txt", "new")});
  write("out.safetensors", "old");
  EXPECT_EQ(tokenize(o).error().code(), Code::kExists);
  o.overwrite = true;
  ASSERT_TRUE(tokenize(o));
  EXPECT_THAT(documents(), ElementsAre("new"));
}

TEST_F(Tokenize, ReportsProgressAndCanBeCancelled) {
  TokenizeOptions o = options({write("a.txt", std::string(3 << 20, 'x'))});
  int64_t last = 0;
  o.progress = [&](int64_t done, int64_t all) {
    EXPECT_EQ(all, 3 << 20);
    EXPECT_GT(done, last);
    last = done;
    return done < 2 << 20;
  };
  refused(o, Code::kCancelled, {});
  EXPECT_EQ(last, 2 << 20);
  EXPECT_THAT(files_left(), ElementsAre("a.txt"));
}

TEST_F(Tokenize, NeedsAPlaceToWrite) {
  TokenizeOptions o = options({write("a.txt", "x")});
  o.out = path("none/out.safetensors");
  EXPECT_EQ(tokenize(o).error().code(), Code::kNotFound);
  EXPECT_THAT(files_left(), ElementsAre("a.txt"));
}

}  // namespace
}  // namespace amxt::io
