#include "train/bench_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace amxt::train {
namespace {

using testing::HasSubstr;

const BenchKind kKind{"thing", {{"rows", 100}, {"columns", 7}}, {{1, 2}, {3, 4}}};

TEST(BenchRequest, WithoutOptionsHasTheDefaults) {
  for (const char* options : {"", "{}"}) {
    const auto request = parse_bench_request(kKind, options);
    ASSERT_TRUE(request) << request.error().message();
    EXPECT_EQ(request->shapes, kKind.shapes);
    EXPECT_EQ(request->repeat, 5);
  }
}

TEST(BenchRequest, TakesWhatIsGiven) {
  const auto request =
      parse_bench_request(kKind, R"({"shapes": [[100, 7], [1, 1]], "repeat": 10000})");
  ASSERT_TRUE(request) << request.error().message();
  EXPECT_EQ(request->shapes, (std::vector<BenchShape>{{100, 7}, {1, 1}}));
  EXPECT_EQ(request->repeat, 10'000);
}

TEST(BenchRequest, SaysWhatItRefuses) {
  const struct {
    const char *options, *says;
  } cases[] = {
      {"[]", "options are no JSON object"},
      {R"({"shape": [[1, 2]]})", "\"shape\""},
      {R"({"shapes": []})", "\"shapes\""},
      {R"({"shapes": 5})", "\"shapes\""},
      {R"({"shapes": [[1]]})", "[1] is no shape [rows, columns]"},
      {R"({"shapes": [[1, 2, 3]]})", "[1,2,3] is no shape"},
      {R"({"shapes": [[101, 2]]})", "rows is 101, and must be a whole number from 1 to 100"},
      {R"({"shapes": [[1, 0]]})", "columns is 0, and must be a whole number from 1 to 7"},
      {R"({"shapes": [[1, -2]]})", "columns is -2"},
      {R"({"shapes": [[1, 2.5]]})", "columns is 2.5"},
      {R"({"shapes": [[18446744073709551615, 1]]})", "rows is 18446744073709551615"},
      {R"({"repeat": 10001})", "repeat is 10001, and must be a whole number from 1 to 10000"},
      {R"({"repeat": null})", "repeat is null"}};
  for (const auto& [options, says] : cases) {
    const auto request = parse_bench_request(kKind, options);
    ASSERT_FALSE(request) << options;
    EXPECT_EQ(request.error().code(), Code::kInvalidArgument) << options;
    EXPECT_THAT(request.error().message(), HasSubstr("bench thing: ")) << options;
    EXPECT_THAT(request.error().message(), HasSubstr(says)) << options;
  }
  const auto request = parse_bench_request(kKind, "{");
  ASSERT_FALSE(request);
  EXPECT_EQ(request.error().code(), Code::kFormat);
}

TEST(BenchRequest, NamesTheShapeThatTakesTooMuchMemory) {
  EXPECT_TRUE(check_bench_memory(kKind, {3, 4}, 1));
  const Status status = check_bench_memory(kKind, {3, 4}, int64_t{1} << 60);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kOutOfMemory);
  EXPECT_THAT(status.error().message(), HasSubstr("bench thing: rows 3, columns 4 takes 1"));
}

}  // namespace
}  // namespace amxt::train
