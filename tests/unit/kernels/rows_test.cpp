#include "kernels/rows.h"

#include "kernel_data.h"
#include "kernels/rows_ref.h"

namespace amxt::kernels {
namespace {

template <typename E>
class RowsTest : public ::testing::Test {};
using Elements = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(RowsTest, Elements);

// body(isa, random, rows, dim) for odd sizes on every instruction set, each with the same operands; the bits that `body`
// returns must not depend on the instruction set.
template <typename Body>
void over_sizes_and_isas(Body body) {
  const uint64_t seed = fresh_seed();
  for (const int64_t dim : odd_sizes()) {
    const int64_t rows = 1 + dim % 6;
    decltype(body(Isa::kAvx2, std::declval<Random&>(), rows, dim)) first;
    for (const Isa isa : isas()) {
      Random random(seed + static_cast<uint64_t>(dim));
      SCOPED_TRACE(random.name() + " less dim " + std::to_string(dim) + ", " + isa_name(isa));
      auto result = body(isa, random, rows, dim);
      if (::testing::Test::HasFatalFailure()) return;
      if (isa == Isa::kAvx2) first = result;
      EXPECT_TRUE(same_bits(result, first)) << "differs from avx2";
    }
  }
}

template <typename E, typename... More>
std::vector<uint8_t> bytes_of(const std::vector<E>& values, const More&... more) {
  const auto* from = reinterpret_cast<const uint8_t*>(values.data());
  std::vector<uint8_t> bytes(from, from + values.size() * sizeof(E));
  if constexpr (sizeof...(More) > 0) {
    const std::vector<uint8_t> rest = bytes_of(more...);
    bytes.insert(bytes.end(), rest.begin(), rest.end());
  }
  return bytes;
}

TYPED_TEST(RowsTest, RmsNormForwardIsTheReference) {
  using E = TypeParam;
  over_sizes_and_isas([](Isa isa, Random& random, int64_t rows, int64_t dim) {
    const Rows<E> x(rows, dim, 3, random, 2);
    const auto weight = random.normals<E>(dim);
    Rows<E> y(rows, dim, 1), expected(rows, dim, 1);
    std::vector<float> inverse(static_cast<size_t>(rows)), expected_inverse(inverse);
    rms_norm_forward(isa, rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, y.begin(), y.ld,
                     inverse.data());
    rms_norm_forward_ref(rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, expected.begin(),
                         expected.ld, expected_inverse.data());
    expect_near(y, expected, kRounding<E>, 0, "y");
    expect_near(inverse, expected_inverse, 2e-6f, 0, "inverse_rms");

    Rows<E> without(rows, dim, 1);
    rms_norm_forward(isa, rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, without.begin(),
                     without.ld, nullptr);
    EXPECT_TRUE(same_bits(without.data, y.data)) << "inverse_rms null changes y";
    return bytes_of(y.data, inverse);
  });
}

TYPED_TEST(RowsTest, RmsNormBackwardIsTheReference) {
  using E = TypeParam;
  over_sizes_and_isas([](Isa isa, Random& random, int64_t rows, int64_t dim) {
    const Rows<E> x(rows, dim, 3, random, 2), dy(rows, dim, 0, random);
    const Rows<E> residual(rows, dim, 5, random);
    const auto weight = random.normals<E>(dim);
    const auto dweight_before = random.normals<float>(dim);
    Rows<E> expected(rows, dim, 2), dx(rows, dim, 2);
    auto dweight = dweight_before, expected_dweight = dweight_before;
    rms_norm_backward_ref(rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, nullptr, dy.begin(),
                          dy.ld, residual.begin(), residual.ld, expected.begin(), expected.ld,
                          expected_dweight.data());
    rms_norm_backward<E>(isa, rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, nullptr, dy.begin(),
                         dy.ld, residual.begin(), residual.ld, dx.begin(), dx.ld, dweight.data());
    expect_near(dx, expected, kRounding<E>, 1e-5f, "dx");
    expect_near(dweight, expected_dweight, 1e-5f, 1e-5f, "dweight");

    // Kept inverse_rms and the residual in place of dx: the same bits.
    std::vector<float> inverse(static_cast<size_t>(rows));
    Rows<E> y(rows, dim, 0);
    rms_norm_forward(isa, rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, y.begin(), y.ld,
                     inverse.data());
    Rows<E> in_place = residual;
    auto dweight_again = dweight_before;
    rms_norm_backward<E>(isa, rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, inverse.data(),
                         dy.begin(), dy.ld, in_place.begin(), in_place.ld, in_place.begin(),
                         in_place.ld, dweight_again.data());
    EXPECT_TRUE(same_bits(dweight_again, dweight));
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_EQ(
          0, std::memcmp(&in_place.at(r, 0), &dx.at(r, 0), static_cast<size_t>(dim) * sizeof(E)));
    }

    // Without a residual: what remains after taking it away.
    Rows<E> alone(rows, dim, 0), alone_expected(rows, dim, 0);
    std::vector<float> unused(static_cast<size_t>(dim));
    rms_norm_backward<E>(isa, rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, nullptr, dy.begin(),
                         dy.ld, nullptr, 0, alone.begin(), alone.ld, unused.data());
    rms_norm_backward_ref<E>(rows, dim, x.begin(), x.ld, weight.data(), 1e-5f, nullptr, dy.begin(),
                             dy.ld, nullptr, 0, alone_expected.begin(), alone_expected.ld,
                             unused.data());
    expect_near(alone, alone_expected, kRounding<E>, 1e-5f, "dx without residual");
    return bytes_of(dx.data, dweight, alone.data);
  });
}

TEST(RowsReference, RmsNormBackwardIsTheSlopeOfTheForward) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const int64_t dim = 13;
  auto x = random.normals<float>(dim), weight = random.normals<float>(dim);
  const auto dy = random.normals<float>(dim);
  std::vector<float> dx(x.size()), dweight(x.size(), 0), y(x.size());
  rms_norm_backward_ref<float>(1, dim, x.data(), dim, weight.data(), 1e-5f, nullptr, dy.data(), dim,
                               nullptr, 0, dx.data(), dim, dweight.data());
  const auto loss = [&] {
    rms_norm_forward_ref(1, dim, x.data(), dim, weight.data(), 1e-5f, y.data(), dim,
                         static_cast<float*>(nullptr));
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += double(y[i]) * double(dy[i]);
    return sum;
  };
  const auto slope = [&](float* at) {
    const float before = *at, step = 0x1p-7f;
    *at = before + step;
    const double high = loss();
    *at = before - step;
    const double low = loss();
    *at = before;
    return (high - low) / (2 * double(step));
  };
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(slope(&x[i]), double(dx[i]), 2e-3 * (1 + std::fabs(double(dx[i])))) << "dx " << i;
    EXPECT_NEAR(slope(&weight[i]), double(dweight[i]), 1e-3 * (1 + std::fabs(double(dweight[i]))))
        << "dweight " << i;
  }
}

