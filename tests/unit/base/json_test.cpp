#include "base/json.h"

#include <gtest/gtest.h>

#include <string>

namespace amxt {
namespace {

std::string message_of(std::string_view text, const JsonLimits& limits = {}) {
  const Result<Json> json = parse_json(text, limits);
  return json ? "no error" : json.error().message();
}

TEST(JsonTest, KeepsOrderAndWholeNumbers) {
  const Result<Json> json = parse_json(
      R"({"z": 18446744073709551615, "a": [-9223372036854775808, 1.5, true, null, "x"]})");
  ASSERT_TRUE(json.ok()) << json.error().message();
  EXPECT_EQ(json->begin().key(), "z");
  EXPECT_EQ((*json)["z"].get<uint64_t>(), UINT64_MAX);
  EXPECT_EQ((*json)["a"][0].get<int64_t>(), INT64_MIN);
  EXPECT_EQ((*json)["a"][1].get<double>(), 1.5);
}

TEST(JsonTest, RefusesADuplicateKeyByName) {
  EXPECT_EQ(message_of(R"({"a": 1, "b": {"c": 1, "c": 2}})"), "duplicate key 'c'");
  EXPECT_EQ(message_of(R"({"a": 1, "a": 2})", {.depth = 16, .member = "tensor"}),
            "duplicate tensor 'a'");
}

TEST(JsonTest, RefusesWhatIsNestedDeeperThanTheLimit) {
  EXPECT_TRUE(parse_json(std::string(16, '[') + std::string(16, ']')).ok());
  EXPECT_EQ(message_of(std::string(17, '[') + std::string(17, ']')),
            "nested deeper than 16 levels");
  EXPECT_EQ(message_of(std::string(200'000, '[')), "nested deeper than 16 levels");
}

TEST(JsonTest, RefusesNumbersThatWouldBeRounded) {
  EXPECT_NE(message_of("18446744073709551616").find("does not fit 64 bits"), std::string::npos);
}

TEST(JsonTest, RefusesBrokenTextWithItsPlace) {
  EXPECT_NE(message_of(R"({"a": )").find("byte"), std::string::npos);
  EXPECT_NE(message_of("").find("not valid JSON"), std::string::npos);
  EXPECT_NE(message_of("{} x").find("not valid JSON"), std::string::npos);
  EXPECT_EQ(message_of("\"\xff\""), "not valid UTF-8");
  EXPECT_EQ(message_of(std::string_view("{}\0{}", 5)), "not valid JSON at byte 3: a NUL byte");
}

}  // namespace
}  // namespace amxt
