#include "checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checksum.h"
#include "small_state.h"

namespace amxt::checkpoint {
namespace {

using testing::HasSubstr;

Manifest some_manifest(int world = 2) {
  Manifest manifest = plan_manifest(some_training(12), small_model_config(),
                                    store::Layout(small_model_config(), world));
  for (ManifestFile& file : manifest.files) {
    file.bytes = 1000;
    file.checksum = std::string(32, 'a');
  }
  return manifest;
}

// The text with a part of it replaced, and its checksum made right again: what a writer with a fault would have written.
std::string rewritten(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  const std::string line = "\n \"checksum\": \"";
  const size_t end = text.rfind(line);
  return text.substr(0, end) + line + checksum128(std::string_view(text).substr(0, end + 1)) +
         "\"\n}\n";
}

void expect_refused(const std::string& text, Code code, const std::string& message) {
  const auto manifest = parse_manifest(text, "out/manifest.json");
  ASSERT_FALSE(manifest.ok()) << message;
  EXPECT_EQ(manifest.error().code(), code) << manifest.error().message();
  EXPECT_THAT(manifest.error().message(), testing::StartsWith("'out/manifest.json': "));
  EXPECT_THAT(manifest.error().message(), HasSubstr(message));
}

TEST(Manifest, text_and_manifest_are_one) {
  const Manifest manifest = some_manifest(3);
  const std::string text = manifest_text(manifest);
  const auto parsed = parse_manifest(text, "manifest.json");
  ASSERT_GOOD(parsed);
  EXPECT_EQ(manifest_text(*parsed), text);
  EXPECT_EQ(parsed->config_text, small_model_config().text);
  EXPECT_EQ(parsed->parameters, model::parameter_count(small_model_config()));
  EXPECT_EQ(parsed->tensors.size(), manifest.tensors.size());
}

TEST(Manifest, another_version_is_refused_by_its_number) {
  expect_refused(rewritten(manifest_text(some_manifest()), "\"version\": 1", "\"version\": 2"),
                 Code::kUnsupported, "format version 2, this library reads version 1");
  // What a later version looks like is not known here: nothing else is judged.
  expect_refused(R"({"format": "amxtrain-checkpoint", "version": 3, "all": "different"})",
                 Code::kUnsupported, "format version 3");
}

TEST(Manifest, something_else_is_refused) {
  expect_refused("{}", Code::kFormat, "not the manifest of a checkpoint");
  expect_refused("[1]", Code::kFormat, "not the manifest of a checkpoint");
  expect_refused(R"({"format": "other", "version": 1})", Code::kFormat,
                 "not the manifest of a checkpoint");
  expect_refused(R"({"format": "amxtrain-checkpoint", "version": "1"})", Code::kFormat,
                 "'version'");
  expect_refused("", Code::kFormat, "");
}

TEST(Manifest, a_changed_or_cut_text_is_corrupt) {
  const std::string text = manifest_text(some_manifest());
  std::string changed = text;
  changed[changed.find("\"step\": 12") + 8] = '2';
  expect_refused(changed, Code::kCorrupt, "checksum differs");
  for (const size_t length : {text.size() - 1, text.size() - 20, text.size() / 2, size_t{1}}) {
    const auto cut = parse_manifest(text.substr(0, length), "manifest.json");
    EXPECT_FALSE(cut.ok()) << length;
  }
  expect_refused(text + " ", Code::kFormat, "'checksum'");
}

TEST(Manifest, every_field_is_strict) {
  const std::string text = manifest_text(some_manifest());
  const struct {
    const char *from, *to, *message;
  } cases[] = {
      {"\"step\": 12", "\"step\": -1", "'step' is not a whole number from 0"},
      {"\"step\": 12", "\"step\": 1.5", "'step'"},
      {"\"step\": 12", "\"stop\": 12", "has no key 'step'"},
      {"\"step\": 12", "\"more\": 1,\n \"step\": 12", "18 keys, version 1 has 17"},
      {"\"compute_dtype\": \"bfloat16\"", "\"compute_dtype\": \"int8\"",
       "'compute_dtype' is 'int8'"},
      {"\"chunk_bytes\": 4194304", "\"chunk_bytes\": 0", "'chunk_bytes'"},
      {"\"world_size\": 2", "\"world_size\": 0", "'world_size'"},
      {"\"kind\": \"linear\"", "\"kind\": 3", "'schedule' 'kind' is not a string"},
      {"\"fixed_rate\": null", "\"fixed_rate\": \"a\"", "'fixed_rate'"},
      {"\"type\": \"adamw\"", "\"type\": \"sgd\"", "'optimizer' 'type' is 'sgd'"},
      {"\"mode\": \"pack\"", "\"mode\": \"heap\"", "'data' 'mode' is 'heap'"},
      {"\"fingerprint\": \"fedcba9876543210\"", "\"fingerprint\": \"FEDC\"",
       "'fingerprint' is not 16 hex digits"},
      {"\"path\": \"rank-00000-of-00002.safetensors\"", "\"path\": \"../../etc/passwd\"",
       "'../../etc/passwd', not a plain file name"},
      {"\"path\": \"rank-00000-of-00002.safetensors\"", "\"path\": \"..\"",
       "not a plain file name"},
      {"\"bytes\": 1000", "\"bytes\": -5", "'files'[0] 'bytes'"},
      {"\"hidden_size\": 80", "\"hidden_size\": 96", "'config_hash' is not that of 'model'"},
      {"\"rows\": 301", "\"rows\": 302", "has 301 of 302 rows"},
      {"\"rows\": 301", "\"rows\": 300", "of 300"},
      {"\"rows\": 301", "\"rows\": 4611686018427387000", "overflows"},
      {"\"vector\": true", "\"vector\": 1", "'vector' is not true or false"},
  };
  for (const auto& one : cases)
    expect_refused(rewritten(text, one.from, one.to),
                   one.from == std::string("\"hidden_size\": 80") ? Code::kCorrupt : Code::kFormat,
                   one.message);
}

TEST(Manifest, parts_that_overlap_or_leave_rows_out_are_refused) {
  Manifest manifest = some_manifest(1);
  manifest.tensors[0].parts = {{0, 0, 100}, {0, 90, 301}};
  expect_refused(manifest_text(manifest), Code::kFormat,
                 "'tensors'[0] 'parts' has rows 90 to 301 of 301 where row 100 is next");
  manifest.tensors[0].parts = {{0, 0, 100}, {0, 110, 301}};
  expect_refused(manifest_text(manifest), Code::kFormat, "where row 100 is next");
  manifest.tensors[0].parts = {{0, 0, 100}};
  expect_refused(manifest_text(manifest), Code::kFormat, "has 100 of 301 rows");
  manifest.tensors[0].parts = {{1, 0, 301}};
  expect_refused(manifest_text(manifest), Code::kFormat, "names file 1 of 1");
}

TEST(Manifest, names_of_steps_are_those_that_it_gives) {
  EXPECT_EQ(step_name(12), "step-000012");
  EXPECT_EQ(step_name(1234567), "step-1234567");
  for (const int64_t step : {int64_t{0}, int64_t{12}, int64_t{999999}, int64_t{1234567}})
    EXPECT_EQ(step_of_name(step_name(step)), step);
  for (const char* name : {"step-12", "step-0000012", "step-", "step-00001x", "step--00001",
                           "final", "latest", ".tmp-step-000001-ab", "step-000001-old"}) {
    EXPECT_FALSE(step_of_name(name).has_value()) << name;
  }
}

TEST(Manifest, the_hash_of_a_config_is_of_what_makes_the_graph) {
  const model::ModelConfig& config = small_model_config();
  model::ModelConfig other = config;
  other.text = "another text";
  other.max_position_embeddings *= 2;
  other.initializer_range = 0.5;
  EXPECT_EQ(config_hash(model_identity(config)), config_hash(model_identity(other)));
  other = config;
  other.rope.theta = 20000;
  EXPECT_NE(config_hash(model_identity(config)), config_hash(model_identity(other)));
  Manifest manifest = some_manifest();
  manifest.path = "out/step-000012";
  const Status status = check_same_model(manifest, other);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message(),
            "'out/step-000012': a checkpoint of another model: 'rope_theta' is 10000.0 there and "
            "20000.0 in the model");
}

}  // namespace
}  // namespace amxt::checkpoint