TYPED_TEST(RowsTest, RopeIsTheReferenceAndItsInverseUndoesIt) {
  using E = TypeParam;
  over_sizes_and_isas([](Isa isa, Random& random, int64_t rows, int64_t half) {
    const int64_t heads = 1 + rows % 3, positions = 9;
    std::vector<float> cosine, sine;
    for (int64_t i = 0; i < positions * half; ++i) {
      const float angle = random.normal(3);
      cosine.push_back(std::cos(angle));
      sine.push_back(std::sin(angle));
    }
    std::vector<int32_t> position;
    for (int64_t r = 0; r < rows; ++r) {
      position.push_back(static_cast<int32_t>(random.between(0, positions - 1)));
    }
    const Rows<E> before(rows, heads * 2 * half, 7, random);
    Rows<E> x = before, expected = before;
    rope(isa, rows, heads, 2 * half, x.begin(), x.ld, position.data(), cosine.data(), sine.data(),
         false);
    rope_ref(rows, heads, 2 * half, expected.begin(), expected.ld, position.data(), cosine.data(),
             sine.data(), false);
    expect_near(x, expected, kRounding<E>, 1e-6f, "rotated");
    Rows<E> back = x;
    rope(isa, rows, heads, 2 * half, back.begin(), back.ld, position.data(), cosine.data(),
         sine.data(), true);
    expect_near(back, before, 4 * kRounding<E>, 4 * kRounding<E>, "rotated back");
    return bytes_of(x.data, back.data);
  });
}

