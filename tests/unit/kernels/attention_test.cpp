#include "kernels/attention.h"

#include <memory>
#include <optional>

#include "kernel_data.h"

namespace amxt::kernels {
namespace {

std::unique_ptr<ThreadPool> pool_of(int threads) {
  ThreadPool::Options options;
  options.threads = threads;
  options.spin_us = 0;
  auto pool = ThreadPool::create(options);
  EXPECT_TRUE(pool.ok());
  return std::move(pool.value());
}

// T, H, G, C, and about how many tokens a document has (0: one document).
struct Dimensions {
  int64_t tokens, heads, kv_heads, head_dim, document;
};

std::string to_string(const Dimensions& d) {
  return "T " + std::to_string(d.tokens) + ", H " + std::to_string(d.heads) + ", G " +
         std::to_string(d.kv_heads) + ", C " + std::to_string(d.head_dim) + ", documents of " +
         std::to_string(d.document);
}

// One problem: q, k and v as parts of one matrix, the results as parts of others with gaps between the rows.
template <typename E>
struct Problem {
  Problem(Dimensions d, Random& random)
      : dims(d),
        qkv(d.tokens, (d.heads + 2 * d.kv_heads) * d.head_dim, 5, random),
        dout(d.tokens, d.heads * d.head_dim, 3, random),
        out(d.tokens, d.heads * d.head_dim, 7),
        dqkv(d.tokens, (d.heads + 2 * d.kv_heads) * d.head_dim, 9),
        lse(static_cast<size_t>(d.heads * d.tokens), Rows<E>::kUntouched) {
    int32_t start = 0;
    for (int64_t t = 0; t < d.tokens; ++t) {
      if (d.document != 0 && random.between(1, d.document) == 1) start = static_cast<int32_t>(t);
      document_start.push_back(start);
    }
  }
  AttentionShape shape() const {
    AttentionShape s;
    s.tokens = dims.tokens;
    s.heads = dims.heads;
    s.kv_heads = dims.kv_heads;
    s.head_dim = dims.head_dim;
    s.scale = 1 / std::sqrt(static_cast<float>(dims.head_dim));
    s.document_start = document_start.data();
    return s;
  }
  int64_t keys() const { return dims.heads * dims.head_dim; }
  int64_t values() const { return (dims.heads + dims.kv_heads) * dims.head_dim; }

