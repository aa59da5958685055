#include "io/index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace amxt::io {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kFile = "dir/model.safetensors.index.json";

struct Malformed {
  const char* name;
  std::string text;
  std::string says;
};

void PrintTo(const Malformed& malformed, std::ostream* out) { *out << malformed.name; }

std::string mapped_to(const std::string& value) { return "{\"weight_map\":{\"w\":" + value + "}}"; }

class IndexRefused : public testing::TestWithParam<Malformed> {};

TEST_P(IndexRefused, NamesFileAndKey) {
  const auto index = parse_index(GetParam().text, kFile);
  ASSERT_FALSE(index.ok()) << "a malformed index was accepted";
  EXPECT_THAT(index.error().message(), testing::StartsWith(std::string("'") + kFile + "': "));
  EXPECT_THAT(index.error().message(), HasSubstr(GetParam().says));
}

const Malformed kMalformed[] = {
    {"Case37_Empty", "", "not valid JSON"},
    {"Case37_NotJson", "weights", "not valid JSON at byte 1"},
    {"Case37_NotUtf8", "{\"\xff\":1}", "UTF-8"},
    {"Case37_Array", "[]", "not a JSON object"},
    {"Case37_Null", "null", "not a JSON object"},
    {"Case37_NoWeightMap", R"({"metadata":{}})", "key 'weight_map' is missing"},
    {"Case37_WeightMapIsArray", R"({"weight_map":[]})", "key 'weight_map' is not an object"},
    {"Case37_WeightMapIsEmpty", R"({"weight_map":{}})", "key 'weight_map' is empty"},
    {"Case37_DuplicateTensor", R"({"weight_map":{"w":"a.safetensors","w":"b.safetensors"}})",
     "duplicate key 'w'"},
    {"Case37_ValueIsNumber", mapped_to("1"), "weight_map key 'w': the value is not a string"},
    {"Case37_ValueIsNull", mapped_to("null"), "weight_map key 'w': the value is not a string"},
    {"Case37_ValueIsObject", mapped_to("{}"), "weight_map key 'w': the value is not a string"},
    {"Case37_AbsolutePath", mapped_to(R"("/etc/model.safetensors")"),
     "weight_map key 'w': '/etc/model.safetensors' is not a plain name"},
    {"Case37_ParentDirectory", mapped_to(R"("../model.safetensors")"),
     "weight_map key 'w': '../model.safetensors'"},
    {"Case37_DotDot", mapped_to(R"("..")"), "'..' is not a plain name"},
    {"Case37_Subdirectory", mapped_to(R"("a/model.safetensors")"), "not a plain name"},
    {"Case37_Backslash", mapped_to(R"("a\\model.safetensors")"), "not a plain name"},
    {"Case37_Nul", mapped_to(R"("model\u0000.safetensors")"),
     "'model\\x00.safetensors' is not a plain name"},
    {"Case37_Space", mapped_to(R"("my model.safetensors")"), "not a plain name"},
    {"Case37_EmptyName", mapped_to(R"("")"), "'' is not a plain name"},
    {"Case37_OnlyTheSuffix", mapped_to(R"(".safetensors")"), "not a plain name"},
    {"Case37_HiddenFile", mapped_to(R"(".x.safetensors")"), "not a plain name"},
    {"Case37_OtherSuffix", mapped_to(R"("model.bin")"),
     "'model.bin' is not a plain name of a .safetensors file"},
    {"Case37_SuffixInOtherCase", mapped_to(R"("model.SAFETENSORS")"), "not a plain name"},
    {"Case37_LongName", mapped_to("\"" + std::string(300, 'n') + ".safetensors\""),
     "nnn...' is not a plain name"},
    {"Case37_EmptyTensorName", R"({"weight_map":{"":"a.safetensors"}})", "empty key"},
    {"Case13_DepthBomb", std::string(100'000, '['), "nested deeper than 16"},
};

INSTANTIATE_TEST_SUITE_P(Malformed, IndexRefused, testing::ValuesIn(kMalformed),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Index, FilesAreSortedAndEachOnce) {
  const auto index = parse_index(
      R"({"metadata":{"total_size":12},"weight_map":{"c":"b.safetensors","a":"b.safetensors","b":"a.safetensors"}})",
      kFile);
  ASSERT_TRUE(index.ok()) << index.error().message();
  EXPECT_THAT(index->files, ElementsAre("a.safetensors", "b.safetensors"));
  EXPECT_THAT(index->weight_map,
              ElementsAre(testing::Pair("a", 1u), testing::Pair("b", 0u), testing::Pair("c", 1u)));
  EXPECT_EQ(index->first_key(1), "a");
  EXPECT_EQ(index->total_size, 12u);
  EXPECT_THAT(index->warnings, testing::IsEmpty());
}

TEST(Index, TotalSizeMayBeWrittenAsAFloat) {
  const auto index = parse_index(
      R"({"metadata":{"total_size":1.6e10},"weight_map":{"w":"a.safetensors"}})", kFile);
  ASSERT_TRUE(index.ok());
  EXPECT_EQ(index->total_size, 16'000'000'000u);
}

TEST(Index, Case41_TotalSizeOfAnotherKindWarns) {
  for (const char* value : {"-1", "\"12\"", "[]", "1e300"}) {
    const auto index = parse_index(std::string(R"({"metadata":{"total_size":)") + value +
                                       R"(},"weight_map":{"w":"a.safetensors"}})",
                                   kFile);
    ASSERT_TRUE(index.ok()) << value;
    EXPECT_THAT(index->warnings, ElementsAre(HasSubstr("'total_size' is not a number of bytes")))
        << value;
  }
}

}  // namespace
}  // namespace amxt::io
