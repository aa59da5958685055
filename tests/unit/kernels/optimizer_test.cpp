#include "kernels/optimizer.h"

#include "kernel_data.h"
#include "kernels/optimizer_ref.h"

namespace amxt::kernels {
namespace {

// Values of every exponent and sign: ends and middle of each, and both sides of each half of the low 16 bits.
std::vector<float> every_exponent() {
  std::vector<float> values;
  for (uint32_t top = 0; top < 512; ++top) {  // sign and exponent
    for (const uint32_t fraction :
         {0x000000u, 0x000001u, 0x007FFFu, 0x008000u, 0x008001u, 0x00FFFFu, 0x010000u, 0x3F8000u,
          0x7F7FFFu, 0x7F8000u, 0x7FFFFFu}) {
      values.push_back(std::bit_cast<float>((top << 23) | fraction));
    }
  }
  return values;
}

TEST(SplitMaster, RoundTripIsExactForEveryExponent) {
  for (const float value : every_exponent()) {
    bf16 high;
    uint16_t low;
    split_master(value, &high, &low);
    const float back = join_master(high, low);
    if (std::isnan(value)) {
      EXPECT_EQ(high.bits, 0x7FC0);
      EXPECT_EQ(low, 0);
      EXPECT_TRUE(std::isnan(back));
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(back), std::bit_cast<uint32_t>(value))
          << std::hexfloat << value;
    }
  }
}

TEST(SplitMaster, HighHalfIsTheNearestBf16) {
  for (const float value : every_exponent()) {
    if (!std::isfinite(value)) continue;
    bf16 high;
    uint16_t low;
    split_master(value, &high, &low);
    const float half = to_float(high);
    if (std::isinf(half)) {
      EXPECT_GE(std::fabs(value), 0x1.FFp127f);
    } else if (low == 0x8000) {  // a tie goes away from zero
      EXPECT_GT(std::fabs(half), std::fabs(value));
    } else {
      EXPECT_EQ(half, to_float(to_bf16(value))) << std::hexfloat << value;
    }
  }
}

template <typename G>
struct State {
  State(Random& random, int64_t count)
      : weight(static_cast<size_t>(count)),
        low(static_cast<size_t>(count)),
        whole(random.normals<float>(count)),
        m(random.normals<float>(count, 0.1f)),
        v(random.normals<float>(count, 0.1f)),
        gradient(random.normals<G>(count, 0.3f)) {
    for (float& value : v) value *= value;
    divide();
  }
  void divide() {
    for (size_t i = 0; i < whole.size(); ++i) split_master(whole[i], &weight[i], &low[i]);
  }
  int64_t count() const { return static_cast<int64_t>(whole.size()); }
  void split_step(Isa isa, const AdamwStep& step) {
    adamw_split(isa, count(), weight.data(), low.data(), m.data(), v.data(), gradient.data(), step);
  }
  void split_step_ref(const AdamwStep& step) {
    adamw_split_ref(count(), weight.data(), low.data(), m.data(), v.data(), gradient.data(), step);
  }
  void float_step(Isa isa, const AdamwStep& step) {
    adamw_float(isa, count(), whole.data(), m.data(), v.data(), gradient.data(), step);
  }
  void float_step_ref(const AdamwStep& step) {
    adamw_float_ref(count(), whole.data(), m.data(), v.data(), gradient.data(), step);
  }

  std::vector<bf16> weight;
  std::vector<uint16_t> low;
  std::vector<float> whole, m, v;
  std::vector<G> gradient;
};

template <typename G>
void expect_same(const State<G>& a, const State<G>& b) {
  EXPECT_TRUE(same_bits(a.weight, b.weight)) << "weight";
  EXPECT_TRUE(same_bits(a.low, b.low)) << "low bits";
  EXPECT_TRUE(same_bits(a.whole, b.whole)) << "fp32 weight";
  EXPECT_TRUE(same_bits(a.m, b.m)) << "first moment";
  EXPECT_TRUE(same_bits(a.v, b.v)) << "second moment";
}

AdamwStep random_step(Random& random) {
  const auto number = static_cast<double>(random.between(1, 2000));
  AdamwStep step;
  step.learning_rate = std::pow(10.0, -static_cast<double>(random.between(1, 6)));
  step.weight_decay = static_cast<double>(random.between(0, 20)) * 0.01;
  step.gradient_scale = random.between(0, 1) ? 1.0f : 0.37f;
  step.bias_correction1 = 1 - std::pow(step.beta1, number);
  step.bias_correction2 = 1 - std::pow(step.beta2, number);
  return step;
}

template <typename G>
class OptimizerTest : public ::testing::Test {};
using Gradients = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(OptimizerTest, Gradients);

TYPED_TEST(OptimizerTest, AdamwHasTheBitsOfTheReference) {
  for (const int64_t count : odd_sizes()) {
    for (const Isa isa : isas()) {
      Random random(fresh_seed());
      SCOPED_TRACE(random.name() + ", count " + std::to_string(count) + ", " + isa_name(isa));
      State<TypeParam> state(random, count);
      State<TypeParam> expected = state;
      for (int i = 0; i < 3; ++i) {
        const AdamwStep step = random_step(random);
        state.split_step(isa, step);
        expected.split_step_ref(step);
        expect_same(state, expected);
        state.float_step(isa, step);
        expected.float_step_ref(step);
        expect_same(state, expected);
      }
    }
  }
}

TYPED_TEST(OptimizerTest, FirstMomentStartsFromTheNearerEnd) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  AdamwStep step = random_step(random);
  for (const double beta1 : {0.0, 0.3, 0.5, 0.99}) {
    step.beta1 = beta1;
    for (const Isa isa : isas()) {
      State<TypeParam> state(random, 33);
      State<TypeParam> expected = state;
      state.split_step(isa, step);
      expected.split_step_ref(step);
      expect_same(state, expected);
      if (beta1 == 0) {
        EXPECT_EQ(state.m[7], to_float(state.gradient[7]) * step.gradient_scale);
      }
    }
  }
}

