#include "kernels/gemm_blocked.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/blocked_layout.h"
#include "kernels/gemm.h"
#include "unit/kernels/emulated_tiles.h"
#include "unit/kernels/kernel_data.h"

namespace amxt::kernels {
namespace {

std::unique_ptr<ThreadPool> pool_of(int threads) {
  ThreadPool::Options options;
  options.threads = threads;
  options.spin_us = 0;
  auto pool = ThreadPool::create(options);
  EXPECT_TRUE(pool.ok());
  return std::move(*pool);
}

std::unique_ptr<BlockedGemm> gemm_of(ThreadPool* pool, const BlockedKernel& kernel,
                                     int64_t scratch_bytes = 1 << 20) {
  auto gemm = BlockedGemm::create(pool, kernel, scratch_bytes);
  EXPECT_TRUE(gemm.ok());
  return std::move(*gemm);
}

enum class Form {
  kForward,
  kForwardFloat,
  kGradInput,
  kGradInputFloat,
  kGradInputAdd,
  kGradWeight,
  kGradWeightFloat,
  kGradWeightAdd
};
constexpr Form kForms[] = {Form::kForward,         Form::kForwardFloat, Form::kGradInput,
                           Form::kGradInputFloat,  Form::kGradInputAdd, Form::kGradWeight,
                           Form::kGradWeightFloat, Form::kGradWeightAdd};
constexpr const char* kFormNames[] = {"forward",           "forward_float",     "grad_input",
                                      "grad_input_float",  "grad_input_float+", "grad_weight",
                                      "grad_weight_float", "grad_weight_float+"};

bool is_forward(Form form) { return form <= Form::kForwardFloat; }
bool is_grad_weight(Form form) { return form >= Form::kGradWeight; }
bool accumulates(Form form) { return form == Form::kGradInputAdd || form == Form::kGradWeightAdd; }
bool stores_bf16(Form form) {
  return form == Form::kForward || form == Form::kGradInput || form == Form::kGradWeight;
}

struct Shape {
  int64_t T, N, K;
};

// A product: operands row-major as in gemm.h, and what the result starts from.
struct Case {
  Form form;
  Shape shape;
  Rows<bf16> first, second;  // X and W, dY and W, dY and X
  Rows<float> start;

  Case(Form f, Shape s, Random& random)
      : form(f),
        shape(s),
        first(s.T, is_forward(f) ? s.K : s.N, random.between(0, 3), random),
        second(is_grad_weight(f) ? s.T : s.N, s.K, random.between(0, 3), random),
        start(is_grad_weight(f) ? s.N : s.T, is_forward(f) ? s.N : s.K, random.between(0, 3),
              random) {}

  int64_t contracted() const {
    return is_forward(form) ? shape.K : is_grad_weight(form) ? shape.T : shape.N;
  }
  // The factors of element (i, j) of the result at p of the contracted index.
  float left(int64_t i, int64_t p) const {
    return is_grad_weight(form) ? first.value(p, i) : first.value(i, p);
  }
  float right(int64_t j, int64_t p) const {
    return is_forward(form) ? second.value(j, p) : second.value(p, j);
  }
  std::string text() const {
    return std::string(kFormNames[static_cast<int>(form)]) + " T x N x K " +
           std::to_string(shape.T) + " x " + std::to_string(shape.N) + " x " +
           std::to_string(shape.K);
  }
};

std::vector<bf16> blocked(const Rows<bf16>& w) {
  const BlockedShape shape{w.rows, w.dim};
  std::vector<bf16> to(static_cast<size_t>(shape.elements()));
  to_blocked(shape, w.begin(), w.ld, to.data());
  return to;
}

// A matrix whose last byte is the last of readable memory, or whose first byte is the first, by turns.
class AtAnEdge {
 public:
  AtAnEdge(const void* from, int64_t bytes, bool at_end) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inside = (static_cast<size_t>(bytes) + page - 1) / page * page;
    mapped_ = inside + 2 * page;
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(memory_, MAP_FAILED);
    EXPECT_EQ(mprotect(memory_ + page, inside, PROT_READ | PROT_WRITE), 0);
    data_ = memory_ + page + (at_end ? inside - static_cast<size_t>(bytes) : 0);
    std::memcpy(data_, from, static_cast<size_t>(bytes));
  }
  template <typename E>
  AtAnEdge(const std::vector<E>& from, bool at_end)
      : AtAnEdge(from.data(), static_cast<int64_t>(from.size() * sizeof(E)), at_end) {}
  ~AtAnEdge() { munmap(memory_, mapped_); }
  AtAnEdge(const AtAnEdge&) = delete;
  AtAnEdge& operator=(const AtAnEdge&) = delete;
  template <typename E>
  E* as() const {
    return reinterpret_cast<E*>(data_);
  }

