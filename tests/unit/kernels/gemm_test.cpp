#include "kernels/gemm.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/gemm_transpose.h"

namespace amxt::kernels {
namespace {

uint64_t fresh_seed() {
  const uint64_t seed =
      static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  ::testing::Test::RecordProperty("seed", std::to_string(seed));
  return seed;
}

std::unique_ptr<ThreadPool> pool_of(int threads) {
  ThreadPool::Options options;
  options.threads = threads;
  options.spin_us = 0;
  auto pool = ThreadPool::create(options);
  EXPECT_TRUE(pool.ok());
  return std::move(*pool);
}

// rows x columns in rows of `ld`; what lies between the rows is a canary in results and NaN in
// operands.
template <typename E>
struct Matrix {
  int64_t rows, columns, ld;
  std::vector<E> data;

  Matrix(int64_t r, int64_t c, int64_t pad, float fill)
      : rows(r),
        columns(c),
        ld(c + pad),
        data(static_cast<size_t>(r * ld + 1), from_float<E>(fill)) {}

  E* begin() { return data.data(); }
  const E* begin() const { return data.data(); }
  float at(int64_t i, int64_t j) const { return to_float(data[static_cast<size_t>(i * ld + j)]); }
  void set(int64_t i, int64_t j, float value) {
    data[static_cast<size_t>(i * ld + j)] = from_float<E>(value);
  }
};

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kCanary = 12345.0f;

struct Problem {
  int64_t T, N, K;
  std::string text() const {
    return std::to_string(T) + "x" + std::to_string(N) + "x" + std::to_string(K);
  }
};

enum class Product {
  kForward,
  kForwardFloat,
  kGradInput,
  kGradInputFloat,
  kGradInputAdd,
  kGradWeight,
  kGradWeightAdd,
  kGradWeightRounded
};
constexpr Product kProducts[] = {Product::kForward,       Product::kForwardFloat,
                                 Product::kGradInput,     Product::kGradInputFloat,
                                 Product::kGradInputAdd,  Product::kGradWeight,
                                 Product::kGradWeightAdd, Product::kGradWeightRounded};
const char* product_name(Product product) {
  constexpr const char* kNames[] = {"forward",          "forward_float",      "grad_input",
                                    "grad_input_float", "grad_input_float+",  "grad_weight",
                                    "grad_weight+",     "grad_weight_rounded"};
  return kNames[static_cast<int>(product)];
}

bool accumulates(Product p) { return p == Product::kGradInputAdd || p == Product::kGradWeightAdd; }
bool stores_element(Product p) {
  return p == Product::kForward || p == Product::kGradInput || p == Product::kGradWeightRounded;
}

// Operands and result of one product; `a` and `b` are what the function takes first and second.
template <typename E>
struct Case {
  Product product;
  Problem problem;
  Matrix<E> a, b;
  Matrix<float> start;  // what the result is added to

  static int64_t contracted(Product p, const Problem& s) {
    return p <= Product::kForwardFloat ? s.K : p <= Product::kGradInputAdd ? s.N : s.T;
  }
  static int64_t result_rows(Product p, const Problem& s) {
    return p >= Product::kGradWeight ? s.N : s.T;
  }
  static int64_t result_columns(Product p, const Problem& s) {
    return p <= Product::kForwardFloat ? s.N : s.K;
  }

  Case(Product p, const Problem& s, std::mt19937_64& random)
      : product(p),
        problem(s),
        a(s.T, p <= Product::kForwardFloat ? s.K : s.N, pad(random), kNaN),
        b(p >= Product::kGradWeight ? s.T : s.N, s.K, pad(random), kNaN),
        start(result_rows(p, s), result_columns(p, s), pad(random), kCanary) {
    std::normal_distribution<float> normal;
    for (Matrix<E>* m : {&a, &b}) {
      for (int64_t i = 0; i < m->rows; ++i) {
        for (int64_t j = 0; j < m->columns; ++j) m->set(i, j, normal(random));
      }
    }
    for (int64_t i = 0; i < start.rows; ++i) {
      for (int64_t j = 0; j < start.columns; ++j)
        start.set(i, j, accumulates(p) ? normal(random) : kNaN);
    }
  }