TYPED_TEST(RowsTest, SwigluIsTheReference) {
  using E = TypeParam;
  over_sizes_and_isas([](Isa isa, Random& random, int64_t rows, int64_t dim) {
    const Rows<E> gate(rows, dim, 1, random, 4), up(rows, dim, 2, random), dy(rows, dim, 0, random);
    Rows<E> y(rows, dim, 3), expected(rows, dim, 3);
    swiglu_forward(isa, rows, dim, gate.begin(), gate.ld, up.begin(), up.ld, y.begin(), y.ld);
    swiglu_forward_ref(rows, dim, gate.begin(), gate.ld, up.begin(), up.ld, expected.begin(),
                       expected.ld);
    expect_near(y, expected, kRounding<E>, 1e-6f, "y");

    Rows<E> dgate(rows, dim, 1), dup(rows, dim, 2), again(rows, dim, 3);
    Rows<E> dgate_expected(rows, dim, 1), dup_expected(rows, dim, 2), ignored(rows, dim, 3);
    swiglu_backward(isa, rows, dim, gate.begin(), gate.ld, up.begin(), up.ld, dy.begin(), dy.ld,
                    dgate.begin(), dgate.ld, dup.begin(), dup.ld, again.begin(), again.ld);
    swiglu_backward_ref(rows, dim, gate.begin(), gate.ld, up.begin(), up.ld, dy.begin(), dy.ld,
                        dgate_expected.begin(), dgate_expected.ld, dup_expected.begin(),
                        dup_expected.ld, ignored.begin(), ignored.ld);
    expect_near(dgate, dgate_expected, kRounding<E>, 2e-6f, "dgate");
    expect_near(dup, dup_expected, kRounding<E>, 2e-6f, "dup");
    EXPECT_TRUE(same_bits(again.data, y.data)) << "recomputed y is not the forward's";

    Rows<E> over_gate = gate, over_up = up;
    swiglu_backward<E>(isa, rows, dim, over_gate.begin(), gate.ld, over_up.begin(), up.ld,
                       dy.begin(), dy.ld, over_gate.begin(), gate.ld, over_up.begin(), up.ld,
                       nullptr, 0);
    EXPECT_TRUE(same_bits(over_gate.data, dgate.data)) << "dgate over gate";
    EXPECT_TRUE(same_bits(over_up.data, dup.data)) << "dup over up";
    return bytes_of(y.data, dgate.data, dup.data);
  });
}

TEST(RowsReference, SwigluBackwardIsTheSlopeOfTheForward) {
  for (const float gate : {-9.0f, -1.5f, -0.1f, 0.0f, 0.7f, 2.0f, 11.0f}) {
    const float up = 1.25f, dy = -0.75f, step = 0x1p-8f;
    float dgate = 0, dup = 0;
    swiglu_backward_ref<float>(1, 1, &gate, 1, &up, 1, &dy, 1, &dgate, 1, &dup, 1, nullptr, 1);
    const auto forward = [&](float g, float u) {
      float y = 0;
      swiglu_forward_ref(1, 1, &g, 1, &u, 1, &y, 1);
      return y;
    };
    EXPECT_NEAR(dgate, dy * (forward(gate + step, up) - forward(gate - step, up)) / (2 * step),
                2e-4);
    EXPECT_NEAR(dup, dy * (forward(gate, up + step) - forward(gate, up - step)) / (2 * step), 2e-3);
  }
}