TYPED_TEST(OptimizerTest, AnElementsBitsDoNotDependOnItsPlace) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const AdamwStep step = random_step(random);
  for (const Isa isa : isas()) {
    State<TypeParam> whole(random, 131);
    State<TypeParam> parts = whole;
    whole.split_step(isa, step);
    for (int64_t begin = 0; begin < 131;) {
      const int64_t n = std::min<int64_t>(131 - begin, random.between(1, 40));
      adamw_split(isa, n, parts.weight.data() + begin, parts.low.data() + begin,
                  parts.m.data() + begin, parts.v.data() + begin, parts.gradient.data() + begin,
                  step);
      begin += n;
    }
    expect_same(whole, parts);
  }
}

// Three steps of torch.optim.AdamW(lr=1e-2, weight_decay=0.1) in fp32, in its own words: p, m, v after each.
TEST(OptimizerReference, IsTorchToTheBit) {
  const std::vector<std::vector<float>> gradients = {
      {-0x1.8749660000000p-2f, -0x1.2ab9920000000p+0f, 0x1.32a3060000000p-1f,
       -0x1.2738a60000000p+0f},
      {-0x1.ccad5e0000000p-4f, -0x1.0196ce0000000p-5f, 0x1.b4d0b40000000p-7f,
       0x1.f03a460000000p-5f},
      {0x1.97242a0000000p-7f, -0x1.b4ddd20000000p-7f, 0x1.40821a0000000p-7f,
       -0x1.f428580000000p-12f}};
  const std::vector<std::vector<float>> weights = {
      {-0x1.9e5e760000000p-1f, 0x1.9ef6100000000p-2f, -0x1.56438c0000000p-2f,
       -0x1.4e2c960000000p-4f},
      {-0x1.99965e0000000p-1f, 0x1.a59c4a0000000p-2f, -0x1.5cf3720000000p-2f,
       -0x1.3408260000000p-4f},
      {-0x1.95e7d60000000p-1f, 0x1.aab95a0000000p-2f, -0x1.6224540000000p-2f,
       -0x1.1fc3620000000p-4f}};
  const std::vector<std::vector<float>> first_moments = {
      {-0x1.3907860000000p-5f, -0x1.ddf5b60000000p-4f, 0x1.ea9e700000000p-5f,
       -0x1.d85aa40000000p-4f},
      {-0x1.75dca60000000p-5f, -0x1.bb0b140000000p-4f, 0x1.c47a360000000p-5f,
       -0x1.904eaa0000000p-4f},
      {-0x1.464c140000000p-5f, -0x1.9433240000000p-4f, 0x1.9f3e0a0000000p-5f,
       -0x1.6878d00000000p-4f}};
  const std::vector<std::vector<float>> second_moments = {
      {0x1.3235ea0000000p-13f, 0x1.64f23c0000000p-10f, 0x1.781ac20000000p-12f,
       0x1.5c9f580000000p-10f},
      {0x1.4c6eac0000000p-13f, 0x1.64d9360000000p-10f, 0x1.77ea2e0000000p-12f,
       0x1.5d3c560000000p-10f},
      {0x1.4c6c740000000p-13f, 0x1.6489ca0000000p-10f, 0x1.77a3a00000000p-12f,
       0x1.5ce2f20000000p-10f}};
  std::vector<float> weight = {-0x1.a3e8ac0000000p-1f, 0x1.9520560000000p-2f,
                               -0x1.4c5b320000000p-2f, -0x1.77827a0000000p-4f},
                     m(4, 0), v(4, 0);
  std::vector<bf16> high(4);
  std::vector<uint16_t> low(4);
  for (size_t i = 0; i < 4; ++i) split_master(weight[i], &high[i], &low[i]);
  auto split_m = m, split_v = v;
  AdamwStep step;
  step.learning_rate = 1e-2;
  step.weight_decay = 0.1;
  for (size_t s = 0; s < 3; ++s) {
    step.bias_correction1 = 1 - std::pow(0.9, static_cast<double>(s + 1));
    step.bias_correction2 = 1 - std::pow(0.999, static_cast<double>(s + 1));
    adamw_float_ref(4, weight.data(), m.data(), v.data(), gradients[s].data(), step);
    adamw_split_ref(4, high.data(), low.data(), split_m.data(), split_v.data(), gradients[s].data(),
                    step);
    EXPECT_TRUE(same_bits(weight, weights[s])) << "step " << s;
    EXPECT_TRUE(same_bits(m, first_moments[s])) << "step " << s;
    EXPECT_TRUE(same_bits(v, second_moments[s])) << "step " << s;
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(join_master(high[i], low[i]), weights[s][i]);
  }
}