 private:
  size_t mapped_ = 0;
  std::byte* memory_ = nullptr;
  std::byte* data_ = nullptr;
};

// The result as row-major floats. All matrices lie between pages that can't be touched.
Rows<float> computed(BlockedGemm& gemm, const Case& c, bool at_end = true) {
  const auto [T, N, K] = c.shape;
  const AtAnEdge first(c.first.data, at_end);
  const AtAnEdge second(is_grad_weight(c.form) ? c.second.data : blocked(c.second), at_end);
  const bf16 *a = first.as<bf16>(), *b = second.as<bf16>();
  Rows<float> out = c.start;
  Status status;
  if (is_grad_weight(c.form)) {
    const BlockedShape shape{N, K};
    std::vector<float> dw(static_cast<size_t>(shape.elements()), kNaN);
    if (accumulates(c.form)) to_blocked(shape, c.start.begin(), c.start.ld, dw.data());
    if (c.form == Form::kGradWeight) {
      const AtAnEdge place(std::vector<bf16>(dw.size(), bf16{0x7FC0}), at_end);
      status = gemm.grad_weight(T, N, K, a, c.first.ld, b, c.second.ld, place.as<bf16>());
      for (size_t i = 0; i < dw.size(); ++i) dw[i] = to_float(place.as<bf16>()[i]);
    } else {
      const AtAnEdge place(dw, at_end);
      status = gemm.grad_weight_float(T, N, K, a, c.first.ld, b, c.second.ld, place.as<float>(),
                                      accumulates(c.form));
      std::copy_n(place.as<float>(), dw.size(), dw.begin());
    }
    from_blocked(shape, dw.data(), out.begin(), out.ld);
    std::vector<float> again(dw.size());
    to_blocked(shape, out.begin(), out.ld, again.data());
    EXPECT_TRUE(same_bits(again, dw)) << "not zeros where the order has no element";
  } else if (stores_bf16(c.form)) {
    Rows<bf16> narrow(out.rows, out.dim, out.ld - out.dim);
    const AtAnEdge place(narrow.data, at_end);
    status = c.form == Form::kForward
                 ? gemm.forward(T, N, K, a, c.first.ld, b, place.as<bf16>(), narrow.ld)
                 : gemm.grad_input(T, N, K, a, c.first.ld, b, place.as<bf16>(), narrow.ld);
    for (size_t i = 0; i < out.data.size(); ++i) out.data[i] = to_float(place.as<bf16>()[i]);
  } else {
    const AtAnEdge place(out.data, at_end);
    status = c.form == Form::kForwardFloat
                 ? gemm.forward_float(T, N, K, a, c.first.ld, b, place.as<float>(), out.ld)
                 : gemm.grad_input_float(T, N, K, a, c.first.ld, b, place.as<float>(), out.ld,
                                         accumulates(c.form));
    std::copy_n(place.as<float>(), out.data.size(), out.data.begin());
  }
  EXPECT_TRUE(status.ok()) << status.error().message();
  return out;
}

// A sum as an instruction set computes it: factors at p of the contracted index, zeros behind its end.
using Term = std::function<std::pair<float, float>(int64_t p)>;

struct Backend {
  const BlockedKernel* kernel;
  float (*sum)(Form form, int64_t contracted, const Term& term);
  bool keeps_denormals = false;
};

// Which two elements of 32 stand in a pair: neighbours along a row of memory, else 16 apart.
int64_t in_pair(Form form, int64_t pair, int64_t which) {
  return is_forward(form) ? 2 * pair + which : pair + 16 * which;
}

float multiply_add(const Term& term, int64_t p, int64_t contracted, float sum) {
  if (p >= contracted) return sum;
  const auto [a, b] = term(p);
  return std::fma(a, b, sum);
}

// TDPBF16PS: of each 32 the first and the second elements of pairs apart.
float tile_sum(Form form, int64_t contracted, const Term& term) {
  float sum = 0;
  for (int64_t step = 0; step < contracted; step += 32) {
    float part[2] = {};
    for (int64_t pair = 0; pair < 16; ++pair) {
      for (int64_t which = 0; which < 2; ++which) {
        part[which] =
            multiply_add(term, step + in_pair(form, pair, which), contracted, part[which]);
      }
    }
    sum += part[0] + part[1];
  }
  return sum;
}

// One chain, in this order of the two elements of a pair.
template <int64_t kBefore, int64_t kAfter>
float chain_sum(Form form, int64_t contracted, const Term& term) {
  float sum = 0;
  for (int64_t step = 0; step < contracted; step += 32) {
    for (int64_t pair = 0; pair < 16; ++pair) {
      for (const int64_t which : {kBefore, kAfter}) {
        sum = multiply_add(term, step + in_pair(form, pair, which), contracted, sum);
      }
    }
  }
  return sum;
}

// VDPBF16PS takes the second of a pair first.
constexpr auto dot_sum = chain_sum<1, 0>;
constexpr auto fma_sum = chain_sum<0, 1>;

float expected_element(const Backend& backend, const Case& c, int64_t i, int64_t j) {
  const float sum = backend.sum(c.form, c.contracted(),
                                [&](int64_t p) { return std::pair{c.left(i, p), c.right(j, p)}; });
  if (stores_bf16(c.form)) return to_float(to_bf16(sum));
  return accumulates(c.form) ? c.start.value(i, j) + sum : sum;
}

void expect_every_element(const Backend& backend, const Case& c, const Rows<float>& got) {
  EXPECT_TRUE(stores_bf16(c.form) || is_grad_weight(c.form) || got.gaps_untouched()) << c.text();
  for (int64_t i = 0; i < got.rows; ++i) {
    for (int64_t j = 0; j < got.dim; ++j) {
      ASSERT_EQ(got.value(i, j), expected_element(backend, c, i, j))
          << c.text() << " at " << i << "," << j;
    }
  }
}

class BlockedGemmTest : public ::testing::Test {
 protected:
  // All that the machine has, the best first.
  void SetUp() override {
    const Isa best = isas().back();
    if (best >= Isa::kAmx) backends_.push_back({&blocked_kernel_amx(), tile_sum});
    if (best >= Isa::kAvx512Bf16) {
      backends_.push_back({&blocked_kernel_avx512bf16(), dot_sum});
      backends_.push_back({&blocked_kernel_emulated(), tile_sum});
    }
    if (best >= Isa::kAvx512) backends_.push_back({&blocked_kernel_avx512(), fma_sum, true});
    backends_.push_back({&blocked_kernel_avx2(), fma_sum, true});
  }

