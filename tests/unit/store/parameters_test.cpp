// The state of training behind its owners: what is written is read, sums go by panels, the optimizer acts on what it is told to.
#include "store/parameters.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "support/thread_group.h"

namespace amxt::store {
namespace {

model::ModelConfig small_config() {
  auto config = model::parse_config(R"({"model_type": "llama", "hidden_act": "silu",
      "architectures": ["LlamaForCausalLM"], "vocab_size": 75, "hidden_size": 48,
      "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 3,
      "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
      "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "attention_bias": false, "mlp_bias": false,
      "tie_word_embeddings": false})",
                                    "config.json");
  EXPECT_TRUE(config.ok()) << config.error().message();
  return std::move(*config);
}

// The smallest whose bf16 weights are in the blocked order; tied, so that the vocabulary's short panel is too.
model::ModelConfig even_config() {
  auto config = small_config();
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.heads = 2;
  config.head_dim = 32;
  config.tie_word_embeddings = true;
  return config;
}

template <typename E>
std::vector<Layout> layouts(int world) {
  std::vector<Layout> all{Layout(small_config(), world)};
  if (sizeof(E) == 2) all.emplace_back(even_config(), world, Layout::Order::kBlocked);
  return all;
}

// body(parameters, pool, rank) on a thread for each of `world` ranks, for each order of weights.
template <typename E>
void with_parameters(const Layout& layout, DType gradients,
                     const std::function<void(Parameters<E>&, ThreadPool&, int)>& body) {
  const int world = layout.owners();
  test::ThreadGroups groups(world);
  groups.run([&](comm::Group& group) {
    auto pool = ThreadPool::create({.threads = 2, .cpus = {}, .spin_us = 0});
    ASSERT_TRUE(pool.ok());
    typename Parameters<E>::Options options;
    options.gradient_dtype = gradients;
    auto parameters = Parameters<E>::create(&layout, &group, options, Deadline::never());
    ASSERT_TRUE(parameters.ok()) << parameters.error().message();
    body(**parameters, **pool, group.rank());
    ASSERT_TRUE(group.barrier(Deadline::never()).ok());
  });
}

template <typename E>
void with_parameters(int world, DType gradients,
                     const std::function<void(Parameters<E>&, ThreadPool&, int)>& body) {
  for (const Layout& layout : layouts<E>(world)) {
    SCOPED_TRACE(layout.order() == Layout::Order::kBlocked ? "blocked" : "row-major");
    with_parameters<E>(layout, gradients, body);
  }
}

int64_t columns_of(const Layout& layout, const OwnedRange& range) {
  return layout.specs()[static_cast<size_t>(range.tensor)].columns;
}