TYPED_TEST(RowsTest, SwigluOfExtremeGates) {
  using E = TypeParam;
  const std::vector<float> gates = {-kInf,  -kHuge, -200,  -1e-38f, -0.0f, 0,
                                    1e-38f, 200,    1e30f, kInf,    kNaN};
  for (const Isa isa : isas()) {
    for (const float g : gates) {
      const E gate = from_float<E>(g), up = from_float<E>(2.0f);
      E y{}, expected{};
      swiglu_forward(isa, 1, 1, &gate, 1, &up, 1, &y, 1);
      swiglu_forward_ref(1, 1, &gate, 1, &up, 1, &expected, 1);
      EXPECT_TRUE(near_enough(to_float(y), to_float(expected), kRounding<E>, kTiniest)) << g;
    }
  }
}

TYPED_TEST(RowsTest, SumsAndBiasHaveTheBitsOfTheReference) {
  using E = TypeParam;
  over_sizes_and_isas([](Isa isa, Random& random, int64_t rows, int64_t dim) {
    Rows<E> a(rows, dim, 1, random), b(rows, dim, 2, random);
    a.at(0, 0) = from_float<E>(kNaN);
    a.at(0, dim - 1) = from_float<E>(kInf);
    b.at(rows - 1, dim / 2) = from_float<E>(-0.0f);
    const auto bias = random.normals<E>(dim);

    Rows<E> y(rows, dim, 3), expected(rows, dim, 3);
    add_rows(isa, rows, dim, a.begin(), a.ld, b.begin(), b.ld, y.begin(), y.ld);
    add_rows_ref(rows, dim, a.begin(), a.ld, b.begin(), b.ld, expected.begin(), expected.ld);
    expect_near(y, expected, 0, 0, "a + b");
    Rows<E> over_a = a;
    add_rows<E>(isa, rows, dim, over_a.begin(), a.ld, b.begin(), b.ld, over_a.begin(), a.ld);
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_EQ(0,
                std::memcmp(&over_a.at(r, 0), &y.at(r, 0), static_cast<size_t>(dim) * sizeof(E)));
    }

    Rows<E> biased = b, biased_expected = b;
    add_bias(isa, rows, dim, biased.begin(), biased.ld, bias.data());
    add_bias_ref(rows, dim, biased_expected.begin(), biased_expected.ld, bias.data());
    expect_near(biased, biased_expected, 0, 0, "x + bias");

    auto sum = random.normals<float>(dim);
    auto sum_expected = sum;
    sum_rows(isa, rows, dim, b.begin(), b.ld, sum.data());
    sum_rows_ref(rows, dim, b.begin(), b.ld, sum_expected.data());
    expect_near(sum, sum_expected, 0, 0, "sum of rows");
    accumulate(isa, dim, bias.data(), sum.data());
    accumulate_ref(dim, bias.data(), sum_expected.data());
    expect_near(sum, sum_expected, 0, 0, "accumulated");
    return bytes_of(y.data, biased.data, sum);
  });
}

// Halves, ties and neighbours at every exponent, infinities, NaNs of every kind, denormals.
std::vector<float> every_kind_of_float() {
  std::vector<float> values;
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    const std::vector<uint32_t> lows =
        upper % 32 ? std::vector<uint32_t>{0x8000}
                   : std::vector<uint32_t>{0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    for (const uint32_t low : lows) values.push_back(std::bit_cast<float>((upper << 16) | low));
  }
  return values;
}

TEST(Convert, FloatToBf16HasTheBitsOfTheScalar) {
  const std::vector<float> from = every_kind_of_float();
  for (const Isa isa : isas()) {
    std::vector<bf16> to(from.size());
    convert(isa, static_cast<int64_t>(from.size()), from.data(), to.data());
    for (size_t i = 0; i < from.size(); ++i) {
      ASSERT_EQ(to[i].bits, to_bf16(from[i]).bits) << std::hexfloat << from[i] << isa_name(isa);
    }
  }
}