  std::vector<Backend> backends_;
};

TEST(BlockedGemm, OfEveryInstructionSetIsTestedHere) {
  const Isa best = isas().back();
  if (best < Isa::kAvx512Bf16) {
    GTEST_SKIP() << "skipped: no AVX512_BF16, and so no emulated tiles: " << isa_name(best);
  }
  if (best < Isa::kAmx) GTEST_SKIP() << "skipped: no AMX; its tiles are emulated";
}

const Shape kShapes[] = {{1, 1, 1},     {1, 1, 33},    {33, 1, 1},    {1, 33, 1},    {31, 32, 33},
                         {32, 32, 32},  {15, 65, 17},  {64, 96, 288}, {288, 64, 96}, {96, 288, 64},
                         {37, 70, 260}, {270, 40, 35}, {40, 530, 31}};

TEST_F(BlockedGemmTest, EveryElementHasTheBitsOfItsDocumentedSum) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const auto pool = pool_of(2);
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  for (int i = 0; i < 8; ++i) {
    shapes.push_back({random.between(1, 300), random.between(1, 150), random.between(1, 150)});
  }
  for (const Backend& backend : backends_) {
    SCOPED_TRACE(backend.kernel->name);
    const auto gemm = gemm_of(pool.get(), *backend.kernel);
    for (const Shape& shape : shapes) {
      for (const Form form : kForms) {
        const Case c(form, shape, random);
        expect_every_element(backend, c, computed(*gemm, c, random.between(0, 1) == 0));
        if (HasFailure()) return;
      }
    }
  }
}