std::vector<float> random_values(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

template <typename E>
class ParametersOf : public testing::Test {};
using Elements = testing::Types<float, bf16>;
TYPED_TEST_SUITE(ParametersOf, Elements);

TYPED_TEST(ParametersOf, RowsThatAreWrittenAreReadBitForBitAndTheirNeighboursStay) {
  with_parameters<TypeParam>(3, DType::kF32, [](Parameters<TypeParam>& p, ThreadPool&, int rank) {
    for (const RowKind kind : {RowKind::kMaster, RowKind::kFirstMoment, RowKind::kSecondMoment}) {
      for (const OwnedRange& range : p.layout().ranges(rank, -1)) {
        const int64_t columns = columns_of(p.layout(), range);
        const std::vector<float> all = random_values(range.rows() * columns, 1);
        p.write_rows(kind, range, range.row_begin, range.rows(), all.data());
        const int64_t half = range.rows() / 2;
        const std::vector<float> below = random_values((range.rows() - half) * columns, 2);
        p.write_rows(kind, range, range.row_begin + half, range.rows() - half, below.data());
        std::vector<float> read(all.size());
        p.read_rows(kind, range, range.row_begin, range.rows(), read.data());
        for (int64_t i = 0; i < range.rows() * columns; ++i) {
          const float expected = i < half * columns
                                     ? all[static_cast<size_t>(i)]
                                     : below[static_cast<size_t>(i - half * columns)];
          ASSERT_EQ(read[static_cast<size_t>(i)], expected) << "element " << i;
        }
      }
    }
  });
}

// The compute weight is the upper half of the master weight, rounded to nearest.
TEST(Parameters, AComputeWeightIsItsMasterRounded) {
  with_parameters<bf16>(2, DType::kF32, [](Parameters<bf16>& p, ThreadPool&, int rank) {
    for (const OwnedRange& range : p.layout().ranges(rank, -1)) {
      const std::vector<float> masters =
          random_values(range.rows() * columns_of(p.layout(), range), 3);
      p.write_rows(RowKind::kMaster, range, range.row_begin, range.rows(), masters.data());
      std::vector<float> compute(masters.size());
      p.read_rows(RowKind::kCompute, range, range.row_begin, range.rows(), compute.data());
      for (size_t i = 0; i < masters.size(); ++i) {
        // A tie goes either way.
        ASSERT_LE(std::fabs(compute[i] - masters[i]),
                  std::fabs(to_float(to_bf16(masters[i])) - masters[i]));
      }
    }
  });
}

template <typename E>
void expect_squares_by_panel(const Layout& layout, DType gradients) {
  std::vector<double> sums(static_cast<size_t>(layout.panels()), -1), expected(sums);
  with_parameters<E>(layout, gradients, [&](Parameters<E>& p, ThreadPool& pool, int rank) {
    for (const OwnedRange& range : p.layout().ranges(rank, -1)) {
      const int64_t columns = columns_of(p.layout(), range);
      const std::vector<float> values = random_values(range.rows() * columns, 4);
      for (int64_t row = range.row_begin; row < range.row_end; ++row) {
        const float* from = values.data() + (row - range.row_begin) * columns;
        p.write_gradient(range, row, from);
        const auto panel = static_cast<size_t>(layout.panel(range.tensor, row));
        if (row % kPanelRows == 0) expected[panel] = 0;
        for (int64_t i = 0; i < columns; ++i) {
          const float kept = p.gradients_are_bf16() ? to_float(to_bf16(from[i])) : from[i];
          expected[panel] += std::pow(static_cast<double>(kept), 2);
        }
      }
      std::vector<float> read(static_cast<size_t>(columns));
      p.read_gradient(range, range.row_end - 1, read.data());
      for (int64_t i = 0; i < columns; ++i) {
        const float given = values[values.size() - static_cast<size_t>(columns - i)];
        ASSERT_EQ(read[static_cast<size_t>(i)],
                  p.gradients_are_bf16() ? to_float(to_bf16(given)) : given);
      }
    }
    EXPECT_EQ(p.gradient_squares(pool, (*cpu_isa())->chosen, sums.data()), -1);
  });
  for (size_t panel = 0; panel < sums.size(); ++panel)
    EXPECT_NEAR(sums[panel], expected[panel], 1e-9 * expected[panel]) << "panel " << panel;
}

TEST(Parameters, SquaresOfGradientsAreSummedByPanel) {
  for (const Layout& layout : layouts<float>(3))
    expect_squares_by_panel<float>(layout, DType::kF32);
  for (const Layout& layout : layouts<bf16>(3)) {
    expect_squares_by_panel<bf16>(layout, DType::kF32);
    expect_squares_by_panel<bf16>(layout, DType::kBF16);
  }
}

TEST(Parameters, TheFirstTensorWhoseGradientIsNotFiniteIsNamed) {
  with_parameters<float>(1, DType::kF32, [](Parameters<float>& p, ThreadPool& pool, int) {
    std::vector<double> sums(static_cast<size_t>(p.layout().panels()));
    const auto find = [&] { return p.gradient_squares(pool, (*cpu_isa())->chosen, sums.data()); };
    const auto ranges = p.layout().ranges(0, -1);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      EXPECT_EQ(find(), -1);
      for (const size_t at : {ranges.size() - 1, ranges.size() / 2, size_t{0}}) {
        const OwnedRange& range = ranges[at];
        p.gradient_float(range)[range.rows() * columns_of(p.layout(), range) - 1] = bad;
        EXPECT_EQ(find(), range.tensor);
      }
      for (const OwnedRange& range : ranges)
        p.gradient_float(range)[range.rows() * columns_of(p.layout(), range) - 1] = 0;
    }
  });
}

// Without gradient and moments an update is the decay alone.
TYPED_TEST(ParametersOf, WeightDecayActsOnVectorsOnlyWhenAsked) {
  for (const Decay decay : {Decay::kAll, Decay::kMatrices}) {
    with_parameters<TypeParam>(
        2, DType::kF32, [&](Parameters<TypeParam>& p, ThreadPool& pool, int rank) {
          for (const OwnedRange& range : p.layout().ranges(rank, -1)) {
            const std::vector<float> ones(
                static_cast<size_t>(range.rows() * columns_of(p.layout(), range)), 1.0f);
            p.write_rows(RowKind::kMaster, range, range.row_begin, range.rows(), ones.data());
          }
          kernels::AdamwStep step;
          step.learning_rate = 0.5;
          step.weight_decay = 0.5;
          step.beta1 = step.beta2 = 0.5;
          step.epsilon = 1;
          step.bias_correction1 = step.bias_correction2 = 0.5;
          p.update(pool, (*cpu_isa())->chosen, step, decay);
          for (const OwnedRange& range : p.layout().ranges(rank, -1)) {
            const model::TensorSpec& spec = p.layout().specs()[static_cast<size_t>(range.tensor)];
            std::vector<float> read(static_cast<size_t>(range.rows() * spec.columns));
            p.read_rows(RowKind::kMaster, range, range.row_begin, range.rows(), read.data());
            const bool decays = decay == Decay::kAll || !spec.vector;
            EXPECT_EQ(read, std::vector<float>(read.size(), decays ? 0.75f : 1.0f)) << spec.name;
          }
        });
  }
}

TEST(Parameters, ForForwardOnlyTakeNoMemoryOfTheirOwn) {
  const Layout layout(small_config(), 1);
  test::ThreadGroups groups(1);
  groups.run([&](comm::Group& group) {
    Parameters<bf16>::Options options;
    options.optimizer = false;
    const auto parameters = Parameters<bf16>::create(&layout, &group, options, Deadline::never());
    ASSERT_TRUE(parameters.ok());
    EXPECT_EQ((*parameters)->private_bytes(), 0);
    EXPECT_GT((*parameters)->shared_bytes(), 0);
  });
}

}  // namespace
}  // namespace amxt::store