  static int64_t pad(std::mt19937_64& random) {
    constexpr int64_t kPads[] = {0, 0, 1, 3, 8, 32};
    return kPads[random() % std::size(kPads)];
  }

  std::string text() const {
    return std::string(product_name(product)) + " T x N x K " + problem.text() + " strides " +
           std::to_string(a.ld) + "," + std::to_string(b.ld) + "," + std::to_string(start.ld);
  }
};

template <typename E>
Matrix<float> reference(const Case<E>& c) {
  Matrix<float> out = c.start;
  const auto [T, N, K] = c.problem;
  if (c.product <= Product::kForwardFloat) {
    gemm_forward_ref(T, N, K, c.a.begin(), c.a.ld, c.b.begin(), c.b.ld, out.begin(), out.ld);
  } else if (c.product <= Product::kGradInputAdd) {
    gemm_grad_input_ref(T, N, K, c.a.begin(), c.a.ld, c.b.begin(), c.b.ld, out.begin(), out.ld,
                        accumulates(c.product));
  } else {
    gemm_grad_weight_ref(T, N, K, c.a.begin(), c.a.ld, c.b.begin(), c.b.ld, out.begin(), out.ld,
                         accumulates(c.product));
  }
  if (stores_element(c.product)) {
    for (int64_t i = 0; i < out.rows; ++i) {
      for (int64_t j = 0; j < out.columns; ++j)
        out.set(i, j, to_float(from_float<E>(out.at(i, j))));
    }
  }
  return out;
}

// The result as floats, canaries included.
template <typename E>
Matrix<float> computed(Gemm<E>& gemm, const Case<E>& c) {
  Matrix<float> out = c.start;
  const auto [T, N, K] = c.problem;
  const E *a = c.a.begin(), *b = c.b.begin();
  Status status;
  if (stores_element(c.product)) {
    Matrix<E> narrow(out.rows, out.columns, out.ld - out.columns, kCanary);
    status =
        c.product == Product::kForward
            ? gemm.forward(T, N, K, a, c.a.ld, b, c.b.ld, narrow.begin(), narrow.ld)
        : c.product == Product::kGradInput
            ? gemm.grad_input(T, N, K, a, c.a.ld, b, c.b.ld, narrow.begin(), narrow.ld)
            : gemm.grad_weight_rounded(T, N, K, a, c.a.ld, b, c.b.ld, narrow.begin(), narrow.ld);
    for (size_t i = 0; i < narrow.data.size(); ++i) {
      const float value = to_float(narrow.data[i]);
      out.data[i] = value == to_float(from_float<E>(kCanary)) ? kCanary : value;
    }
  } else if (c.product == Product::kForwardFloat) {
    status = gemm.forward_float(T, N, K, a, c.a.ld, b, c.b.ld, out.begin(), out.ld);
  } else if (c.product <= Product::kGradInputAdd) {
    status = gemm.grad_input_float(T, N, K, a, c.a.ld, b, c.b.ld, out.begin(), out.ld,
                                   accumulates(c.product));
  } else {
    status = gemm.grad_weight(T, N, K, a, c.a.ld, b, c.b.ld, out.begin(), out.ld,
                              accumulates(c.product));
  }
  EXPECT_TRUE(status.ok()) << status.error().message();
  return out;
}

bool same_bits(const Matrix<float>& x, const Matrix<float>& y) {
  return x.data.size() == y.data.size() &&
         std::memcmp(x.data.data(), y.data.data(), x.data.size() * sizeof(float)) == 0;
}

// The sums of |a||b|, and |start|: what rounding errors are relative to.
template <typename E>
Matrix<float> magnitudes(Case<E> c) {
  for (Matrix<E>* m : {&c.a, &c.b}) {
    for (E& value : m->data) value = from_float<E>(std::abs(to_float(value)));
  }
  for (float& value : c.start.data) value = std::abs(value);
  return reference(c);
}

// Two sums of the same terms in different orders differ by at most 2 P u times the sum of
// magnitudes; a result stored as bf16 may round to the neighbour.
template <typename E>
void expect_close(const Case<E>& c, const Matrix<float>& got, const Matrix<float>& truth,
                  const Matrix<float>& magnitude) {
  const double terms = static_cast<double>(Case<E>::contracted(c.product, c.problem)) + 1;
  const bool narrow = stores_element(c.product) && std::is_same_v<E, bf16>;
  for (size_t place = 0; place < got.data.size(); ++place) {
    const int64_t i = static_cast<int64_t>(place) / got.ld,
                  j = static_cast<int64_t>(place) % got.ld;
    const double g = got.data[place], t = truth.data[place];
    if (j >= got.columns || i >= got.rows) {
      ASSERT_EQ(g, kCanary) << c.text() << ": wrote behind row " << i;
      continue;
    }
    double bound = 2 * terms * std::ldexp(1.0, -24) * magnitude.data[place] + 1e-37;
    if (narrow) bound += std::ldexp(std::abs(t), -7);
    if (!(std::abs(g - t) <= bound)) {
      FAIL() << c.text() << " at " << i << "," << j << ": " << g << " is not " << t << " within "
             << bound;
    }
  }
}

// Every instruction set of this machine, the highest first: the first use fixes oneDNN's for the
// process, so that the lower one is tested in a process of its own (OnednnTest).
std::vector<Isa> machine_isas() {
  const auto cpu = cpu_isa();
  EXPECT_TRUE(cpu.ok());
  std::vector<Isa> isas;
  for (int i = static_cast<int>((*cpu)->chosen); i >= 0; --i) isas.push_back(static_cast<Isa>(i));
  return isas;
}

template <typename E>
std::unique_ptr<Gemm<E>> gemm_of(ThreadPool* pool, Isa isa) {
  auto gemm = Gemm<E>::create(pool, isa);
  EXPECT_TRUE(gemm.ok()) << gemm.error().message();
  return std::move(*gemm);
}

const Problem kOddProblems[] = {
    {1, 1, 1},    {1, 1, 7},     {7, 1, 1},     {1, 13, 1},    {2, 3, 5},     {17, 31, 13},
    {16, 32, 64}, {14, 32, 256}, {15, 33, 257}, {1, 960, 64},  {37, 67, 960}, {101, 16, 2},
    {5, 97, 1},   {64, 48, 300}, {260, 530, 3}, {3, 530, 260}, {3, 260, 530}};

template <typename E>
class GemmTest : public ::testing::Test {};
using Elements = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(GemmTest, Elements);

template <typename E>
std::vector<std::unique_ptr<Gemm<E>>> machine_gemms(ThreadPool* pool) {
  std::vector<std::unique_ptr<Gemm<E>>> gemms;
  for (const Isa isa : machine_isas()) gemms.push_back(gemm_of<E>(pool, isa));
  return gemms;
}

// Bit by bit where the implementation promises one chain, else within what rounding can do.
template <typename E>
void expect_reference(const std::vector<std::unique_ptr<Gemm<E>>>& gemms, const Case<E>& c) {
  const Matrix<float> truth = reference(c);
  for (const auto& gemm : gemms) {
    SCOPED_TRACE(gemm->name());
    const Matrix<float> got = computed(*gemm, c);
    if (!gemm->one_order()) {
      expect_close(c, got, truth, magnitudes(c));
    } else if (!same_bits(got, truth)) {
      ADD_FAILURE() << c.text() << ": not the bits of one chain";
    }
  }
}

TYPED_TEST(GemmTest, AgreesWithTheReference) {
  using E = TypeParam;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto pool = pool_of(2);
  const auto gemms = machine_gemms<E>(pool.get());
  for (const Problem& problem : kOddProblems) {
    for (const Product product : kProducts) {
      expect_reference(gemms, Case<E>(product, problem, random));
      if (this->HasFailure()) return;
    }
  }
}

TYPED_TEST(GemmTest, AgreesWithTheReferenceOnRandomShapes) {
  using E = TypeParam;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto pool = pool_of(2);
  const auto gemms = machine_gemms<E>(pool.get());
  std::uniform_int_distribution<int64_t> side(1, 150);
  for (int i = 0; i < 12; ++i) {
    const Problem problem{side(random), side(random), side(random)};
    expect_reference(gemms, Case<E>(kProducts[random() % std::size(kProducts)], problem, random));
    if (this->HasFailure()) return;
  }
}

TYPED_TEST(GemmTest, RepeatsItsBitsOverRunsAndThreadCounts) {
  using E = TypeParam;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  const auto one = pool_of(1), two = pool_of(2), three = pool_of(3);
  for (const Isa isa : machine_isas()) {
    for (const Product product : kProducts) {
      std::mt19937_64 random(seed);
      const Case<E> c(product, {260, 590, 330}, random);
      const auto first = gemm_of<E>(one.get(), isa);
      const Matrix<float> expected = computed(*first, c);
      EXPECT_TRUE(same_bits(expected, computed(*first, c)))
          << first->name() << " " << c.text() << ", second run";
      for (ThreadPool* pool : {two.get(), three.get()}) {
        const auto gemm = gemm_of<E>(pool, isa);
        EXPECT_TRUE(same_bits(expected, computed(*gemm, c)))
            << gemm->name() << " " << c.text() << ", " << pool->threads() << " threads";
      }
    }
  }
}

// Rows [begin, end) of the contracted operands alone, added to what is there.
template <typename E>
void add_part(Gemm<E>& gemm, const Case<E>& c, int64_t begin, int64_t end, Matrix<float>* out) {
  const auto [T, N, K] = c.problem;
  const bool accumulate = begin > 0 || accumulates(c.product);
  Status status;
  if (c.product == Product::kGradInputFloat || c.product == Product::kGradInputAdd) {
    status = gemm.grad_input_float(T, end - begin, K, c.a.begin() + begin, c.a.ld,
                                   c.b.begin() + begin * c.b.ld, c.b.ld, out->begin(), out->ld,
                                   accumulate);
  } else {
    status =
        gemm.grad_weight(end - begin, N, K, c.a.begin() + begin * c.a.ld, c.a.ld,
                         c.b.begin() + begin * c.b.ld, c.b.ld, out->begin(), out->ld, accumulate);
  }
  EXPECT_TRUE(status.ok()) << status.error().message();
}

TYPED_TEST(GemmTest, OneOrderMeansThatASplitSumHasTheSameBits) {
  using E = TypeParam;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto pool = pool_of(2);
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    if (!gemm->one_order()) continue;
    for (const Product product : {Product::kGradInputFloat, Product::kGradInputAdd,
                                  Product::kGradWeight, Product::kGradWeightAdd}) {
      const Case<E> c(product, {331, 530, 70}, random);
      const int64_t P = Case<E>::contracted(product, c.problem);
      Matrix<float> parts = c.start;
      for (int64_t begin = 0, end; begin < P; begin = end) {
        end = std::min<int64_t>(P, begin + 1 + static_cast<int64_t>(random() % 300));
        add_part(*gemm, c, begin, end, &parts);
      }
      EXPECT_TRUE(same_bits(computed(*gemm, c), parts)) << gemm->name() << " " << c.text();
    }
  }
}

// Rows [i0, i1) and columns [j0, j1) of the result alone, in the place that they have in the whole.
template <typename E>
void compute_part(Gemm<E>& gemm, const Case<E>& c, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                  Matrix<float>* out) {
  const auto [T, N, K] = c.problem;
  const E *a = c.a.begin(), *b = c.b.begin();
  float* const to = out->begin() + i0 * out->ld + j0;
  const bool add = accumulates(c.product);
  const int64_t rows = i1 - i0, columns = j1 - j0;
  Status status;
  if (c.product <= Product::kForwardFloat) {
    status = gemm.forward_float(rows, columns, K, a + i0 * c.a.ld, c.a.ld, b + j0 * c.b.ld, c.b.ld,
                                to, out->ld);
  } else if (c.product <= Product::kGradInputAdd) {
    status = gemm.grad_input_float(rows, N, columns, a + i0 * c.a.ld, c.a.ld, b + j0, c.b.ld, to,
                                   out->ld, add);
  } else {
    status = gemm.grad_weight(T, rows, columns, a + i0, c.a.ld, b + j0, c.b.ld, to, out->ld, add);
  }
  EXPECT_TRUE(status.ok()) << status.error().message();
}

// What lets owners of different rows, at any world size, get the bits that one owner of all would
// get.
TYPED_TEST(GemmTest, RowsAndColumnsDoNotDependOnTheirNeighbours) {
  using E = TypeParam;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto pool = pool_of(2);
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    if (!gemm->one_order()) continue;
    for (const Product product : kProducts) {
      if (stores_element(product)) continue;
      const Case<E> c(product, {70, 590, 300}, random);
      const Matrix<float> whole = computed(*gemm, c);
      Matrix<float> parts = c.start;
      const int64_t i = static_cast<int64_t>(random() % static_cast<uint64_t>(whole.rows - 1)) + 1;
      const int64_t j =
          static_cast<int64_t>(random() % static_cast<uint64_t>(whole.columns - 1)) + 1;
      compute_part(*gemm, c, 0, i, 0, j, &parts);
      compute_part(*gemm, c, i, whole.rows, 0, j, &parts);
      compute_part(*gemm, c, 0, i, j, whole.columns, &parts);
      compute_part(*gemm, c, i, whole.rows, j, whole.columns, &parts);
      EXPECT_TRUE(same_bits(whole, parts))
          << gemm->name() << " " << c.text() << ", cut at row " << i << " and column " << j;
    }
  }
}