// Against a truth that knows nothing of pairs: within what rounding in another order can do.
TEST_F(BlockedGemmTest, AgreesWithTheReference) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const auto pool = pool_of(2);
  const auto [T, N, K] = Shape{130, 77, 290};
  const Rows<bf16> x(T, K, 1, random), w(N, K, 2, random), dy(T, N, 0, random);
  const std::vector<bf16> in_blocks = blocked(w);
  Rows<float> y(T, N, 0), dx(T, K, 0), dw(N, K, 0), y_truth = y, dx_truth = dx, dw_truth = dw;
  gemm_forward_ref(T, N, K, x.begin(), x.ld, w.begin(), w.ld, y_truth.begin(), N);
  gemm_grad_input_ref(T, N, K, dy.begin(), dy.ld, w.begin(), w.ld, dx_truth.begin(), K, false);
  gemm_grad_weight_ref(T, N, K, dy.begin(), dy.ld, x.begin(), x.ld, dw_truth.begin(), K, false);
  for (const Backend& backend : backends_) {
    SCOPED_TRACE(backend.kernel->name);
    const auto gemm = gemm_of(pool.get(), *backend.kernel);
    const BlockedShape shape{N, K};
    std::vector<float> dw_blocks(static_cast<size_t>(shape.elements()), kNaN);
    ASSERT_TRUE(gemm->forward_float(T, N, K, x.begin(), x.ld, in_blocks.data(), y.begin(), N).ok());
    ASSERT_TRUE(
        gemm->grad_input_float(T, N, K, dy.begin(), dy.ld, in_blocks.data(), dx.begin(), K, false)
            .ok());
    ASSERT_TRUE(gemm->grad_weight_float(T, N, K, dy.begin(), dy.ld, x.begin(), x.ld,
                                        dw_blocks.data(), false)
                    .ok());
    from_blocked(shape, dw_blocks.data(), dw.begin(), K);
    expect_near(y, y_truth, 0, 2e-4f, "forward");
    expect_near(dx, dx_truth, 0, 2e-4f, "grad_input");
    expect_near(dw, dw_truth, 0, 2e-4f, "grad_weight");
  }
}

// Sides that model families have; some elements of each.
// As one product over the rows of all pairs, each filled up with zeros to a multiple of 32.
TEST_F(BlockedGemmTest, PairsAreOneSum) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const auto pool = pool_of(2);
  const int64_t N = 70, K = 130;
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>{37, 64, 1, 0, 100}, {32}, {5, 300}, {0}, {}}) {
    int64_t padded = 0;
    for (const int64_t T : lengths) padded += (T + 31) / 32 * 32;
    std::vector<Rows<bf16>> x, dy;
    Rows<bf16> all_x(padded, K, 0), all_dy(padded, N, 0);
    for (int64_t t = 0; t < padded; ++t) {
      std::fill_n(all_x.begin() + t * K, K, bf16{});
      std::fill_n(all_dy.begin() + t * N, N, bf16{});
    }
    std::vector<BlockedGemm::GradientPair> pairs;
    int64_t first = 0;
    for (const int64_t T : lengths) {
      x.emplace_back(T, K, 3, random);
      dy.emplace_back(T, N, 2, random);
      for (int64_t t = 0; t < T; ++t) {
        std::copy_n(x.back().begin() + t * x.back().ld, K, all_x.begin() + (first + t) * K);
        std::copy_n(dy.back().begin() + t * dy.back().ld, N, all_dy.begin() + (first + t) * N);
      }
      first += (T + 31) / 32 * 32;
    }
    for (size_t i = 0; i < lengths.size(); ++i)
      pairs.push_back({dy[i].begin(), x[i].begin(), lengths[i]});
    const auto elements = static_cast<size_t>(BlockedShape{N, K}.elements());
    for (const Backend& backend : backends_) {
      SCOPED_TRACE(backend.kernel->name);
      // Also where operands are packed in parts.
      for (const int64_t scratch : {int64_t{1} << 12, int64_t{1} << 20}) {
        const auto gemm = gemm_of(pool.get(), *backend.kernel, scratch);
        std::vector<bf16> rounded(elements), one_rounded(elements);
        std::vector<float> added(elements, 0.5f), one_added(elements, 0.5f);
        ASSERT_TRUE(gemm->grad_weight(pairs, N, K, N + 2, K + 3, rounded.data()));
        ASSERT_TRUE(gemm->grad_weight(padded, N, K, all_dy.begin(), N, all_x.begin(), K,
                                      one_rounded.data()));
        ASSERT_TRUE(gemm->grad_weight_float(pairs, N, K, N + 2, K + 3, added.data(), true));
        ASSERT_TRUE(gemm->grad_weight_float(padded, N, K, all_dy.begin(), N, all_x.begin(), K,
                                            one_added.data(), true));
        float largest = 0;
        for (size_t i = 0; i < elements; ++i) {
          ASSERT_EQ(rounded[i].bits, one_rounded[i].bits) << i;
          ASSERT_EQ(added[i], one_added[i]) << i;
          largest = std::max(largest, std::abs(added[i] - 0.5f));
        }
        EXPECT_EQ(largest > 0, padded > 0);
      }
    }
  }
}

