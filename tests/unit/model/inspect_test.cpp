#include "model/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "base/json.h"
#include "io/safetensors.h"
#include "support/model_files.h"

namespace amxt::model {
namespace {

using test::TemporaryDirectory;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Json inspected(const std::string& path, bool scan = false) {
  InspectOptions options;
  options.scan = scan;
  const auto text = inspect(path, options);
  EXPECT_TRUE(text.ok()) << text.error().message();
  return text.ok() ? Json::parse(*text) : Json();
}
std::vector<std::string> lines(const Json& json, const char* key) {
  return json[key].get<std::vector<std::string>>();
}

template <typename T>
std::string raw(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

void write_tensor(const std::string& path, DType dtype, const std::string& data) {
  auto writer = io::SafetensorsWriter::create(
      path, {{"t", dtype, {static_cast<int64_t>(data.size()) / dtype_bytes(dtype)}}});
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  ASSERT_TRUE(writer->write(writer->tensors()[0], 0, std::as_bytes(std::span(data))).ok());
  ASSERT_TRUE(writer->finish().ok());
}

TEST(Inspect, DirectoryWithShards) {
  const Json json = inspected(test::golden_directory("mistral"));
  EXPECT_EQ(json["kind"], "directory");
  EXPECT_EQ(json["config"]["model_type"], "mistral");
  EXPECT_EQ(json["parameters"], json["config"]["parameters"]);
  EXPECT_EQ(json["bytes"], 2 * json["parameters"].get<int64_t>());
  EXPECT_EQ(json["files"].size(), 2u);
  EXPECT_EQ(json["dtypes"]["BF16"], json["tensors"].size());
  EXPECT_THAT(lines(json, "problems"), IsEmpty());
  EXPECT_THAT(lines(json, "warnings"), IsEmpty());
  const Json& first = json["tensors"][0];
  EXPECT_EQ(first["name"], "model.embed_tokens.weight");
  EXPECT_EQ(first["shape"], Json::parse("[75,48]"));
  EXPECT_EQ(first["bytes"], 7200);
  EXPECT_EQ(first["file"], "model-00001-of-00002.safetensors");
  EXPECT_FALSE(first.contains("nan")) << "no data is read without a scan";
}

TEST(Inspect, SingleFile) {
  const Json json = inspected(test::golden_directory("odd") + "/golden.safetensors");
  EXPECT_EQ(json["kind"], "safetensors");
  EXPECT_TRUE(json["config"].is_null());
  EXPECT_GT(json["tensors"].size(), 10u);
  EXPECT_THAT(lines(json, "problems"), IsEmpty());
}

TEST(Inspect, IndexFile) {
  const Json json = inspected(test::golden_directory("mistral") + "/model.safetensors.index.json");
  EXPECT_EQ(json["kind"], "index");
  EXPECT_EQ(json["files"].size(), 2u);
  EXPECT_THAT(lines(json, "problems"), IsEmpty());
}

TEST(Inspect, ConfigAloneIsEnough) {
  TemporaryDirectory directory;
  std::filesystem::copy(test::golden_directory("odd") + "/config.json", directory / "config.json");
  const Json json = inspected(directory.path());
  EXPECT_EQ(json["config"]["hidden_size"], 80);
  EXPECT_THAT(json["tensors"], IsEmpty());
  EXPECT_THAT(lines(json, "problems"), IsEmpty());
  EXPECT_THAT(lines(json, "warnings"), ElementsAre(HasSubstr("no weights")));
}

TEST(Inspect, IndexAloneListsWhatIsMissing) {
  TemporaryDirectory directory;
  std::filesystem::copy(test::golden_directory("mistral") + "/model.safetensors.index.json",
                        directory / "model.safetensors.index.json");
  const Json json = inspected(directory.path());
  EXPECT_THAT(lines(json, "problems"),
              ElementsAre(HasSubstr("model-00001-of-00002"), HasSubstr("model-00002-of-00002")));
  EXPECT_THAT(lines(json, "warnings"), Contains(HasSubstr("no config.json")));
}

TEST(Inspect, ReportsEveryProblemNotOnlyTheFirst) {
  TemporaryDirectory directory;
  test::copy_directory(test::golden_directory("odd"), directory / "m");
  Json config = Json::parse(test::read_bytes(directory / "m/config.json"));
  config["intermediate_size"] = 177;
  config["num_hidden_layers"] = 2;
  test::write_bytes(directory / "m/config.json", config.dump());
  const auto problems = lines(inspected(directory / "m"), "problems");
  EXPECT_THAT(problems, Contains(HasSubstr("'model.layers.0.mlp.gate_proj.weight'")));
  EXPECT_THAT(problems, Contains(HasSubstr("'model.layers.0.mlp.down_proj.weight'")));
  EXPECT_THAT(problems, Contains(HasSubstr("'model.layers.1.self_attn.q_proj.weight' is missing")));
  EXPECT_EQ(problems.size(), 3u + 9u);
}

TEST(Inspect, BadConfigDoesNotHideTheFiles) {
  TemporaryDirectory directory;
  test::copy_directory(test::golden_directory("odd"), directory / "m");
  test::write_bytes(directory / "m/config.json", "{}");
  const Json json = inspected(directory / "m");
  EXPECT_THAT(lines(json, "problems"), ElementsAre(HasSubstr("'model_type' is missing")));
  EXPECT_EQ(json["tensors"].size(), 11u);
}

TEST(Inspect, TellsWhetherAllFilesCouldBeRead) {
  EXPECT_EQ(inspected(test::golden_directory("mistral"))["complete"], true);
  TemporaryDirectory directory;
  test::copy_directory(test::golden_directory("mistral"), directory / "m");
  std::filesystem::remove(directory / "m/model-00002-of-00002.safetensors");
  const Json json = inspected(directory / "m");
  EXPECT_EQ(json["complete"], false);
  EXPECT_EQ(json["files"].size(), 1u);
}

TEST(Inspect, MalformedFileIsAProblem) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "f.safetensors", "short");
  EXPECT_THAT(lines(inspected(directory / "f.safetensors"), "problems"),
              ElementsAre(HasSubstr("f.safetensors': 5 bytes")));
  EXPECT_EQ(inspected(directory / "f.safetensors")["complete"], false);
}

TEST(Inspect, FifoDoesNotBlock) {
  TemporaryDirectory directory;
  for (const char* name :
       {"config.json", "model.safetensors", "model.safetensors.index.json", "f"}) {
    ASSERT_EQ(::mkfifo((directory / name).c_str(), 0600), 0);
  }
  EXPECT_THAT(lines(inspected(directory / "f"), "problems"), ElementsAre(HasSubstr("is a FIFO")));
  EXPECT_THAT(lines(inspected(directory.path()), "problems"),
              ElementsAre(HasSubstr("config.json': is a FIFO"),
                          HasSubstr("model.safetensors': is a FIFO")));
  EXPECT_THAT(lines(inspected(directory / "model.safetensors.index.json"), "problems"),
              Contains(HasSubstr("index.json': is a FIFO")));
}

TEST(Inspect, NothingThereIsAnError) {
  TemporaryDirectory directory;
  for (const std::string& path :
       {directory / "none", directory / "none.safetensors", directory.path()}) {
    const auto text = inspect(path);
    ASSERT_FALSE(text.ok()) << path;
    EXPECT_EQ(text.error().code(), Code::kNotFound);
    EXPECT_THAT(text.error().message(), HasSubstr("'" + path + "'"));
  }
}

struct Nonfinite {
  const char* name;
  DType dtype;
  std::string data;  // NaN at 2, Inf at 3 and 4, largest finite magnitude 3
};

void PrintTo(const Nonfinite& nonfinite, std::ostream* out) { *out << nonfinite.name; }

class Scan : public testing::TestWithParam<Nonfinite> {};

TEST_P(Scan, Case47_CountsNanAndInf) {
  TemporaryDirectory directory;
  write_tensor(directory / "f", GetParam().dtype, GetParam().data);
  const Json json = inspected(directory / "f", true);
  EXPECT_EQ(json["tensors"][0]["nan"], 1);
  EXPECT_EQ(json["tensors"][0]["inf"], 2);
  EXPECT_EQ(json["tensors"][0]["max_abs"], 3.0);
  EXPECT_THAT(lines(json, "problems"),
              ElementsAre(AllOf(HasSubstr("tensor 't': 1 NaN and 2 Inf, the first at element 2"))));
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
const Nonfinite kNonfinite[] = {
    {"BF16", DType::kBF16, raw(std::vector<uint16_t>{0x3F80, 0xC040, 0xFFC0, 0x7F80, 0xFF80})},
    {"F16", DType::kF16, raw(std::vector<uint16_t>{0x3C00, 0xC200, 0x7C01, 0x7C00, 0xFC00})},
    {"F32", DType::kF32,
     raw(std::vector<float>{1, -3, static_cast<float>(kNan), static_cast<float>(kInf),
                            -static_cast<float>(kInf)})},
    {"F64", DType::kF64, raw(std::vector<double>{1, -3, kNan, kInf, -kInf})},
};

INSTANTIATE_TEST_SUITE_P(Dtypes, Scan, testing::ValuesIn(kNonfinite),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(ScanOf, FindsTheOneNanBehindTheFirstBlock) {
  TemporaryDirectory directory;
  std::vector<float> values(3 << 20, 0.5f);
  values[2'500'000] = static_cast<float>(kNan);
  write_tensor(directory / "f", DType::kF32, raw(values));
  EXPECT_THAT(lines(inspected(directory / "f", true), "problems"),
              ElementsAre(HasSubstr("1 NaN and 0 Inf, the first at element 2500000")));
}

TEST(ScanOf, WholeNumbersHaveNone) {
  TemporaryDirectory directory;
  write_tensor(directory / "f", DType::kU16, raw(std::vector<uint16_t>{0x7F80, 0x7FC0}));
  const Json json = inspected(directory / "f", true);
  EXPECT_EQ(json["tensors"][0]["nan"], 0);
  EXPECT_FALSE(json["tensors"][0].contains("max_abs"));
  EXPECT_THAT(lines(json, "problems"), IsEmpty());
}

TEST(ScanOf, ReportsProgressAndCanBeCancelled) {
  TemporaryDirectory directory;
  write_tensor(directory / "f", DType::kF32, std::string(10 << 20, '\0'));
  InspectOptions options;
  options.scan = true;
  std::vector<int64_t> seen;
  ASSERT_TRUE(inspect(directory / "f", options, [&](int64_t done, int64_t bytes) {
                EXPECT_EQ(bytes, 10 << 20);
                seen.push_back(done);
                return true;
              }).ok());
  EXPECT_THAT(seen, ElementsAre(4 << 20, 8 << 20, 10 << 20));
  const auto cancelled = inspect(directory / "f", options, [](int64_t, int64_t) { return false; });
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().code(), Code::kCancelled);
}

}  // namespace
}  // namespace amxt::model