// A copy of a matrix that ends where readable memory ends.
template <typename E>
class AtTheEdge {
 public:
  explicit AtTheEdge(const Matrix<E>& matrix) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    // The last row has no pad behind it.
    const size_t bytes =
        static_cast<size_t>((matrix.rows - 1) * matrix.ld + matrix.columns) * sizeof(E);
    const size_t readable = (bytes + page - 1) / page * page;
    mapped_ = readable + page;
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(memory_, MAP_FAILED);
    EXPECT_EQ(mprotect(memory_ + readable, page, PROT_NONE), 0);
    data_ = reinterpret_cast<E*>(memory_ + readable - bytes);
    std::memcpy(data_, matrix.begin(), bytes);
  }
  ~AtTheEdge() { munmap(memory_, mapped_); }
  AtTheEdge(const AtTheEdge&) = delete;
  AtTheEdge& operator=(const AtTheEdge&) = delete;
  E* data() const { return data_; }

 private:
  size_t mapped_ = 0;
  std::byte* memory_ = nullptr;
  E* data_ = nullptr;
};

// A read or write behind the last row ends the test with a segmentation fault.
TYPED_TEST(GemmTest, TouchesNothingBehindTheLastRow) {
  using E = TypeParam;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto pool = pool_of(1);
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    for (const Problem& s : {Problem{1, 1, 1}, Problem{3, 5, 7}, Problem{17, 33, 31},
                             Problem{37, 70, 43}, Problem{64, 96, 96}, Problem{33, 290, 64}}) {
      const Case<E> forward(Product::kForward, s, random), input(Product::kGradInput, s, random),
          weight(Product::kGradWeightAdd, s, random);
      const AtTheEdge<E> x(forward.a), w(forward.b), dy(input.a), w2(input.b), dy2(weight.a),
          x2(weight.b);
      const AtTheEdge<float> y(forward.start), dx(input.start), dw(weight.start);
      const AtTheEdge<E> ye(Matrix<E>(s.T, s.N, 3, 0)), dxe(Matrix<E>(s.T, s.K, 3, 0));
      const auto [T, N, K] = s;
      ASSERT_TRUE(
          gemm->forward(T, N, K, x.data(), forward.a.ld, w.data(), forward.b.ld, ye.data(), N + 3)
              .ok());
      ASSERT_TRUE(gemm->forward_float(T, N, K, x.data(), forward.a.ld, w.data(), forward.b.ld,
                                      y.data(), forward.start.ld)
                      .ok());
      ASSERT_TRUE(
          gemm->grad_input(T, N, K, dy.data(), input.a.ld, w2.data(), input.b.ld, dxe.data(), K + 3)
              .ok());
      ASSERT_TRUE(gemm->grad_input_float(T, N, K, dy.data(), input.a.ld, w2.data(), input.b.ld,
                                         dx.data(), input.start.ld, true)
                      .ok());
      ASSERT_TRUE(gemm->grad_weight(T, N, K, dy2.data(), weight.a.ld, x2.data(), weight.b.ld,
                                    dw.data(), weight.start.ld, true)
                      .ok());
    }
  }
}