TEST_F(BlockedGemmTest, WideMatricesHaveTheSameSums) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const auto pool = pool_of(2);
  const Backend& backend = backends_[0];
  const auto gemm = gemm_of(pool.get(), *backend.kernel);
  for (const Shape& shape : {Shape{67, 960, 1536}, Shape{45, 2560, 960}, Shape{33, 64, 8960},
                             Shape{33, 8960, 64}, Shape{1, 4099, 100}}) {
    for (const Form form : {Form::kForward, Form::kGradInput, Form::kGradWeight}) {
      const Case c(form, shape, random);
      const Rows<float> got = computed(*gemm, c);
      for (int sample = 0; sample < 500; ++sample) {
        const int64_t i = random.between(0, got.rows - 1), j = random.between(0, got.dim - 1);
        ASSERT_EQ(got.value(i, j), expected_element(backend, c, i, j))
            << c.text() << " at " << i << "," << j;
      }
    }
  }
}

TEST_F(BlockedGemmTest, BitsDoNotDependOnThreadsRunsOrScratch) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const auto one = pool_of(1), two = pool_of(2), three = pool_of(3);
  for (const Backend& backend : backends_) {
    SCOPED_TRACE(backend.kernel->name);
    const auto first = gemm_of(one.get(), *backend.kernel);
    for (const Form form : kForms) {
      const Case c(form, {530, 300, 290}, random);
      const Rows<float> expected = computed(*first, c);
      EXPECT_TRUE(same_bits(expected.data, computed(*first, c).data)) << c.text() << ", again";
      for (ThreadPool* pool : {two.get(), three.get()}) {
        const auto gemm = gemm_of(pool, *backend.kernel);
        EXPECT_TRUE(same_bits(expected.data, computed(*gemm, c).data))
            << c.text() << ", " << pool->threads() << " threads";
      }
      const auto in_parts = gemm_of(two.get(), *backend.kernel, 1);
      EXPECT_TRUE(same_bits(expected.data, computed(*in_parts, c).data))
          << c.text() << ", the least scratch";
    }
  }
}

// Owners of different panels get the bits that one owner of all would get.
TEST_F(BlockedGemmTest, ARangeOfPanelsHasTheBitsOfTheWhole) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  const auto pool = pool_of(2);
  const auto [T, N, K] = Shape{75, 416, 330};
  const Rows<bf16> x(T, K, 0, random), w(N, K, 0, random), dy(T, N, 0, random);
  const std::vector<bf16> all = blocked(w);
  const int64_t row = 160, offset = row * BlockedShape{N, K}.blocks() * kBlockSide;
  for (const Backend& backend : backends_) {
    SCOPED_TRACE(backend.kernel->name);
    const auto gemm = gemm_of(pool.get(), *backend.kernel);
    std::vector<bf16> y(static_cast<size_t>(T * N)), y_parts = y, dw(all.size()), dw_parts = dw;
    ASSERT_TRUE(gemm->forward(T, N, K, x.begin(), K, all.data(), y.data(), N).ok());
    ASSERT_TRUE(gemm->forward(T, row, K, x.begin(), K, all.data(), y_parts.data(), N).ok());
    ASSERT_TRUE(
        gemm->forward(T, N - row, K, x.begin(), K, all.data() + offset, y_parts.data() + row, N)
            .ok());
    EXPECT_TRUE(same_bits(y, y_parts));
    ASSERT_TRUE(gemm->grad_weight(T, N, K, dy.begin(), N, x.begin(), K, dw.data()).ok());
    ASSERT_TRUE(gemm->grad_weight(T, row, K, dy.begin(), N, x.begin(), K, dw_parts.data()).ok());
    ASSERT_TRUE(gemm->grad_weight(T, N - row, K, dy.begin() + row, N, x.begin(), K,
                                  dw_parts.data() + offset)
                    .ok());
    EXPECT_TRUE(same_bits(dw, dw_parts));
  }
}