TEST(Convert, Bf16ToFloatIsExact) {
  std::vector<bf16> from(65536);
  for (uint32_t i = 0; i < 65536; ++i) from[i].bits = static_cast<uint16_t>(i);
  for (const Isa isa : isas()) {
    std::vector<float> to(from.size());
    convert(isa, static_cast<int64_t>(from.size()), from.data(), to.data());
    for (uint32_t i = 0; i < 65536; ++i) ASSERT_EQ(std::bit_cast<uint32_t>(to[i]), i << 16);
  }
}

TEST(Convert, EveryHalfHasTheBitsOfTheReference) {
  std::vector<uint16_t> from(65536);
  for (uint32_t i = 0; i < 65536; ++i) from[i] = static_cast<uint16_t>(i);
  for (const int64_t skip : {0, 1, 5}) {  // whole vectors and ends
    std::vector<float> to(static_cast<size_t>(65536 - skip)), expected(to);
    convert_f16(65536 - skip, from.data() + skip, to.data());
    convert_f16_ref(65536 - skip, from.data() + skip, expected.data());
    ASSERT_TRUE(same_bits(to, expected));
    // And back: each its own, a NaN a quiet one.
    std::vector<uint16_t> back(to.size() + 1, 0xEEEE);
    convert_f16(65536 - skip, to.data(), back.data());
    for (size_t i = 0; i < to.size(); ++i) {
      const uint16_t half = from[i + static_cast<size_t>(skip)];
      ASSERT_EQ(back[i], std::isnan(to[i]) ? half | 0x0200 : half);
    }
    EXPECT_EQ(back.back(), 0xEEEE);
  }
  for (const int at : {0, 8}) {  // in a whole vector, at the end
    float given[9] = {};
    uint16_t rounded[9];
    for (const auto& [value, half] : std::initializer_list<std::pair<float, uint16_t>>{
             {2049.0f, 0x6800}, {2051.0f, 0x6802}, {65519.0f, 0x7BFF}, {65520.0f, 0x7C00}}) {
      given[at] = value;
      convert_f16(9, given, rounded);
      EXPECT_EQ(rounded[at], half) << value;
    }
  }
  float known[5];
  const uint16_t halves[5] = {0x3C00, 0xC000, 0x0001, 0x7BFF, 0xFC00};
  convert_f16(5, halves, known);
  EXPECT_EQ(known[0], 1.0f);
  EXPECT_EQ(known[1], -2.0f);
  EXPECT_EQ(known[2], 0x1p-24f);
  EXPECT_EQ(known[3], 65504.0f);
  EXPECT_EQ(known[4], -kInf);
}

TEST(Convert, EndsTouchNothingBeyond) {
  Random random(fresh_seed());
  for (const Isa isa : isas()) {
    for (int64_t count = 0; count <= 40; ++count) {
      const auto from = random.normals<float>(count);
      std::vector<bf16> narrow(from.size());
      std::vector<float> wide(from.size());
      convert(isa, count, from.data(), narrow.data());
      convert(isa, count, narrow.data(), wide.data());
      for (size_t i = 0; i < from.size(); ++i) {
        ASSERT_EQ(wide[i], to_float(to_bf16(from[i]))) << random.name();
      }
    }
  }
}

// exp through the gradient of cross-entropy: scale 1, lse 0, no target.
std::vector<float> exponentials(Isa isa, const std::vector<float>& x) {
  const float lse = 0, scale = 1;
  const int32_t target = -100;
  std::vector<float> y(x.size());
  const auto n = static_cast<int64_t>(x.size());
  cross_entropy_gradient(isa, 1, n, x.data(), n, 0, &target, &lse, &scale, y.data(), n);
  return y;
}