TYPED_TEST(GemmTest, NonFiniteValuesReachTheirRowsAndColumnsOnly) {
  using E = TypeParam;
  std::mt19937_64 random(1);
  const auto pool = pool_of(2);
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    for (const Product product : kProducts) {
      Case<E> c(product, {37, 41, 43}, random);
      const bool dw = product >= Product::kGradWeight;
      // Element (row 3, p = 5) of A is infinite, element (p = 9, column 20) of B is NaN.
      c.a.set(dw ? 5 : 3, dw ? 3 : 5, std::numeric_limits<float>::infinity());
      c.b.set(product <= Product::kForwardFloat ? 20 : 9,
              product <= Product::kForwardFloat ? 9 : 20, kNaN);
      const Matrix<float> got = computed(*gemm, c);
      for (int64_t i = 0; i < got.rows; ++i) {
        for (int64_t j = 0; j < got.columns; ++j) {
          const float value = got.at(i, j);
          const bool fine = j == 20  ? std::isnan(value)
                            : i == 3 ? !std::isfinite(value)
                                     : std::isfinite(value);
          ASSERT_TRUE(fine) << gemm->name() << " " << c.text() << " at " << i << "," << j << ": "
                            << value;
        }
      }
    }
  }
}

TYPED_TEST(GemmTest, DenormalsAreKeptOrTakenForZero) {
  using E = TypeParam;
  const auto pool = pool_of(1);
  const float tiny = std::ldexp(1.0f, -130);  // a denormal in fp32 and in bf16
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    const std::vector<E> x(64, from_float<E>(tiny)), w(64, from_float<E>(1.0f));
    float y = kNaN;
    ASSERT_TRUE(gemm->forward_float(1, 1, 64, x.data(), 64, w.data(), 64, &y, 1).ok());
    EXPECT_TRUE(y == 0 || y == 64 * tiny) << gemm->name() << ": " << y;
    if (gemm->one_order()) {
      EXPECT_EQ(y, 64 * tiny) << gemm->name();
    }
  }
}

