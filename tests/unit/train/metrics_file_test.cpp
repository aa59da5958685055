// The file of metrics: a line per step, whole lines only, and what a resumed job cuts off.
#include "train/metrics_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/json.h"
#include "support/model_files.h"

namespace amxt::train {
namespace {

using testing::HasSubstr;
using testing::Not;

StepMetrics metrics_of(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 1.0 / static_cast<double>(step);
  metrics.tokens = 10 * step;
  return metrics;
}

std::string lines(int64_t first, int64_t last) {
  std::string text;
  for (int64_t step = first; step <= last; ++step) text += metrics_line(metrics_of(step)) + "\n";
  return text;
}

class MetricsFileTest : public testing::Test {
 protected:
  ~MetricsFileTest() override { set_file_fault({}); }
  void write(const std::string& text) { test::write_bytes(path_, text); }
  std::string text() { return test::read_bytes(path_); }
  // Resumes after `last_step` and takes the step that follows.
  void take_next_step(int64_t last_step) {
    Result<MetricsFile> file = MetricsFile::open(path_, last_step);
    ASSERT_TRUE(file.ok()) << file.error().message();
    const Status added = file->add(metrics_of(last_step + 1));
    ASSERT_TRUE(added.ok()) << added.error().message();
  }

  test::TemporaryDirectory directory_;
  std::string path_ = directory_ / "metrics.jsonl";
};

TEST(MetricsLine, TellsWhatAStepWas) {
  StepMetrics m;
  m.step = 7;
  m.epoch = 0.25;
  m.loss = 2.5;
  m.grad_norm = 1.5;
  m.learning_rate = 1e-3;
  m.tokens = 4096;
  m.seconds = 2;
  m.tokens_per_second = 2048;
  m.model_tflops = 0.5;
  m.peak_rss_bytes = 123;
  m.peak_pss_bytes_all_ranks = 456;
  m.world_size = 4;
  const Result<Json> json = parse_json(metrics_line(m));
  ASSERT_TRUE(json.ok()) << json.error().message();
  EXPECT_EQ(*json, Json({{"step", 7},
                         {"epoch", 0.25},
                         {"loss", 2.5},
                         {"grad_norm", 1.5},
                         {"lr", 1e-3},
                         {"tokens", 4096},
                         {"seconds", 2.0},
                         {"tokens_per_second", 2048.0},
                         {"model_tflops", 0.5},
                         {"peak_rss_bytes", 123},
                         {"peak_pss_bytes_all_ranks", 456},
                         {"world_size", 4}}));
  m.skipped = true;
  EXPECT_EQ((*parse_json(metrics_line(m)))["skipped"], true);
}

TEST(MetricsLine, IsJsonWhenNumbersAreNotFinite) {
  StepMetrics m;
  m.loss = std::numeric_limits<double>::quiet_NaN();
  m.grad_norm = std::numeric_limits<double>::infinity();
  m.learning_rate = -std::numeric_limits<double>::infinity();
  const Result<Json> json = parse_json(metrics_line(m));
  ASSERT_TRUE(json.ok()) << json.error().message();
  for (const char* name : {"loss", "grad_norm", "lr"}) EXPECT_TRUE((*json)[name].is_null()) << name;
  EXPECT_EQ((*json)["seconds"], 0);
}

TEST_F(MetricsFileTest, GetsALinePerStep) {
  Result<MetricsFile> file = MetricsFile::open(path_, 0);
  ASSERT_TRUE(file.ok()) << file.error().message();
  for (int64_t step = 1; step <= 3; ++step) ASSERT_TRUE(file->add(metrics_of(step)).ok());
  EXPECT_EQ(text(), lines(1, 3));
}

TEST_F(MetricsFileTest, LosesTheStepsThatAResumedJobTakesAgain) {
  write(lines(1, 9));
  take_next_step(4);
  EXPECT_EQ(text(), lines(1, 5));
}

TEST_F(MetricsFileTest, KeepsAllLinesWhenNoneIsLater) {
  write(lines(1, 4));
  take_next_step(4);
  EXPECT_EQ(text(), lines(1, 5));
}

TEST_F(MetricsFileTest, OfAnOlderJobIsEmptiedByOneThatBeginsAfresh) {
  write(lines(1, 9));
  take_next_step(0);
  EXPECT_EQ(text(), lines(1, 1));
}

TEST_F(MetricsFileTest, LosesALineWithoutAnEnd) {
  const std::string torn = metrics_line(metrics_of(4));
  for (const size_t length : {size_t{1}, torn.size() / 2, torn.size()}) {
    write(lines(1, 3) + torn.substr(0, length));
    take_next_step(3);
    EXPECT_EQ(text(), lines(1, 4)) << length << " bytes of the line were there";
  }
  // A job that was killed in its first line.
  write(torn.substr(0, 20));
  take_next_step(0);
  EXPECT_EQ(text(), lines(1, 1));
}

TEST_F(MetricsFileTest, IsCutWhereSomethingElseBegins) {
  for (const std::string foreign : {"what is this\n", "{\"loss\": 1}\n", "{\"step\": \"3\"}\n",
                                    "[3]\n", "\n", "{\"step\": -1}\n"}) {
    write(lines(1, 2) + foreign + lines(3, 4));
    take_next_step(2);
    EXPECT_EQ(text(), lines(1, 3)) << "after " << foreign;
  }
}

TEST_F(MetricsFileTest, IsReadWholeWhenItIsLargerThanWhatIsReadAtOnce) {
  const std::string all = lines(1, 16'000);
  ASSERT_GT(all.size(), size_t{3} << 20);
  write(all);
  take_next_step(15'000);
  EXPECT_TRUE(text() == lines(1, 15'001)) << text().size() << " bytes";
  // And with a last line that is torn.
  write(all.substr(0, all.size() - 5));
  take_next_step(15'999);
  EXPECT_TRUE(text() == all) << text().size() << " bytes";
}

TEST_F(MetricsFileTest, ThatHoldsSomethingElseIsRefusedAndLeftAsItIs) {
  for (const std::string& foreign :
       {std::string("a letter\nof two lines\n"), std::string("one word"), std::string("{}\n"),
        std::string(3000, '\0'), std::string(3 << 20, 'x'), "\n" + lines(1, 3)}) {
    write(foreign);
    for (const Status& status : {MetricsFile::probe(path_), [&]() -> Status {
                                   AMXT_TRY(MetricsFile::open(path_, 0));
                                   return {};
                                 }()}) {
      ASSERT_FALSE(status.ok()) << foreign.substr(0, 20);
      EXPECT_EQ(status.error().code(), Code::kExists) << status.error().message();
      EXPECT_THAT(status.error().message(), HasSubstr(path_));
    }
    EXPECT_TRUE(text() == foreign);
  }
}

TEST_F(MetricsFileTest, IsLeftAsItIsByALookBeforehand) {
  const Status absent = MetricsFile::probe(path_);
  EXPECT_TRUE(absent.ok()) << absent.error().message();
  EXPECT_FALSE(path_exists(path_));
  write(lines(1, 3) + "{\"st");
  const Status there = MetricsFile::probe(path_);
  EXPECT_TRUE(there.ok()) << there.error().message();
  EXPECT_EQ(text(), lines(1, 3) + "{\"st");
}

TEST_F(MetricsFileTest, ThatCannotBeWrittenIsAnError) {
  EXPECT_FALSE(MetricsFile::open(directory_.path(), 0).ok()) << "a directory";
  EXPECT_FALSE(MetricsFile::probe(directory_ / "missing/metrics.jsonl").ok());
  Result<MetricsFile> file = MetricsFile::open(path_, 0);
  ASSERT_TRUE(file.ok());
  set_file_fault([](std::string_view operation, const std::string&) {
    return operation == "write" ? ENOSPC : 0;
  });
  const Status full = file->add(metrics_of(1));
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code(), Code::kNoSpace);
  EXPECT_THAT(full.error().message(), HasSubstr("metrics.jsonl"));
  EXPECT_EQ(MetricsFile::probe(path_).error().code(), Code::kNoSpace);
  set_file_fault({});
  EXPECT_TRUE(MetricsFile::probe(path_).ok());
  EXPECT_EQ(text(), "");
}

}  // namespace
}  // namespace amxt::train
