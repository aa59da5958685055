#include "train/host_batch.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

namespace amxt::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kNone = io::kNoTarget;

Batch made(const HostBatch& host) {
  Result<Batch> batch = make_batch(host);
  EXPECT_TRUE(batch.ok()) << batch.error().message();
  return std::move(batch).value();
}

std::string refusal(const HostBatch& host) {
  const Result<Batch> batch = make_batch(host);
  EXPECT_FALSE(batch.ok());
  if (batch) return "";
  EXPECT_EQ(batch.error().code(), Code::kInvalidArgument);
  return batch.error().message();
}

TEST(HostBatch, TokensAloneAreTheirOwnLabels) {
  const int32_t tokens[] = {5, 6, 7, 8, 9, 10};
  const Batch batch = made({.samples = 2, .sequence = 3, .tokens = tokens});
  EXPECT_THAT(batch.token, ElementsAre(5, 6, 7, 8, 9, 10));
  EXPECT_THAT(batch.target, ElementsAre(6, 7, kNone, 9, 10, kNone));
  EXPECT_THAT(batch.weight, ElementsAre(1, 1, 0, 1, 1, 0));
  EXPECT_THAT(batch.position, ElementsAre(0, 1, 2, 0, 1, 2));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 0, 0, 0, 0));
  EXPECT_EQ(batch.tokens, 6);
}

TEST(HostBatch, LabelsAndWeightsMoveToThePositionBefore) {
  const int32_t tokens[] = {1, 2, 3, 4};
  const int32_t labels[] = {-100, -100, 30, 40};
  const float weights[] = {9, 9, 0.5f, 2};
  const Batch batch =
      made({.samples = 1, .sequence = 4, .tokens = tokens, .labels = labels, .weights = weights});
  EXPECT_THAT(batch.target, ElementsAre(kNone, 30, 40, kNone));
  EXPECT_THAT(batch.weight, ElementsAre(0, 0.5f, 2, 0));
}

TEST(HostBatch, ALabelOfWeightZeroStaysATarget) {
  const int32_t tokens[] = {1, 2, 3};
  const float weights[] = {1, 0, 1};
  const Batch batch = made({.samples = 1, .sequence = 3, .tokens = tokens, .weights = weights});
  EXPECT_THAT(batch.target, ElementsAre(2, 3, kNone));
  EXPECT_THAT(batch.weight, ElementsAre(0, 1, 0));
}

TEST(HostBatch, NothingIsPredictedAcrossDocuments) {
  const int32_t tokens[] = {1, 2, 3, 4, 5};
  const uint8_t starts[] = {0, 0, 1, 0, 1};
  const Batch batch =
      made({.samples = 1, .sequence = 5, .tokens = tokens, .document_starts = starts});
  EXPECT_THAT(batch.target, ElementsAre(2, kNone, 4, kNone, kNone));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 2, 2, 4));
  EXPECT_THAT(batch.position, ElementsAre(0, 1, 0, 1, 0));
}

TEST(HostBatch, PositionsBeyondTheLengthArePads) {
  const int32_t tokens[] = {1, 2, 77, 78, 3, 79, 80, 81};
  const int32_t lengths[] = {2, 0};
  const Batch batch = made({.samples = 2, .sequence = 4, .tokens = tokens, .lengths = lengths});
  EXPECT_THAT(batch.token, ElementsAre(1, 2, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(batch.target, ElementsAre(2, kNone, kNone, kNone, kNone, kNone, kNone, kNone));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 2, 3, 0, 1, 2, 3));
  EXPECT_EQ(batch.tokens, 2);
}

TEST(HostBatch, BadInputIsNamed) {
  const int32_t tokens[] = {1, 2};
  EXPECT_THAT(refusal({.samples = 1, .sequence = 2}), HasSubstr("tokens is NULL"));
  EXPECT_THAT(refusal({.samples = 0, .sequence = 2, .tokens = tokens}), HasSubstr("0 samples"));
  EXPECT_THAT(refusal({.samples = 1, .sequence = -1, .tokens = tokens}), HasSubstr("-1 positions"));
  EXPECT_THAT(refusal({.samples = INT64_MAX, .sequence = 2, .tokens = tokens}),
              HasSubstr("more than fit"));
  const int32_t labels[] = {1, -5};
  EXPECT_THAT(refusal({.samples = 1, .sequence = 2, .tokens = tokens, .labels = labels}),
              HasSubstr("sample 0, position 1: label -5"));
  for (const float bad : {-1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    const float weights[] = {1, bad};
    EXPECT_THAT(refusal({.samples = 1, .sequence = 2, .tokens = tokens, .weights = weights}),
                HasSubstr("sample 0, position 1: weight"));
  }
  for (const int32_t bad : {-1, 3}) {
    EXPECT_THAT(refusal({.samples = 1, .sequence = 2, .tokens = tokens, .lengths = &bad}),
                HasSubstr("sample 0: length"));
  }
}

TEST(HostBatch, LogProbabilitiesGoBackToTheirLabels) {
  const int32_t tokens[] = {1, 2, 3, 4, 5, 6};
  const int32_t labels[] = {1, 2, -100, 4, 5, 6};
  const Batch batch = made({.samples = 2, .sequence = 3, .tokens = tokens, .labels = labels});
  const std::vector<float> predicted = {-1, -2, -3, -4, -5, -6};
  std::vector<float> out(6, 99);
  to_label_positions(batch, predicted, out);
  EXPECT_THAT(out, ElementsAre(0, -1, 0, 0, -4, -5));
}

}  // namespace
}  // namespace amxt::train
