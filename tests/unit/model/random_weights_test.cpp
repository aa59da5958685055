#include "model/random_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "base/bf16.h"
#include "base/file.h"
#include "base/json.h"
#include "model/directory.h"
#include "support/model_files.h"

namespace amxt::model {
namespace {

using test::TemporaryDirectory;
using testing::HasSubstr;

const auto kGoOn = [](const WriteProgress&) { return true; };

RandomModelOptions tiny(const std::string& directory) {
  RandomModelOptions options;
  options.config_text = *preset_config("tiny");
  options.directory = directory;
  return options;
}

std::string tensor_bytes(const ModelDirectory& model, size_t spec) {
  const TensorLocation& location = model.location(spec);
  std::string data(static_cast<size_t>(location.entry->bytes()), '\0');
  EXPECT_TRUE(model.files()[static_cast<size_t>(location.file)]
                  .read(*location.entry, 0, std::as_writable_bytes(std::span(data)))
                  .ok());
  return data;
}

std::vector<std::string> all_bytes(const std::string& directory) {
  const auto model = ModelDirectory::open(directory);
  EXPECT_TRUE(model.ok()) << model.error().message();
  std::vector<std::string> all;
  for (size_t i = 0; i < model->specs().size(); ++i) all.push_back(tensor_bytes(*model, i));
  return all;
}

std::vector<float> elements(std::string_view name, uint64_t seed, int64_t count, double deviation) {
  ModelConfig config;
  config.initializer_range = deviation;
  const TensorSpec spec{std::string(name), Role::kQuery, 0, count, 1, false};
  std::vector<uint16_t> bits(static_cast<size_t>(count));
  random_elements(config, spec, seed, 0, count, bits.data());
  std::vector<float> values;
  for (const uint16_t b : bits) values.push_back(to_float(bf16{b}));
  return values;
}

TEST(RandomWeights, DirectoryOpensAsAModelInBfloat16) {
  TemporaryDirectory directory;
  ASSERT_TRUE(write_random_model(tiny(directory / "m"), kGoOn).ok());
  const auto model = ModelDirectory::open(directory / "m");
  ASSERT_TRUE(model.ok()) << model.error().message();
  EXPECT_THAT(model->warnings(), testing::IsEmpty());
  for (const auto& tensor : model->files()[0].tensors()) EXPECT_EQ(tensor.dtype, DType::kBF16);
  EXPECT_EQ(model->files()[0].metadata().at("format"), "pt") << "older transformers ask for it";
  EXPECT_TRUE(std::filesystem::exists(directory / "m/generation_config.json"));
  EXPECT_FALSE(std::filesystem::exists(directory / "m.partial"));
}

TEST(RandomWeights, NormsAreOneBiasesZeroAndMatricesNeither) {
  TemporaryDirectory directory;
  RandomModelOptions options = tiny(directory / "m");
  Json config = Json::parse(options.config_text);
  config["attention_bias"] = true;
  options.config_text = config.dump();
  ASSERT_TRUE(write_random_model(options, kGoOn).ok());
  const auto model = ModelDirectory::open(directory / "m");
  ASSERT_TRUE(model.ok()) << model.error().message();
  for (size_t i = 0; i < model->specs().size(); ++i) {
    const TensorSpec& spec = model->specs()[i];
    const std::string data = tensor_bytes(*model, i);
    const bool ones = data.substr(0, 2) == std::string("\x80\x3f", 2);
    const bool zeros = data.find_first_not_of('\0') == std::string::npos;
    EXPECT_EQ(ones, spec.name.find("norm") != std::string::npos) << spec.name;
    EXPECT_EQ(zeros, spec.name.ends_with(".bias")) << spec.name;
  }
}

TEST(RandomWeights, AreNormalWithTheConfigsDeviation) {
  const auto values = elements("w", 1, 1'000'000, 0.02);
  double sum = 0, squares = 0, fourths = 0, neighbours = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = values[i] / 0.02;
    sum += x;
    squares += x * x;
    fourths += x * x * x * x;
    if (i > 0) neighbours += x * values[i - 1] / 0.02;
  }
  const double n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0, 0.005);
  EXPECT_NEAR(squares / n, 1, 0.01);
  EXPECT_NEAR(fourths / n, 3, 0.05) << "the fourth moment of a normal distribution is 3";
  EXPECT_NEAR(neighbours / n, 0, 0.005) << "neighbours are not correlated";
}