TEST_F(BlockedGemmTest, NonFiniteValuesReachTheirRowsAndColumnsOnly) {
  Random random(1);
  const auto pool = pool_of(2);
  for (const Backend& backend : backends_) {
    const auto gemm = gemm_of(pool.get(), *backend.kernel, 1);
    for (const Form form : kForms) {
      Case c(form, {37, 41, 299}, random);
      // Row 3 meets infinity at p = 5, column 20 NaN at p = 9.
      (is_grad_weight(form) ? c.first.at(5, 3) : c.first.at(3, 5)) = to_bf16(-kInf);
      (is_forward(form) ? c.second.at(20, 9) : c.second.at(9, 20)) = to_bf16(kNaN);
      const Rows<float> got = computed(*gemm, c);
      for (int64_t i = 0; i < got.rows; ++i) {
        for (int64_t j = 0; j < got.dim; ++j) {
          const float value = got.value(i, j);
          ASSERT_TRUE(j == 20  ? std::isnan(value)
                      : i == 3 ? std::isinf(value)
                               : std::isfinite(value))
              << backend.kernel->name << " " << c.text() << " at " << i << "," << j << ": "
              << value;
        }
      }
    }
  }
}

TEST_F(BlockedGemmTest, DenormalsAreAsTheInstructionsDefineAndLargeSumsInfinite) {
  const auto pool = pool_of(1);
  const auto dot = [&](const Backend& backend, float a, float b) {
    const Rows<bf16> w = [&] {
      Rows<bf16> row(1, 64, 0);
      std::fill(row.data.begin(), row.data.end(), to_bf16(b));
      return row;
    }();
    const std::vector<bf16> x(64, to_bf16(a));
    float y = kNaN;
    EXPECT_TRUE(gemm_of(pool.get(), *backend.kernel)
                    ->forward_float(1, 1, 64, x.data(), 64, blocked(w).data(), &y, 1)
                    .ok());
    return y;
  };
  for (const Backend& backend : backends_) {
    SCOPED_TRACE(backend.kernel->name);
    const float kept = backend.keeps_denormals ? 1 : 0;
    EXPECT_EQ(dot(backend, 0x1p-130f, 0x1p+10f), kept * 0x1p-114f) << "a denormal factor";
    EXPECT_EQ(dot(backend, 0x1p-70f, 0x1p-63f), kept * 0x1p-127f) << "denormal products";
    EXPECT_EQ(dot(backend, 0x1p-70f, 0x1p-50f), 0x1p-114f);
    EXPECT_EQ(dot(backend, 1e30f, 1e30f), kInf);
    EXPECT_EQ(dot(backend, 1e30f, -1e30f), -kInf);
  }
}

TEST_F(BlockedGemmTest, AnEmptySumIsZeroOrWhatWasThere) {
  const auto pool = pool_of(2);
  for (const Backend& backend : backends_) {
    const auto gemm = gemm_of(pool.get(), *backend.kernel);
    std::vector<float> y(6, kNaN);
    ASSERT_TRUE(gemm->forward_float(2, 3, 0, nullptr, 0, nullptr, y.data(), 3).ok());
    EXPECT_EQ(y, std::vector<float>(6, 0.0f));
    y.assign(6, kNaN);
    ASSERT_TRUE(gemm->grad_input_float(2, 0, 3, nullptr, 0, nullptr, y.data(), 3, false).ok());
    EXPECT_EQ(y, std::vector<float>(6, 0.0f));
    std::vector<float> dw(2048, 2.5f);
    ASSERT_TRUE(gemm->grad_weight_float(0, 33, 3, nullptr, 33, nullptr, 3, dw.data(), true).ok());
    EXPECT_EQ(dw, std::vector<float>(2048, 2.5f));
    ASSERT_TRUE(gemm->grad_weight_float(0, 33, 3, nullptr, 33, nullptr, 3, dw.data(), false).ok());
    EXPECT_EQ(dw, std::vector<float>(2048, 0.0f));
    ASSERT_TRUE(gemm->forward(0, 3, 5, nullptr, 5, nullptr, nullptr, 3).ok());
  }
}

TEST(BlockedGemm, TakesTheKernelOfTheInstructionSet) {
  const auto pool = pool_of(1);
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx}) {
    const auto gemm = BlockedGemm::create(pool.get(), isa);
    ASSERT_TRUE(gemm.ok());
    EXPECT_EQ((*gemm)->name(), std::string("blocked-") + isa_name(isa));
  }
}

}  // namespace
}  // namespace amxt::kernels