TYPED_TEST(GemmTest, LargeSumsOverflowToInfinity) {
  using E = TypeParam;
  const auto pool = pool_of(1);
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    const std::vector<E> x(32, from_float<E>(1e30f)), w(32, from_float<E>(1e30f));
    E y = from_float<E>(0);
    ASSERT_TRUE(gemm->forward(1, 1, 32, x.data(), 32, w.data(), 32, &y, 1).ok());
    EXPECT_EQ(to_float(y), std::numeric_limits<float>::infinity()) << gemm->name();
  }
}

TYPED_TEST(GemmTest, AnEmptySumIsZeroOrWhatWasThere) {
  using E = TypeParam;
  const auto pool = pool_of(2);
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    std::vector<float> y(6, kNaN);
    ASSERT_TRUE(gemm->forward_float(2, 3, 0, nullptr, 1, nullptr, 1, y.data(), 3).ok());
    EXPECT_EQ(y, std::vector<float>(6, 0.0f)) << gemm->name();
    y.assign(6, 2.5f);
    ASSERT_TRUE(gemm->grad_weight(0, 2, 3, nullptr, 2, nullptr, 3, y.data(), 3, true).ok());
    EXPECT_EQ(y, std::vector<float>(6, 2.5f)) << gemm->name();
    ASSERT_TRUE(gemm->forward(0, 3, 5, nullptr, 5, nullptr, 5, nullptr, 3).ok());
  }
}