TEST(RandomWeights, SeedAndTensorMatter) {
  EXPECT_EQ(elements("a", 1, 100, 0.02), elements("a", 1, 100, 0.02));
  EXPECT_NE(elements("a", 1, 100, 0.02), elements("a", 2, 100, 0.02));
  EXPECT_NE(elements("a", 1, 100, 0.02), elements("b", 1, 100, 0.02));
}

TEST(RandomWeights, ElementsDependOnTheirPlaceAlone) {
  ModelConfig config;
  const TensorSpec spec{"w", Role::kQuery, 0, 1000, 1, false};
  std::vector<uint16_t> whole(1000), piece(1000);
  random_elements(config, spec, 7, 0, 1000, whole.data());
  for (const auto& [begin, count] :
       {std::pair<int64_t, int64_t>{0, 1}, {1, 2}, {3, 5}, {4, 4}, {999, 1}, {13, 700}}) {
    random_elements(config, spec, 7, begin, count, piece.data());
    EXPECT_TRUE(std::equal(piece.begin(), piece.begin() + count, whole.begin() + begin))
        << begin << " " << count;
  }
}

TEST(RandomWeights, ShardsDoNotChangeThem) {
  TemporaryDirectory directory;
  ASSERT_TRUE(write_random_model(tiny(directory / "one"), kGoOn).ok());
  RandomModelOptions sharded = tiny(directory / "many");
  sharded.shard_bytes = 100'000;
  ASSERT_TRUE(write_random_model(sharded, kGoOn).ok());
  EXPECT_GT(ModelDirectory::open(directory / "many")->files().size(), 3u);
  EXPECT_EQ(all_bytes(directory / "one"), all_bytes(directory / "many"));
  RandomModelOptions other = tiny(directory / "other");
  other.seed = 43;
  ASSERT_TRUE(write_random_model(other, kGoOn).ok());
  EXPECT_NE(all_bytes(directory / "one"), all_bytes(directory / "other"));
}

TEST(RandomWeights, ConfigSaysWhatIsStored) {
  TemporaryDirectory directory;
  RandomModelOptions options = tiny(directory / "m");
  Json config = Json::parse(options.config_text);
  config["torch_dtype"] = "float32";
  config["eos_token_id"] = {3, 4};
  options.config_text = config.dump();
  ASSERT_TRUE(write_random_model(options, kGoOn).ok());
  const Json written = Json::parse(test::read_bytes(directory / "m/config.json"));
  EXPECT_EQ(written["torch_dtype"], "bfloat16");
  EXPECT_EQ(written["hidden_size"], 128);
  const Json generation = Json::parse(test::read_bytes(directory / "m/generation_config.json"));
  EXPECT_EQ(generation["eos_token_id"], Json::parse("[3,4]"));
  EXPECT_FALSE(generation.contains("bos_token_id"));
}