  void forward(ThreadPool& pool, Isa isa) {
    const Aligned scratch(attention_scratch_bytes(shape(), pool.threads()));
    attention_forward<E>(pool, isa, shape(), qkv.begin(), qkv.ld, qkv.begin() + keys(), qkv.ld,
                         qkv.begin() + values(), qkv.ld, out.begin(), out.ld, lse.data(),
                         scratch.data());
  }
  void backward(ThreadPool& pool, Isa isa) {
    const Aligned scratch(attention_scratch_bytes(shape(), pool.threads()));
    attention_backward<E>(pool, isa, shape(), qkv.begin(), qkv.ld, qkv.begin() + keys(), qkv.ld,
                          qkv.begin() + values(), qkv.ld, out.begin(), out.ld, lse.data(),
                          dout.begin(), dout.ld, dqkv.begin(), dqkv.ld, dqkv.begin() + keys(),
                          dqkv.ld, dqkv.begin() + values(), dqkv.ld, scratch.data());
  }
  Dimensions dims;
  Rows<E> qkv, dout, out, dqkv;
  std::vector<float> lse;
  std::vector<int32_t> document_start;
};

template <typename E>
struct Truth {
  explicit Truth(const Problem<E>& p)
      : out(p.dims.tokens, p.keys(), 0),
        dq(out),
        dk(p.dims.tokens, p.dims.kv_heads * p.dims.head_dim, 0),
        dv(dk),
        lse(p.lse.size()) {
    attention_forward_ref<E>(p.shape(), p.qkv.begin(), p.qkv.ld, p.qkv.begin() + p.keys(), p.qkv.ld,
                             p.qkv.begin() + p.values(), p.qkv.ld, out.begin(), lse.data());
    attention_backward_ref<E>(p.shape(), p.qkv.begin(), p.qkv.ld, p.qkv.begin() + p.keys(),
                              p.qkv.ld, p.qkv.begin() + p.values(), p.qkv.ld, p.dout.begin(),
                              p.dout.ld, dq.begin(), dk.begin(), dv.begin());
  }
  Rows<float> out, dq, dk, dv;
  std::vector<float> lse;
};

// Columns [first, first + expected.dim) of `actual`, against the largest magnitude of the truth.
template <typename E>
void expect_close(const Rows<E>& actual, int64_t first, const Rows<float>& expected,
                  const char* what) {
  float largest = 1;  // the scale of the operands: where the truth is 0, what is left is rounding
  for (const float value : expected.data) largest = std::max(largest, std::fabs(value));
  EXPECT_TRUE(actual.gaps_untouched()) << what << ": wrote between rows";
  for (int64_t t = 0; t < expected.rows; ++t) {
    for (int64_t i = 0; i < expected.dim; ++i) {
      // bf16: the result rounded, and `out` rounded within delta.
      const float relative = sizeof(E) == 2 ? 0x1p-8f : 1e-5f;
      const float absolute = sizeof(E) == 2 ? 1e-2f : 1e-5f;
      ASSERT_TRUE(near_enough(actual.value(t, first + i), expected.value(t, i), relative,
                              absolute * largest))
          << what << " of token " << t << ", element " << i;
    }
  }
}

// Both sides of a block and of a vector; every width of head; groups of 1 to 9; documents shorter and longer than a block.
const std::vector<Dimensions>& problems() {
  static const std::vector<Dimensions> all = {
      {1, 1, 1, 2, 0},     {1, 4, 2, 64, 0},     {2, 2, 1, 16, 2},     {63, 2, 2, 64, 0},
      {64, 4, 1, 64, 20},  {65, 4, 2, 64, 0},    {65, 1, 1, 80, 7},    {97, 9, 1, 6, 0},
      {100, 6, 3, 96, 3},  {128, 2, 1, 128, 0},  {129, 3, 3, 48, 70},  {131, 5, 1, 10, 1},
      {150, 7, 7, 34, 40}, {190, 2, 1, 256, 90}, {200, 12, 4, 18, 30}, {257, 2, 2, 22, 200},
  };
  return all;
}

template <typename E>
class AttentionTest : public ::testing::Test {};
using Elements = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(AttentionTest, Elements);

TYPED_TEST(AttentionTest, IsTheReferenceWithTheSameBitsOnAllThreadsAndInstructionSets) {
  using E = TypeParam;
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (const int threads : {1, 2, 3}) pools.push_back(pool_of(threads));
  for (const Dimensions& dims : problems()) {
    Random random(fresh_seed());
    SCOPED_TRACE(random.name() + ": " + to_string(dims));
    const Problem<E> untouched(dims, random);
    const Truth<E> truth(untouched);
    std::optional<Problem<E>> first;
    for (const Isa isa : isas()) {
      for (const auto& pool : pools) {
        SCOPED_TRACE(std::string(isa_name(isa)) + ", threads " + std::to_string(pool->threads()));
        Problem<E> p(untouched);
        p.forward(*pool, isa);
        p.backward(*pool, isa);
        if (first) {
          EXPECT_TRUE(same_bits(p.out.data, first->out.data)) << "out";
          EXPECT_TRUE(same_bits(p.lse, first->lse)) << "lse";
          EXPECT_TRUE(same_bits(p.dqkv.data, first->dqkv.data)) << "dq, dk, dv";
          continue;
        }
        expect_near(p.lse, truth.lse, 1e-5f, 1e-5f, "lse");
        expect_close(p.out, 0, truth.out, "out");
        expect_close(p.dqkv, 0, truth.dq, "dq");
        expect_close(p.dqkv, p.keys(), truth.dk, "dk");
        expect_close(p.dqkv, p.values(), truth.dv, "dv");
        if (this->HasFatalFailure()) return;
        first.emplace(std::move(p));
      }
    }
  }
}

TEST(AttentionReference, BackwardIsTheSlopeOfTheForward) {
  Random random(fresh_seed());
  SCOPED_TRACE(random.name());
  Problem<float> p({9, 4, 2, 4, 4}, random);
  const Truth<float> truth(p);
  const auto loss = [&] {
    const Truth<float> now(p);
    double sum = 0;
    for (int64_t t = 0; t < 9; ++t) {
      for (int64_t i = 0; i < p.keys(); ++i)
        sum += double(now.out.value(t, i)) * double(p.dout.value(t, i));
    }
    return sum;
  };
  const auto expect_slope = [&](int64_t t, int64_t column, float gradient, const char* what) {
    const float before = p.qkv.at(t, column), step = 0x1p-6f;
    p.qkv.at(t, column) = before + step;
    const double high = loss();
    p.qkv.at(t, column) = before - step;
    const double low = loss();
    p.qkv.at(t, column) = before;
    EXPECT_NEAR((high - low) / (2 * double(step)), double(gradient), 5e-3)
        << what << " " << t << ", " << column;
  };
  for (int64_t t = 0; t < 9; ++t) {
    const int64_t i = random.between(0, 15), j = random.between(0, 7);
    expect_slope(t, i, truth.dq.value(t, i), "dq");
    expect_slope(t, p.keys() + j, truth.dk.value(t, j), "dk");
    expect_slope(t, p.values() + j, truth.dv.value(t, j), "dv");
  }
}

// A document alone and the same document among others: the same values, but for the blocks that it is cut in.
TYPED_TEST(AttentionTest, DocumentsDoNotSeeEachOther) {
  using E = TypeParam;
  const auto pool = pool_of(2);
  for (const Isa isa : isas()) {
    Random random(fresh_seed());
    SCOPED_TRACE(random.name());
    Problem<E> packed({150, 4, 2, 32, 0}, random);
    for (int64_t t = 40; t < 150; ++t) packed.document_start[size_t(t)] = t < 107 ? 40 : 107;
    Problem<E> other(packed);
    for (int64_t t = 0; t < 150; ++t) {
      if (t >= 40 && t < 107) continue;
      for (int64_t i = 0; i < other.qkv.dim; ++i)
        other.qkv.at(t, i) = from_float<E>(random.normal(9));
      for (int64_t i = 0; i < other.dout.dim; ++i)
        other.dout.at(t, i) = from_float<E>(random.normal(9));
    }
    for (Problem<E>* p : {&packed, &other}) {
      p->forward(*pool, isa);
      p->backward(*pool, isa);
    }
    for (int64_t t = 40; t < 107; ++t) {
      EXPECT_EQ(0, std::memcmp(&packed.out.at(t, 0), &other.out.at(t, 0),
                               size_t(packed.out.dim) * sizeof(E)))
          << t;
      EXPECT_EQ(0, std::memcmp(&packed.dqkv.at(t, 0), &other.dqkv.at(t, 0),
                               size_t(packed.dqkv.dim) * sizeof(E)))
          << t;
    }
  }
}

TYPED_TEST(AttentionTest, ATokenAloneInItsDocumentPassesItsValueThrough) {
  using E = TypeParam;
  const auto pool = pool_of(1);
  for (const Isa isa : isas()) {
    Random random(fresh_seed());
    Problem<E> p({70, 4, 2, 6, 1}, random);  // documents of one token
    p.forward(*pool, isa);
    p.backward(*pool, isa);
    for (int64_t t = 0; t < 70; ++t) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t c = 0; c < 6; ++c) {
          ASSERT_EQ(p.out.value(t, h * 6 + c), p.qkv.value(t, p.values() + h / 2 * 6 + c))
              << random.name();
        }
      }
    }
  }
}