TYPED_TEST(GemmTest, TheListNamesOneChosenAndAReasonForEachOther) {
  using E = TypeParam;
  const auto pool = pool_of(1);
  for (const Isa isa : machine_isas()) {
    const auto gemm = gemm_of<E>(pool.get(), isa);
    int taken = 0;
    for (const GemmCandidate& candidate : gemm->candidates()) {
      if (!candidate.skipped_because.empty()) continue;
      ++taken;
      EXPECT_EQ(candidate.name, gemm->name());
    }
    EXPECT_EQ(taken, 1) << isa_name(isa);
  }
}

// A run of this program's bf16 tests in another process, with other environment variables: its
// output, and "exit 0" at its end.
std::string run_again(const std::vector<std::string>& environment, const std::string& filter) {
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self);
  if (length <= 0) return "no /proc/self/exe";
  std::string command = "env";
  for (const std::string& variable : environment) command += " '" + variable + "'";
  command += " '" + std::string(self, static_cast<size_t>(length)) + "' '--gtest_filter=" + filter +
             "' 2>&1";
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  std::string output;
  char line[512];
  while (std::fgets(line, sizeof line, pipe) != nullptr) output += line;
  const int status = pclose(pipe);
  return output + "exit " + std::to_string(WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

// Run by the tests below in a process of their own; does nothing otherwise.
TEST(OnednnProcess, SaysWhatItTakes) {
  const auto cpu = cpu_isa();
  ASSERT_TRUE(cpu.ok());
  const auto pool = pool_of(1);
  const auto gemm = gemm_of<bf16>(pool.get(), (*cpu)->chosen);
  std::printf("takes %s\n", gemm->name().c_str());
  for (const GemmCandidate& candidate : gemm->candidates()) {
    std::printf("candidate %s: %s\n", candidate.name.c_str(), candidate.skipped_because.c_str());
  }
}

class OnednnTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto cpu = cpu_isa();
    ASSERT_TRUE(cpu.ok());
    isa_ = (*cpu)->chosen;
    if (isa_ < Isa::kAvx512Bf16) {
      GTEST_SKIP() << "skipped: oneDNN has no bf16 products below avx512_bf16, this is "
                   << isa_name(isa_) << ": " << (*cpu)->reason;
    }
    info_ = onednn_info();
    if (!info_.loaded) GTEST_SKIP() << "skipped: no oneDNN: " << info_.reason;
  }

  Isa isa_ = Isa::kAvx2;
  OnednnInfo info_;
};