TEST(RandomWeights, ProgressCountsEveryByteAndShard) {
  TemporaryDirectory directory;
  RandomModelOptions options = tiny(directory / "m");
  options.shard_bytes = 500'000;
  int64_t last = 0, files = 0;
  WriteProgress final_progress;
  ASSERT_TRUE(write_random_model(options, [&](const WriteProgress& progress) {
                EXPECT_GT(progress.bytes_done, last);
                EXPECT_LE(progress.file_bytes_done, progress.file_bytes);
                last = progress.bytes_done;
                files = std::max(files, progress.file_index + 1);
                final_progress = progress;
                return true;
              }).ok());
  EXPECT_EQ(final_progress.bytes_done, 820'352 * 2);
  EXPECT_EQ(final_progress.bytes, 820'352 * 2);
  EXPECT_EQ(files, final_progress.files);
  EXPECT_EQ(files, static_cast<int64_t>(ModelDirectory::open(directory / "m")->files().size()));
}

class NothingHalfWritten : public testing::Test {
 protected:
  void TearDown() override { set_file_fault({}); }
  void expect_nothing_left() {
    EXPECT_FALSE(std::filesystem::exists(directory_ / "m"));
    EXPECT_FALSE(std::filesystem::exists(directory_ / "m.partial"));
  }
  TemporaryDirectory directory_;
};

TEST_F(NothingHalfWritten, WhenCancelled) {
  int calls = 0;
  const auto status =
      write_random_model(tiny(directory_ / "m"), [&](const WriteProgress&) { return ++calls < 5; });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kCancelled);
  expect_nothing_left();
}

TEST_F(NothingHalfWritten, WhenAnOperationFails) {
  for (const char* operation : {"create", "reserve", "write", "sync", "sync_directory", "rename"}) {
    set_file_fault(
        [&](std::string_view at, const std::string&) { return at == operation ? ENOSPC : 0; });
    const auto status = write_random_model(tiny(directory_ / "m"), kGoOn);
    set_file_fault({});
    ASSERT_FALSE(status.ok()) << operation;
    EXPECT_EQ(status.error().code(), Code::kNoSpace) << operation;
    if (std::string_view(operation) != "sync_directory") expect_nothing_left();
    std::filesystem::remove_all(directory_ / "m");
  }
}

TEST_F(NothingHalfWritten, WhenTheConfigIsBad) {
  RandomModelOptions options = tiny(directory_ / "m");
  options.config_name = "own.json";
  options.config_text = "{}";
  const auto status = write_random_model(options, kGoOn);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message(), HasSubstr("'own.json': key 'model_type' is missing"));
  expect_nothing_left();
}

TEST_F(NothingHalfWritten, WhenTheShardSizeIsZero) {
  RandomModelOptions options = tiny(directory_ / "m");
  options.shard_bytes = 0;
  EXPECT_FALSE(write_random_model(options, kGoOn).ok());
  expect_nothing_left();
}

TEST_F(NothingHalfWritten, WhenTheDiskIsTooSmallForTheModel) {
  RandomModelOptions options = tiny(directory_ / "m");
  Json config = Json::parse(options.config_text);
  config["num_hidden_layers"] = 4096;
  config["hidden_size"] = config["intermediate_size"] = 1 << 20;
  options.config_text = config.dump();
  const auto status = write_random_model(options, kGoOn);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kNoSpace);
  EXPECT_THAT(status.error().message(),
              testing::AllOf(HasSubstr("the weights need"), HasSubstr("are free")));
  expect_nothing_left();
}

TEST(RandomWeightsTarget, DirectoryWithFilesStaysAsItIs) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "precious", "x");
  const auto status = write_random_model(tiny(directory.path()), kGoOn);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kExists);
  EXPECT_THAT(status.error().message(), HasSubstr("exists and is not empty"));
  EXPECT_EQ(test::read_bytes(directory / "precious"), "x");
}

TEST(RandomWeightsTarget, FileIsNoDirectory) {
  TemporaryDirectory directory;
  test::write_bytes(directory / "m", "x");
  EXPECT_THAT(write_random_model(tiny(directory / "m"), kGoOn).error().message(),
              HasSubstr("exists and is not a directory"));
}

TEST(RandomWeightsTarget, EmptyDirectoryAndMissingParentsAreFilled) {
  TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "empty");
  EXPECT_TRUE(write_random_model(tiny(directory / "empty/"), kGoOn).ok());
  EXPECT_TRUE(write_random_model(tiny(directory / "a/b/c"), kGoOn).ok());
  EXPECT_TRUE(ModelDirectory::open(directory / "empty").ok());
  EXPECT_TRUE(ModelDirectory::open(directory / "a/b/c").ok());
}

TEST(RandomWeightsTarget, RestOfAKilledRunIsReplacedAndNothingElse) {
  TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "m.partial");
  test::write_bytes(directory / "m.partial/model.safetensors", "half");
  EXPECT_TRUE(write_random_model(tiny(directory / "m"), kGoOn).ok());

  std::filesystem::create_directory(directory / "n.partial");
  test::write_bytes(directory / "n.partial/thesis.txt", "precious");
  const auto status = write_random_model(tiny(directory / "n"), kGoOn);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message(), HasSubstr("is in the way and holds other files"));
  EXPECT_EQ(test::read_bytes(directory / "n.partial/thesis.txt"), "precious");
}

}  // namespace
}  // namespace amxt::model