TYPED_TEST(OptimizerTest, ExtremeValuesPassThroughAsIeeeSays) {
  using G = TypeParam;
  const std::vector<float> extremes = {0,  -0.0f, kTiniest, -kTiniest, 1e-30f, 1,
                                       -1, kHuge, -kHuge,   kInf,      -kInf,  kNaN};
  AdamwStep step;
  step.learning_rate = 0.01;
  step.weight_decay = 0.1;
  step.bias_correction1 = 0.1;
  step.bias_correction2 = 0.001;
  for (const Isa isa : isas()) {
    Random random(1);
    State<G> state(random, static_cast<int64_t>(extremes.size() * extremes.size()));
    for (size_t i = 0; i < state.whole.size(); ++i) {
      state.whole[i] = extremes[i / extremes.size()];
      state.gradient[i] = from_float<G>(extremes[i % extremes.size()]);
      state.m[i] = 0;
      state.v[i] = 0;
    }
    state.divide();
    State<G> expected = state;
    state.split_step(isa, step);
    expected.split_step_ref(step);
    EXPECT_TRUE(same_bits(state.weight, expected.weight)) << isa_name(isa);
    EXPECT_TRUE(same_bits(state.low, expected.low)) << isa_name(isa);
    expect_near(state.m, expected.m, 0, 0, "first moment");
    expect_near(state.v, expected.v, 0, 0, "second moment");
    state.float_step(isa, step);
    expected.float_step_ref(step);
    expect_near(state.whole, expected.whole, 0, 0, "fp32 weight");
    // A NaN gradient makes its own weight NaN, in the one form that a NaN is stored in, and no other.
    for (size_t i = 0; i < extremes.size(); ++i) {
      const bool nan = !std::isfinite(to_float(from_float<G>(extremes[i])));
      EXPECT_EQ(state.weight[6 * extremes.size() + i].bits == 0x7FC0, nan) << extremes[i];
    }
  }
}

TYPED_TEST(OptimizerTest, SumOfSquaresIsTheReference) {
  for (const int64_t count : odd_sizes()) {
    double first = 0;
    const uint64_t seed = fresh_seed();
    for (const Isa isa : isas()) {
      Random random(seed);
      SCOPED_TRACE(random.name() + ", count " + std::to_string(count));
      const auto values = random.normals<TypeParam>(count, 1e3f);
      bool finite = true;
      const double sum = sum_of_squares(isa, count, values.data(), &finite);
      EXPECT_TRUE(finite);
      EXPECT_NEAR(sum, sum_of_squares_ref(count, values.data(), &finite), 1e-12 * sum);
      EXPECT_EQ(sum, sum_of_squares(isa, count, values.data(), &finite)) << "not repeatable";
      if (isa == Isa::kAvx2) first = sum;
      EXPECT_EQ(sum, first) << "differs from avx2";
    }
  }
}

TYPED_TEST(OptimizerTest, SumOfSquaresFindsTheOneNonFiniteElement) {
  for (const Isa isa : isas()) {
    for (const float bad : {kNaN, -kNaN, kInf, -kInf}) {
      for (size_t at = 0; at < 75; ++at) {
        std::vector<TypeParam> values(75, from_float<TypeParam>(1));
        values[at] = from_float<TypeParam>(bad);
        bool finite = true;
        sum_of_squares(isa, 75, values.data(), &finite);
        EXPECT_FALSE(finite) << bad << " at " << at << ", " << isa_name(isa);
      }
    }
    const std::vector<TypeParam> good(75, from_float<TypeParam>(0x1.FEp127f));
    bool finite = true;
    const double sum = sum_of_squares(isa, 75, good.data(), &finite);
    EXPECT_TRUE(finite) << "large squares fit double";
    EXPECT_NEAR(sum / (75 * 0x1.FEp127 * 0x1.FEp127), 1, 1e-12);
    finite = false;
    sum_of_squares(isa, 75, good.data(), &finite);
    EXPECT_FALSE(finite) << "an earlier finding must stay";
    finite = true;
    EXPECT_EQ(sum_of_squares<TypeParam>(isa, 0, nullptr, &finite), 0);
    EXPECT_TRUE(finite);
  }
}

}  // namespace
}  // namespace amxt::kernels