TEST_F(OnednnTest, IsOpenedFromBesideTheProgramAndTaken) {
  EXPECT_FALSE(info_.version.empty());
  EXPECT_TRUE(info_.reason.empty()) << info_.reason;
  EXPECT_TRUE(info_.path.starts_with('/')) << info_.path;
  const auto pool = pool_of(1);
  EXPECT_EQ(gemm_of<bf16>(pool.get(), isa_)->name(),
            isa_ == Isa::kAmx ? "onednn-amx" : "onednn-avx512_bf16");
}

TEST_F(OnednnTest, UsesAmxAndNeverItsSlowReference) {
  if (isa_ != Isa::kAmx) GTEST_SKIP() << "skipped: no AMX";
  const std::string output = run_again({"ONEDNN_VERBOSE=1"}, "GemmTest/1.AgreesWithTheReference");
  EXPECT_TRUE(has(output, "_amx,")) << output;
  EXPECT_FALSE(has(output, "matmul,ref")) << output;
  EXPECT_TRUE(has(output, "exit 0")) << output;
}

TEST_F(OnednnTest, PassesTheSameTestsWithoutAmx) {
  const std::vector<std::string> capped = {"AMXTRAIN_MAX_ISA=avx512_bf16"};
  const std::string taken = run_again(capped, "OnednnProcess.*");
  EXPECT_TRUE(has(taken, "takes onednn-avx512_bf16")) << taken;
  EXPECT_TRUE(has(taken, "candidate onednn-amx: the instruction set is avx512_bf16")) << taken;
  const std::string output = run_again(capped, "GemmTest/1.*");
  EXPECT_TRUE(has(output, "exit 0")) << output;
}

TEST_F(OnednnTest, AMissingLibraryIsSaidAndOwnKernelsAreTaken) {
  const std::string output =
      run_again({"AMXTRAIN_DNNL_LIBRARY=/nonexistent/libdnnl.so"}, "OnednnProcess.*");
  EXPECT_TRUE(has(output, "takes fma-avx512")) << output;
  EXPECT_TRUE(has(output, std::string("candidate onednn-") + isa_name(isa_) +
                              ": '/nonexistent/libdnnl.so' could not be opened"))
      << output;
}