TYPED_TEST(AttentionTest, LargeScoresNeitherOverflowNorVanish) {
  using E = TypeParam;
  const auto pool = pool_of(2);
  for (const Isa isa : isas()) {
    Random random(fresh_seed());
    SCOPED_TRACE(random.name());
    Problem<E> p({140, 2, 1, 16, 0}, random);
    for (int64_t t = 0; t < 140; ++t) {  // queries and keys so long that exp(score) is infinite
      for (int64_t i = 0; i < p.values(); ++i) p.qkv.at(t, i) = from_float<E>(random.normal(60));
    }
    p.forward(*pool, isa);
    p.backward(*pool, isa);
    const Truth<E> truth(p);
    expect_near(p.lse, truth.lse, 1e-5f, 1e-3f, "lse");
    for (const E& value : p.dqkv.data) ASSERT_TRUE(std::isfinite(to_float(value)));
    // The largest scores are thousands: their rounding in fp32 moves probabilities by 1e-3.
    for (int64_t t = 0; t < 140; ++t) {
      for (int64_t i = 0; i < p.keys(); ++i) {
        ASSERT_NEAR(p.out.value(t, i), truth.out.value(t, i), 2e-2f) << t << ", " << i;
      }
    }
  }
}

TYPED_TEST(AttentionTest, NaNReachesThoseWhoSeeItAndNoOtherDocumentOrHead) {
  using E = TypeParam;
  const auto pool = pool_of(1);
  for (const Isa isa : isas()) {
    Random random(fresh_seed());
    SCOPED_TRACE(random.name());
    Problem<E> p({128, 2, 2, 16, 0}, random);
    for (size_t t = 64; t < 128; ++t) p.document_start[t] = 64;
    p.qkv.at(70, p.keys() + 3) = from_float<E>(kNaN);  // key of token 70, head 0
    p.forward(*pool, isa);
    for (int64_t t = 0; t < 128; ++t) {
      EXPECT_EQ(std::isnan(p.out.value(t, 0)), t >= 70) << t;
      EXPECT_FALSE(std::isnan(p.out.value(t, 16))) << t;
      EXPECT_EQ(std::isnan(p.lse[size_t(t)]), t >= 70) << t;
    }
  }
}

TEST(AttentionScratch, GrowsWithTokensNotWithTheirSquare) {
  const std::vector<int32_t> start(65536, 0);
  const auto bytes = [&](int64_t tokens, int threads) {
    AttentionShape shape;
    shape.tokens = tokens;
    shape.heads = 32;
    shape.kv_heads = 8;
    shape.head_dim = 128;
    shape.document_start = start.data();
    return attention_scratch_bytes(shape, threads);
  };
  for (const int threads : {1, 2, 8, 60}) {
    const int64_t once = bytes(8192, threads) - bytes(4096, threads);
    EXPECT_LE(bytes(16384, threads) - bytes(8192, threads), 2 * once);
    EXPECT_LE(bytes(4096, threads), 4096 * 32 * 4 + threads * (2 * 4096 * 128 * 4 + (2 << 20)));
  }
}

}  // namespace
}  // namespace amxt::kernels