TEST(Exponential, IsWithinTwoUnitsInTheLastPlace) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  std::vector<float> x = {0,      -0.0f,   1,           -1,      88.72283f, 88.72284f, -87.33654f,
                          -87.4f, -103.9f, -103.97208f, -104.1f, 1e-30f,    -kTiniest};
  for (int i = 0; i < 200000; ++i) x.push_back(float(random.between(-104000000, 88720000)) * 1e-6f);
  for (const Isa isa : isas()) {
    const std::vector<float> y = exponentials(isa, x);
    for (size_t i = 0; i < x.size(); ++i) {
      const double truth = std::exp(double(x[i]));
      const float rounded = static_cast<float>(truth);
      if (std::isinf(rounded)) {
        ASSERT_EQ(y[i], rounded) << x[i];
        continue;
      }
      const double unit = double(std::nextafter(rounded, kInf)) - double(rounded);
      ASSERT_LE(std::fabs(double(y[i]) - truth), 2 * unit)
          << "exp(" << x[i] << ") " << isa_name(isa);
    }
  }
}

TEST(Exponential, OfExtremesIsZeroInfinityOrNaN) {
  for (const Isa isa : isas()) {
    const auto y = exponentials(isa, {-kInf, -kHuge, -105, 0, 89, kHuge, kInf, kNaN});
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[1], 0);
    EXPECT_EQ(y[2], 0);
    EXPECT_EQ(y[3], 1);
    EXPECT_EQ(y[4], kInf);
    EXPECT_EQ(y[5], kInf);
    EXPECT_EQ(y[6], kInf);
    EXPECT_TRUE(std::isnan(y[7]));
  }
}

struct CrossEntropy {
  explicit CrossEntropy(int64_t rows)
      : maximum(static_cast<size_t>(rows), -kInf),
        sum(static_cast<size_t>(rows), 0),
        target_logit(static_cast<size_t>(rows), kNaN) {}
  double lse(size_t row) const { return std::log(double(sum[row])) + double(maximum[row]); }
  std::vector<float> maximum, sum, target_logit;
};

// The vocabulary in blocks of `block` columns.
CrossEntropy accumulate_blocks(Isa isa, const Rows<float>& logits, int64_t block,
                               const std::vector<int32_t>& target) {
  CrossEntropy state(logits.rows);
  for (int64_t first = 0; first < logits.dim; first += block) {
    cross_entropy_accumulate(isa, logits.rows, std::min(block, logits.dim - first),
                             logits.begin() + first, logits.ld, first, target.data(),
                             state.maximum.data(), state.sum.data(), state.target_logit.data());
  }
  return state;
}

TEST(CrossEntropyTest, BlocksGiveTheLogSumOfExponentials) {
  over_sizes_and_isas([](Isa isa, Random& random, int64_t rows, int64_t n) {
    const Rows<float> logits(rows, n, 2, random, 10);
    std::vector<int32_t> target;
    for (int64_t r = 0; r < rows; ++r)
      target.push_back(static_cast<int32_t>(random.between(0, n - 1)));
    const CrossEntropy state = accumulate_blocks(isa, logits, std::max<int64_t>(1, n / 3), target);
    CrossEntropy reference(rows);
    cross_entropy_accumulate_ref(rows, n, logits.begin(), logits.ld, 0, target.data(),
                                 reference.maximum.data(), reference.sum.data(),
                                 reference.target_logit.data());
    for (size_t r = 0; r < target.size(); ++r) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += std::exp(double(logits.value(int64_t(r), j)));
      EXPECT_NEAR(state.lse(r), std::log(sum), 1e-5);
      EXPECT_NEAR(reference.lse(r), std::log(sum), 1e-5);
      EXPECT_EQ(state.target_logit[r], logits.value(int64_t(r), target[r]));
      EXPECT_EQ(state.maximum[r], reference.maximum[r]);
    }
    return bytes_of(state.maximum, state.sum);
  });
}

TEST(CrossEntropyTest, ATargetOutsideTheVocabularyLeavesItsLogitAlone) {
  const std::vector<float> logits = {1, 2, 3};
  const std::vector<int32_t> target = {-100};
  for (const Isa isa : isas()) {
    CrossEntropy state(1);
    state.target_logit[0] = 5;
    cross_entropy_accumulate(isa, 1, 3, logits.data(), 3, 0, target.data(), state.maximum.data(),
                             state.sum.data(), state.target_logit.data());
    EXPECT_EQ(state.target_logit[0], 5);
  }
}