TEST_F(OnednnTest, AnotherLibraryIsRefused) {
  const std::string output = run_again({"AMXTRAIN_DNNL_LIBRARY=libm.so.6"}, "OnednnProcess.*");
  EXPECT_TRUE(has(output, "takes fma-avx512")) << output;
  EXPECT_TRUE(has(output, "libm.so.6' has no function dnnl_")) << output;
}

TEST_F(OnednnTest, ACapOfItsOwnIsSaid) {
  const std::string output = run_again({"ONEDNN_MAX_CPU_ISA=AVX2"}, "OnednnProcess.*");
  EXPECT_TRUE(has(output, "takes fma-avx512")) << output;
  EXPECT_TRUE(has(output, "(ONEDNN_MAX_CPU_ISA is set)")) << output;
}

TEST_F(OnednnTest, ASecondInstructionSetIsRefused) {
  if (isa_ != Isa::kAmx) GTEST_SKIP() << "skipped: no AMX";
  const auto pool = pool_of(1);
  const auto first = gemm_of<bf16>(pool.get(), isa_);
  const auto second = gemm_of<bf16>(pool.get(), Isa::kAvx512Bf16);
  EXPECT_EQ(second->name(), "fma-avx512");
  EXPECT_EQ(second->candidates()[1].skipped_because,
            "oneDNN was first used with amx in this process, and avx512_bf16 is asked");
}

TEST_F(OnednnTest, AFailureNamesShapesTypesAndInstructionSet) {
  const auto pool = pool_of(1);
  const auto gemm = gemm_of<bf16>(pool.get(), isa_);
  const std::vector<bf16> x(64), w(64);
  std::vector<float> y(64);
  // Rows of the result that overlap.
  const Status status = gemm->forward_float(3, 5, 7, x.data(), 7, w.data(), 7, y.data(), 2);
  ASSERT_FALSE(status.ok());
  for (const char* part :
       {"oneDNN", isa_name(isa_), "forward", "3 x 5 x 7", "7, 7, 2", "bf16 x bf16 -> f32"}) {
    EXPECT_TRUE(has(status.error().message(), part)) << status.error().message();
  }
}

TEST_F(OnednnTest, ManyShapesDoNotPileUp) {
  const auto pool = pool_of(1);
  const auto gemm = gemm_of<bf16>(pool.get(), isa_);
  const std::vector<bf16> x(600, to_bf16(1)), w(600, to_bf16(1));
  for (int64_t K = 1; K <= 600; ++K) {
    float y = 0;
    ASSERT_TRUE(gemm->forward_float(1, 1, K, x.data(), K, w.data(), K, &y, 1).ok());
    ASSERT_EQ(y, static_cast<float>(K));
  }
}

TEST(Transpose, MovesEveryElementAndNothingElse) {
  const auto cpu = cpu_isa();
  ASSERT_TRUE(cpu.ok());
  if ((*cpu)->chosen < Isa::kAvx512) GTEST_SKIP() << "skipped: no AVX-512: " << (*cpu)->reason;
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {1, 40}, {40, 1}, {15, 31}, {16, 32}, {17, 33}, {33, 65}, {64, 96}, {100, 7}}) {
    const int64_t ld_from = columns + 3, ld_to = rows + 5;
    std::vector<bf16> from(static_cast<size_t>(rows * ld_from)),
        to(static_cast<size_t>(columns * ld_to), bf16{0xFFFF});
    for (size_t i = 0; i < from.size(); ++i) from[i] = bf16{static_cast<uint16_t>(i)};
    transpose_avx512(rows, columns, from.data(), ld_from, to.data(), ld_to);
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = 0; i < ld_to; ++i) {
        const uint16_t expected =
            i < rows ? static_cast<uint16_t>(i * ld_from + j) : uint16_t{0xFFFF};
        ASSERT_EQ(to[static_cast<size_t>(j * ld_to + i)].bits, expected)
            << rows << " x " << columns << " at " << i << "," << j;
      }
    }
  }
}

}  // namespace
}  // namespace amxt::kernels