TEST(CrossEntropyTest, ExtremeLogits) {
  const std::vector<int32_t> target(6, 0);
  Rows<float> logits(6, 21, 1);
  for (int64_t r = 0; r < 6; ++r) {
    for (int64_t j = 0; j < 21; ++j) logits.at(r, j) = -kInf;
  }
  logits.at(1, 20) = 3;  // all the probability in the last block
  for (int64_t j = 0; j < 21; ++j) logits.at(2, j) = -1e30f;
  for (int64_t j = 0; j < 21; ++j) logits.at(3, j) = kHuge;
  logits.at(4, 17) = kNaN;
  logits.at(5, 2) = kInf;
  for (const Isa isa : isas()) {
    const CrossEntropy state = accumulate_blocks(isa, logits, 17, target);
    EXPECT_EQ(state.sum[0], 0);
    EXPECT_EQ(state.lse(0), -double(kInf));
    EXPECT_EQ(state.lse(1), 3);
    EXPECT_NEAR(state.sum[2], 21, 1e-4);
    EXPECT_EQ(state.maximum[2], -1e30f);
    EXPECT_NEAR(state.sum[3], 21, 1e-4);
    EXPECT_TRUE(std::isnan(state.lse(4)));
    EXPECT_TRUE(std::isnan(state.lse(5)));
  }
}

TYPED_TEST(RowsTest, CrossEntropyGradientIsTheReference) {
  using E = TypeParam;
  over_sizes_and_isas([](Isa isa, Random& random, int64_t rows, int64_t n) {
    const Rows<float> logits(rows, n, 1, random, 3);
    const int64_t first = 1000;
    std::vector<int32_t> target;
    std::vector<float> lse, scale;
    for (int64_t r = 0; r < rows; ++r) {
      target.push_back(static_cast<int32_t>(random.between(first - 3, first + n + 2)));
      lse.push_back(5 + random.normal());
      scale.push_back(r == 1 ? 0 : random.normal());
    }
    Rows<E> d(rows, n, 2), expected(rows, n, 2);
    cross_entropy_gradient(isa, rows, n, logits.begin(), logits.ld, first, target.data(),
                           lse.data(), scale.data(), d.begin(), d.ld);
    cross_entropy_gradient_ref(rows, n, logits.begin(), logits.ld, first, target.data(), lse.data(),
                               scale.data(), expected.begin(), expected.ld);
    expect_near(d, expected, kRounding<E>, 1e-7f, "d");
    return bytes_of(d.data);
  });
}

TYPED_TEST(RowsTest, ARowOfScaleZeroHasNoGradientWhateverItsLogits) {
  using E = TypeParam;
  const std::vector<float> logits(19, kNaN);
  const float lse = kNaN, scale = 0;
  const int32_t target = 2;
  for (const Isa isa : isas()) {
    std::vector<E> d(19, from_float<E>(1));
    cross_entropy_gradient(isa, 1, 19, logits.data(), 19, 0, &target, &lse, &scale, d.data(), 19);
    for (const E& value : d) EXPECT_EQ(std::bit_cast<uint32_t>(to_float(value)), 0u);
  }
}

TYPED_TEST(RowsTest, NoRowsAreNoWork) {
  using E = TypeParam;
  for (const Isa isa : isas()) {
    rms_norm_forward<E>(isa, 0, 64, nullptr, 64, nullptr, 1e-5f, nullptr, 64, nullptr);
    swiglu_forward<E>(isa, 0, 64, nullptr, 64, nullptr, 64, nullptr, 64);
    std::vector<float> sum(64, 1);
    sum_rows<E>(isa, 0, 64, nullptr, 64, sum.data());
    EXPECT_EQ(sum, std::vector<float>(64, 1));
  }
}

}  // namespace
}  // namespace amxt::kernels
