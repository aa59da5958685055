// Every transport passes the same suite: a case is a way to run ranks that have a communicator each.
#include "comm/collectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "comm/gloo_wire.h"
#include "support/device_ranks.h"
#include "support/thread_group.h"

namespace amxt::comm {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr int64_t kSecond = 1'000'000'000;

using Limits = Collectives::Limits;
Limits soon() { return {Deadline::after(60 * kSecond), nullptr}; }
Limits within(int64_t ns) { return {Deadline::after(ns), nullptr}; }

Result<std::unique_ptr<Collectives>> by_way_of_gpu(Group& group,
                                                   std::unique_ptr<Collectives> host) {
  auto gpu = std::make_shared<test::Gpu>();
  AMXT_ASSIGN(auto nccl, test::make_nccl(group, std::move(host), *gpu, soon()));
  return watch_collectives(std::make_unique<test::ByWayOfGpu>(std::move(gpu), std::move(nccl)),
                           nullptr);
}

struct Case {
  const char* name;
  // The node of each rank of a world of that size.
  std::function<std::vector<int>(int world)> nodes;
  bool over_gloo = false;
  const char* transport = "shm";  // of a world of four
  bool on_gpus = false;           // of the stub, or real ones (support/device_ranks.h)
  friend void PrintTo(const Case& printed, std::ostream* out) { *out << printed.name; }

  using Body = std::function<void(Collectives&)>;
  void run(int world, const Body& body) const {
    if (on_gpus && test::real_nccl() && world > test::Gpu().count()) return;
    test::ThreadGroups groups(nodes(world));
    if (over_gloo) {
      groups.set_wire_maker([](Group& group, const Limits& limits) {
        return make_gloo_wire(group, nullptr, limits);
      });
    }
    groups.run([&](Group& group) {
      auto made = make_collectives(group, {}, nullptr, Deadline::after(60 * kSecond));
      if (!made) {
        ADD_FAILURE() << made.error().message();
        return;
      }
      if (on_gpus) {
        made = by_way_of_gpu(group, std::move(*made));
        ASSERT_TRUE(made.ok()) << made.error().message();
      }
      body(**made);
      // In peace, unless the test was about an end.
      (void)group.barrier(Deadline::after(60 * kSecond));
    });
  }
};

std::vector<int> on_one_node(int world) { return std::vector<int>(static_cast<size_t>(world)); }
std::vector<int> on_a_node_each(int world) {
  std::vector<int> nodes(static_cast<size_t>(world));
  std::iota(nodes.begin(), nodes.end(), 0);
  return nodes;
}
// 3 and the rest: nodes of unequal sizes.
std::vector<int> on_uneven_nodes(int world) {
  std::vector<int> nodes;
  for (int rank = 0; rank < world; ++rank) nodes.push_back(rank < (world + 2) / 3 ? 0 : 1);
  return nodes;
}
std::vector<int> dealt_to_nodes(int world) {
  std::vector<int> nodes;
  for (int rank = 0; rank < world; ++rank) nodes.push_back(rank % 3 == 0 ? 0 : rank % 3);
  return nodes;
}

class CollectivesTest : public ::testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Transports, CollectivesTest,
                         ::testing::Values(Case{"Shm", on_one_node, false, "shm"},
                                           Case{"Wire", on_a_node_each, false, "memory"},
                                           Case{"Gloo", on_a_node_each, true, "gloo"},
                                           Case{"ShmAndWire", on_uneven_nodes, false, "shm+memory"},
                                           Case{"ShmAndGloo", dealt_to_nodes, true, "shm+gloo"},
                                           Case{"Nccl", on_one_node, false, "nccl", true}),
                         [](const auto& chosen) { return std::string(chosen.param.name); });

// --- Values -----------------------------------------------------------------------------------

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16,
                            DType::kI32, DType::kI64,  DType::kU8};
constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kAvg};
constexpr int kWorlds[] = {1, 2, 3, 4, 7, 8};

// Written by hand, not by the instruction under test.
uint16_t to_f16(float value) {
  if (value == 0) return std::signbit(value) ? 0x8000 : 0;
  int exponent = 0;
  const float fraction = std::frexp(std::fabs(value), &exponent);                // [0.5, 1)
  const auto mantissa = static_cast<uint32_t>(std::nearbyint(fraction * 2048));  // 11 bits
  uint32_t bits = static_cast<uint32_t>(exponent + 14) << 10;
  bits += mantissa - 1024;  // carries into the exponent as it should
  return static_cast<uint16_t>(bits | (value < 0 ? 0x8000 : 0));
}

void put(std::vector<uint8_t>& bytes, DType dtype, size_t index, double value) {
  uint8_t* const at = bytes.data() + index * static_cast<size_t>(dtype_bytes(dtype));
  const auto store = [at](auto v) { std::memcpy(at, &v, sizeof v); };
  switch (dtype) {
    case DType::kF32:
      return store(static_cast<float>(value));
    case DType::kBF16:
      return store(to_bf16(static_cast<float>(value)).bits);
    case DType::kF16:
      return store(to_f16(static_cast<float>(value)));
    case DType::kI32:
      return store(static_cast<int32_t>(value));
    case DType::kI64:
      return store(static_cast<int64_t>(value));
    default:
      return store(static_cast<uint8_t>(value));
  }
}

// Small whole numbers, whose sums are exact in every type and order; what differs then is a bug.
double value_of(uint64_t seed, int rank, size_t index, DType dtype) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(rank) * 0xbf58476d1ce4e5b9u +
               index * 0x94d049bb133111ebu;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 32;
  const auto small = static_cast<int>(x % 17);
  return dtype == DType::kU8 ? small : small - 8;
}

std::vector<uint8_t> values(uint64_t seed, int rank, size_t count, DType dtype) {
  std::vector<uint8_t> bytes(count * static_cast<size_t>(dtype_bytes(dtype)));
  for (size_t i = 0; i < count; ++i) put(bytes, dtype, i, value_of(seed, rank, i, dtype));
  return bytes;
}

std::vector<uint8_t> reduced(uint64_t seed, int world, size_t begin, size_t end, DType dtype,
                             ReduceOp op) {
  std::vector<uint8_t> bytes((end - begin) * static_cast<size_t>(dtype_bytes(dtype)));
  for (size_t i = begin; i < end; ++i) {
    double result = value_of(seed, 0, i, dtype);
    for (int rank = 1; rank < world; ++rank) {
      const double next = value_of(seed, rank, i, dtype);
      if (op == ReduceOp::kMax) {
        result = std::max(result, next);
      } else if (op == ReduceOp::kMin) {
        result = std::min(result, next);
      } else {
        result += next;
      }
    }
    if (op == ReduceOp::kAvg) {
      result = dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16
                   ? static_cast<float>(result) / static_cast<float>(world)
                   : std::trunc(result / world);
    }
    put(bytes, dtype, i - begin, result);
  }
  return bytes;
}

std::vector<int64_t> random_counts(uint64_t seed, int world, int64_t most) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> counts;
  for (int rank = 0; rank < world; ++rank) {
    counts.push_back(
        random() % 4 == 0 ? 0 : static_cast<int64_t>(random() % static_cast<uint64_t>(most + 1)));
  }
  return counts;
}

int64_t sum(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}
int64_t before(const std::vector<int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

#define ASSERT_DONE(expression)                         \
  do {                                                  \
    const Status done_ = (expression);                  \
    ASSERT_TRUE(done_.ok()) << done_.error().message(); \
  } while (false)

// --- The suite --------------------------------------------------------------------------------

TEST_P(CollectivesTest, NamesItsTransport) {
  GetParam().run(4, [&](Collectives& all) {
    EXPECT_STREQ(all.transport(), GetParam().transport);
    EXPECT_EQ(all.size(), 4);
  });
  const char* const alone = GetParam().on_gpus ? "nccl" : "none";
  GetParam().run(1, [&](Collectives& all) { EXPECT_STREQ(all.transport(), alone); });
}

TEST_P(CollectivesTest, AllReducesEveryTypeAndOperation) {
  for (const int world : kWorlds) {
    GetParam().run(world, [&](Collectives& all) {
      for (const DType dtype : kTypes) {
        for (const ReduceOp op : kOps) {
          for (const size_t count : {size_t{0}, size_t{1}, size_t{33}, size_t{1001}}) {
            const auto send = values(count, all.rank(), count, dtype);
            std::vector<uint8_t> got(send.size(), 0xEE);
            ASSERT_DONE(all.all_reduce(send.data(), got.data(), static_cast<int64_t>(count), dtype,
                                       op, soon()));
            ASSERT_EQ(got, reduced(count, world, 0, count, dtype, op))
                << world << " ranks, " << count << " " << dtype_name(dtype) << ", "
                << reduce_op_name(op);
            EXPECT_EQ(send, values(count, all.rank(), count, dtype)) << "what is sent stays";
          }
        }
      }
    });
  }
}

TEST_P(CollectivesTest, AllReducesLargeArraysInPlace) {
  for (const int world : {2, 3, 8}) {
    GetParam().run(world, [&](Collectives& all) {
      // The last one has more chunks than are under way at a time, on a wire too.
      for (const size_t count :
           {size_t{70'001}, world == 2 ? size_t{3'000'003} : size_t{1'000'003}}) {
        const DType dtype = count > 100'000 ? DType::kF32 : DType::kBF16;
        auto data = values(3, all.rank(), count, dtype);
        ASSERT_DONE(all.all_reduce(data.data(), data.data(), static_cast<int64_t>(count), dtype,
                                   ReduceOp::kSum, soon()));
        ASSERT_TRUE(data == reduced(3, world, 0, count, dtype, ReduceOp::kSum)) << world;
      }
    });
  }
}

TEST_P(CollectivesTest, GathersUnequalParts) {
  for (const int world : kWorlds) {
    GetParam().run(world, [&](Collectives& all) {
      for (uint64_t seed = 1; seed <= 4; ++seed) {
        const DType dtype = kTypes[seed % std::size(kTypes)];
        const auto counts = random_counts(seed * 77 + static_cast<uint64_t>(world), world,
                                          seed == 4 ? 300'000 : 500);
        std::vector<uint8_t> expected;
        for (int rank = 0; rank < world; ++rank) {
          const auto part =
              values(seed, rank, static_cast<size_t>(counts[static_cast<size_t>(rank)]), dtype);
          expected.insert(expected.end(), part.begin(), part.end());
        }
        const auto own = values(
            seed, all.rank(), static_cast<size_t>(counts[static_cast<size_t>(all.rank())]), dtype);
        std::vector<uint8_t> got(expected.size(), 0xEE);
        ASSERT_DONE(all.all_gather(own.data(), got.data(), counts, dtype, soon()));
        ASSERT_TRUE(got == expected) << "seed " << seed << ", " << world << " ranks";

        std::fill(got.begin(), got.end(), uint8_t{0xEE});
        uint8_t* const place = got.data() + before(counts, all.rank()) * dtype_bytes(dtype);
        std::copy(own.begin(), own.end(), place);
        ASSERT_DONE(all.all_gather(place, got.data(), counts, dtype, soon()));
        ASSERT_TRUE(got == expected) << "in place, seed " << seed << ", " << world << " ranks";
      }
    });
  }
}

TEST_P(CollectivesTest, ReduceScattersUnequalParts) {
  for (const int world : kWorlds) {
    GetParam().run(world, [&](Collectives& all) {
      for (uint64_t seed = 1; seed <= 6; ++seed) {
        const DType dtype = kTypes[seed % std::size(kTypes)];
        const ReduceOp op = kOps[seed % std::size(kOps)];
        const auto counts = random_counts(seed * 31 + static_cast<uint64_t>(world), world,
                                          seed == 6 ? 200'000 : 500);
        const auto whole = static_cast<size_t>(sum(counts));
        const auto begin = static_cast<size_t>(before(counts, all.rank()));
        const auto count = static_cast<size_t>(counts[static_cast<size_t>(all.rank())]);
        const auto expected = reduced(seed, world, begin, begin + count, dtype, op);
        auto send = values(seed, all.rank(), whole, dtype);
        std::vector<uint8_t> got(expected.size(), 0xEE);
        ASSERT_DONE(all.reduce_scatter(send.data(), got.data(), counts, dtype, op, soon()));
        ASSERT_TRUE(got == expected) << "seed " << seed << ", " << world << " ranks, "
                                     << dtype_name(dtype) << " " << reduce_op_name(op);

        uint8_t* const place = send.data() + begin * static_cast<size_t>(dtype_bytes(dtype));
        ASSERT_DONE(all.reduce_scatter(send.data(), place, counts, dtype, op, soon()));
        ASSERT_TRUE(std::equal(expected.begin(), expected.end(), place))
            << "in place, seed " << seed << ", " << world << " ranks";
      }
    });
  }
}

TEST_P(CollectivesTest, BroadcastsFromEveryRoot) {
  for (const int world : kWorlds) {
    GetParam().run(world, [&](Collectives& all) {
      for (int root = 0; root < world; ++root) {
        for (const size_t count : {size_t{0}, size_t{5}, size_t{70'001}, size_t{2'200'001}}) {
          if (count > 100'000 && root != world - 1) continue;
          const auto expected = values(9, root, count, DType::kBF16);
          auto data = values(9, all.rank(), count, DType::kBF16);
          ASSERT_DONE(
              all.broadcast(data.data(), static_cast<int64_t>(count), DType::kBF16, root, soon()));
          ASSERT_TRUE(data == expected) << "root " << root << " of " << world;
        }
      }
    });
  }
}

TEST_P(CollectivesTest, ExchangesAllToAllWithUnequalParts) {
  for (const int world : kWorlds) {
    GetParam().run(world, [&](Collectives& all) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        const DType dtype = kTypes[seed % std::size(kTypes)];
        const int64_t most = seed == 3 ? 90'000 : 300;
        std::vector<int64_t> out(static_cast<size_t>(world)), in(static_cast<size_t>(world));
        const auto count = [&](int from, int to) {
          return random_counts(seed * 1000 + static_cast<uint64_t>(from), world,
                               most)[static_cast<size_t>(to)];
        };
        std::vector<uint8_t> send, expected;
        for (int peer = 0; peer < world; ++peer) {
          out[static_cast<size_t>(peer)] = count(all.rank(), peer);
          in[static_cast<size_t>(peer)] = count(peer, all.rank());
          const auto message = [&](int from, int to, int64_t n) {
            return values(seed * 64 + static_cast<uint64_t>(to), from, static_cast<size_t>(n),
                          dtype);
          };
          const auto o = message(all.rank(), peer, out[static_cast<size_t>(peer)]);
          const auto i = message(peer, all.rank(), in[static_cast<size_t>(peer)]);
          send.insert(send.end(), o.begin(), o.end());
          expected.insert(expected.end(), i.begin(), i.end());
        }
        std::vector<uint8_t> got(expected.size(), 0xEE);
        ASSERT_DONE(all.all_to_all(send.data(), out, got.data(), in, dtype, soon()));
        ASSERT_TRUE(got == expected) << "seed " << seed << ", " << world << " ranks";
      }
    });
  }
}

TEST_P(CollectivesTest, SendsMessagesInOrderBothWaysAndRoundARing) {
  for (const int world : {2, 4, 7}) {
    GetParam().run(world, [&](Collectives& all) {
      const int next = (all.rank() + 1) % world, last = (all.rank() + world - 1) % world;
      for (const size_t count : {size_t{1}, size_t{0}, size_t{17}, size_t{200'003}}) {
        const auto out = values(count, all.rank(), count, DType::kI32);
        std::vector<uint8_t> in(out.size(), 0xEE);
        const auto n = static_cast<int64_t>(count);
        // Even ranks send first, so that large messages do not wait for each other.
        if (all.rank() % 2 == 0) ASSERT_DONE(all.send(out.data(), n, DType::kI32, next, soon()));
        ASSERT_DONE(all.receive(in.data(), n, DType::kI32, last, soon()));
        if (all.rank() % 2 != 0) ASSERT_DONE(all.send(out.data(), n, DType::kI32, next, soon()));
        ASSERT_TRUE(in == values(count, last, count, DType::kI32)) << count;
      }
    });
  }
}

TEST_P(CollectivesTest, ABarrierHoldsBackUntilAllHaveCome) {
  std::atomic<int> arrived{0};
  GetParam().run(5, [&](Collectives& all) {
    for (int round = 1; round <= 20; ++round) {
      ++arrived;
      ASSERT_DONE(all.barrier(soon()));
      ASSERT_GE(arrived, 5 * round);
      ASSERT_DONE(all.barrier(soon()));
    }
  });
}

TEST_P(CollectivesTest, GivesTheSameBitsOnAllRanksAndEveryTime) {
  const int world = 4;
  const size_t count = 50'003;
  std::mutex mutex;
  std::vector<std::vector<uint8_t>> results;
  for (int repeat = 0; repeat < 3; ++repeat) {
    GetParam().run(world, [&](Collectives& all) {
      std::mt19937_64 random(static_cast<uint64_t>(all.rank()));
      std::vector<float> data(count);
      for (float& value : data)
        value =
            std::ldexp(static_cast<float>(random() % 1000), static_cast<int>(random() % 30) - 15);
      ASSERT_DONE(all.all_reduce(data.data(), data.data(), static_cast<int64_t>(count), DType::kF32,
                                 ReduceOp::kSum, soon()));
      std::vector<uint8_t> bits(count * sizeof(float));
      std::memcpy(bits.data(), data.data(), bits.size());
      const std::lock_guard lock(mutex);
      results.push_back(std::move(bits));
    });
  }
  ASSERT_EQ(results.size(), 12u);
  for (const auto& result : results) EXPECT_TRUE(result == results[0]);
}

TEST_P(CollectivesTest, KeepsNaNsAndInfinities) {
  if (GetParam().on_gpus) return;  // the largest of a number and a NaN is the number there
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  GetParam().run(3, [&](Collectives& all) {
    for (const ReduceOp op : kOps) {
      // Where a NaN is: on one rank each, on none; infinities of both signs.
      const std::vector<std::vector<float>> given{
          {nan, 1, 1, inf, inf, -inf}, {1, nan, 1, 1, -inf, -inf}, {1, 1, nan, 2, 0, 5}};
      std::vector<float> data = given[static_cast<size_t>(all.rank())];
      ASSERT_DONE(all.all_reduce(data.data(), data.data(), 6, DType::kF32, op, soon()));
      for (int i = 0; i < 3; ++i)
        EXPECT_TRUE(std::isnan(data[static_cast<size_t>(i)])) << i << reduce_op_name(op);
      const bool sums = op == ReduceOp::kSum || op == ReduceOp::kAvg;
      EXPECT_EQ(data[3], op == ReduceOp::kMin ? 1 : inf);
      if (sums) {
        EXPECT_TRUE(std::isnan(data[4]));
      } else {
        EXPECT_EQ(data[4], op == ReduceOp::kMax ? inf : -inf);
      }
      EXPECT_EQ(data[5], op == ReduceOp::kMax ? 5 : -inf);
    }
    std::vector<uint16_t> halves{0x7E00, 0x7FC0};  // NaN as fp16, as bf16
    uint16_t half = all.rank() == 1 ? halves[0] : 0;
    ASSERT_DONE(all.all_reduce(&half, &half, 1, DType::kF16, ReduceOp::kMax, soon()));
    EXPECT_EQ(half & 0x7C00, 0x7C00);
    EXPECT_NE(half & 0x03FF, 0);
    uint16_t brain = all.rank() == 2 ? 0x7F81 : 0;  // a NaN that rounding would lose
    ASSERT_DONE(all.all_reduce(&brain, &brain, 1, DType::kBF16, ReduceOp::kSum, soon()));
    EXPECT_EQ(brain & 0x7F80, 0x7F80);
    EXPECT_NE(brain & 0x007F, 0);
  });
}

TEST_P(CollectivesTest, SumsOfHalvesPassTheirRangeAndAreRoundedOnce) {
  if (GetParam().on_gpus && test::real_nccl()) return;  // it adds them in its own way
  // Columns: what each rank gives, whose pairs pass 65504, cancel out, or differ by their last bit if they are rounded.
  constexpr float kGiven[4][4] = {{60000, 60000, 60000, 2048},
                                  {60000, 60000, -60000, 1},
                                  {60000, -60000, -60000, 1},
                                  {60000, -60000, 60000, 1}};
  const uint16_t sums[] = {0x7C00, 0, 0, to_f16(2052)};  // 2051 lies between 2050 and 2052
  const uint16_t averages[] = {to_f16(60000), 0, 0, to_f16(513)};
  GetParam().run(4, [&](Collectives& all) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg}) {
      const uint16_t* const expected = op == ReduceOp::kSum ? sums : averages;
      for (const size_t part : {size_t{3}, size_t{150'001}}) {  // of a rank
        std::vector<uint16_t> given(4 * part), wanted(4 * part), got(4 * part, 0xEEEE);
        for (size_t i = 0; i < given.size(); ++i) {
          given[i] = to_f16(kGiven[all.rank()][i % 4]);
          wanted[i] = expected[i % 4];
        }
        const std::vector<int64_t> counts(4, static_cast<int64_t>(part));
        ASSERT_DONE(all.reduce_scatter(given.data(), got.data(), counts, DType::kF16, op, soon()));
        const size_t begin = part * static_cast<size_t>(all.rank());
        for (size_t i = 0; i < part; ++i)
          ASSERT_EQ(got[i], wanted[begin + i]) << reduce_op_name(op) << " " << part << " " << i;
        ASSERT_EQ(got[part], 0xEEEE) << "no more than its part";
        ASSERT_DONE(all.all_reduce(given.data(), given.data(), static_cast<int64_t>(given.size()),
                                   DType::kF16, op, soon()));
        for (size_t i = 0; i < given.size(); ++i)
          ASSERT_EQ(given[i], wanted[i]) << reduce_op_name(op) << " " << part << " " << i;
      }
    }
  });
}

TEST_P(CollectivesTest, AveragesOfIntegersRoundTowardsZeroAndDoNotWrap) {
  if (GetParam().on_gpus) return;  // a GPU adds integers in their own width
  GetParam().run(4, [&](Collectives& all) {
    const int32_t plan[4][3] = {
        {-7, INT32_MAX, 7}, {0, INT32_MAX, 0}, {0, INT32_MAX, 0}, {0, INT32_MAX, 0}};
    int32_t data[3];
    std::memcpy(data, plan[all.rank()], sizeof data);
    ASSERT_DONE(all.all_reduce(data, data, 3, DType::kI32, ReduceOp::kAvg, soon()));
    EXPECT_EQ(data[0], -1);
    EXPECT_EQ(data[1], INT32_MAX);
    EXPECT_EQ(data[2], 1);
    uint8_t small = 200;
    ASSERT_DONE(all.all_reduce(&small, &small, 1, DType::kU8, ReduceOp::kAvg, soon()));
    EXPECT_EQ(small, 200);
  });
}

// --- Disagreement and endings -------------------------------------------------------------------

// Every rank calls what `call` says of it and gets kCommProtocol with all of `words`.
void expect_mismatch(const Case& param, int world,
                     const std::function<Status(Collectives&, const Limits&)>& call,
                     const std::vector<std::string>& words) {
  std::atomic<int> told{0};
  param.run(world, [&](Collectives& all) {
    const Status status = call(all, within(20 * kSecond));
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(static_cast<int>(status.error().code()),
                AnyOf(static_cast<int>(Code::kCommProtocol), static_cast<int>(Code::kCommPeerLost),
                      static_cast<int>(Code::kCommAborted)));
    if (status.error().code() == Code::kCommProtocol) ++told;
    for (const std::string& word : words) EXPECT_THAT(status.error().message(), HasSubstr(word));
    const Status later = all.barrier(within(20 * kSecond));
    ASSERT_FALSE(later.ok()) << "the communicator is dead";
  });
  EXPECT_EQ(told, world);
}

TEST_P(CollectivesTest, AMismatchIsNamedOnAllRanks) {
  std::vector<float> shared[4];
  for (auto& data : shared) data.resize(64);
  const auto data = [&](Collectives& all) { return shared[all.rank()].data(); };
  const auto even = std::vector<int64_t>{4, 4, 4, 4}, odd = std::vector<int64_t>{4, 4, 5, 3};
  expect_mismatch(GetParam(), 4,
                  [&](Collectives& all, const Limits& limits) {
                    return all.all_reduce(data(all), data(all), all.rank() == 2 ? 10 : 20,
                                          DType::kF32, ReduceOp::kSum, limits);
                  },
                  {"calls all_reduce of 20 F32, sum", "rank 2 calls all_reduce of 10 F32, sum"});
  expect_mismatch(GetParam(), 4,
                  [&](Collectives& all, const Limits& limits) {
                    return all.all_reduce(
                        data(all), data(all), 8, all.rank() == 3 ? DType::kBF16 : DType::kF32,
                        all.rank() == 3 ? ReduceOp::kMax : ReduceOp::kSum, limits);
                  },
                  {"8 F32, sum", "8 BF16, max"});
  expect_mismatch(GetParam(), 4,
                  [&](Collectives& all, const Limits& limits) {
                    return all.broadcast(data(all), 8, DType::kF32, all.rank() == 1 ? 1 : 0,
                                         limits);
                  },
                  {"root 0", "root 1"});
  expect_mismatch(GetParam(), 4,
                  [&](Collectives& all, const Limits& limits) {
                    return all.rank() == 1 ? all.barrier(limits)
                                           : all.broadcast(data(all), 8, DType::kF32, 0, limits);
                  },
                  {"calls broadcast", "calls barrier"});
  expect_mismatch(GetParam(), 4,
                  [&](Collectives& all, const Limits& limits) {
                    return all.reduce_scatter(data(all), data(all) + 32,
                                              all.rank() == 3 ? odd : even, DType::kF32,
                                              ReduceOp::kSum, limits);
                  },
                  {"with other counts per rank"});
}

TEST_P(CollectivesTest, AMismatchOfAllToAllIsNamedOnAllRanks) {
  std::vector<float> shared[4];
  for (auto& data : shared) data.resize(64);
  expect_mismatch(GetParam(), 4,
                  [&](Collectives& all, const Limits& limits) {
                    std::vector<int64_t> out{1, 1, 1, 1}, in{1, 1, 1, 1};
                    if (all.rank() == 3) out[2] = 2;
                    float* const data = shared[all.rank()].data();
                    return all.all_to_all(data, out, data + 32, in, DType::kF32, limits);
                  },
                  {"rank 3 sends 2 elements to rank 2, which expects 1"});
}

TEST_P(CollectivesTest, MessagesOfTwoSizesAreNamed) {
  std::vector<float> shared[2];
  for (auto& data : shared) data.resize(64);
  GetParam().run(2, [&](Collectives& all) {
    float* const data = shared[all.rank()].data();
    if (all.rank() == 0) {
      (void)all.send(data, 10, DType::kF32, 1, within(2 * kSecond));  // may be buffered
      return;
    }
    const Status status = all.receive(data, 12, DType::kF32, 0, within(20 * kSecond));
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kCommProtocol);
    EXPECT_THAT(status.error().message(),
                AllOf(HasSubstr("send of 10 F32"), HasSubstr("receive of 12 F32")));
  });
}

TEST_P(CollectivesTest, ASplitIsToldOfAsOne) {
  std::vector<float> shared[3];
  for (auto& data : shared) data.resize(8);
  expect_mismatch(GetParam(), 3,
                  [&](Collectives& all, const Limits& limits) -> Status {
                    if (all.rank() != 1) {
                      return all.split(all.rank() % 2, 7, limits).error();
                    }
                    float* const data = shared[1].data();
                    return all.all_reduce(data, data, 8, DType::kF32, ReduceOp::kSum, limits);
                  },
                  {"calls split with colour 0, key 7", "rank 1 calls all_reduce of 8 F32"});
}

// Who comes late hears that the call was given up, and who was there does not find it passed.
TEST_P(CollectivesTest, ALateRankFindsACancelledCallEnded) {
  std::atomic<bool> ready{false}, over{false};
  GetParam().run(2, [&](Collectives& all) {
    ASSERT_DONE(all.barrier(soon()));
    std::vector<float> data(16, 1.f);
    const auto reduce = [&](const Limits& limits) {
      return all.all_reduce(data.data(), data.data(), 16, DType::kF32, ReduceOp::kSum, limits);
    };
    if (all.rank() == 0) {
      while (!ready) std::this_thread::yield();
      const std::atomic<bool> cancel{true};
      const Status status = reduce({Deadline::never(), &cancel});
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().code(), Code::kCancelled);
      over = true;
      return;
    }
    ready = true;
    while (!over) std::this_thread::yield();
    const Status late = reduce(within(20 * kSecond));
    ASSERT_FALSE(late.ok()) << "rank 0 had given it up";
    EXPECT_EQ(late.error().code(), Code::kCommAborted) << late.error().message();
    EXPECT_EQ(late.error().rank(), 0);
    EXPECT_THAT(late.error().message(),
                AllOf(HasSubstr("rank 0 gave up: "), HasSubstr("cancelled")));
    EXPECT_FALSE(all.barrier(within(20 * kSecond)).ok());
  });
}

// Whenever the deadline of one rank passes, all end the call alike where they share memory.
TEST(Collectives, ACallInSharedMemoryEndsWellOnAllRanksOrOnNone) {
  int well = 0, rounds = 0;
  for (int64_t patience_ns = 0; patience_ns < 400'000; patience_ns += 10'000) {
    for (const int64_t count : {int64_t{16}, int64_t{40'000}}) {
      std::atomic<int> passed{0};
      test::ThreadGroups(3).run([&](Group& group) {
        auto all = make_collectives(group, {}, nullptr, Deadline::after(60 * kSecond));
        ASSERT_TRUE(all.ok());
        std::vector<float> data(static_cast<size_t>(count), 1.f);
        ASSERT_DONE((*all)->barrier(soon()));
        const Status status =
            (*all)->all_reduce(data.data(), data.data(), count, DType::kF32, ReduceOp::kSum,
                               group.rank() == 1 ? within(patience_ns) : within(20 * kSecond));
        if (status) ++passed;
        (void)group.barrier(Deadline::after(60 * kSecond));
      });
      EXPECT_TRUE(passed == 0 || passed == 3) << passed << " of 3, " << patience_ns << " ns";
      well += passed == 3;
      ++rounds;
    }
  }
  EXPECT_GT(rounds, 0);
  RecordProperty("passed", well);
}

TEST_P(CollectivesTest, ADeadlineEndsTheCommunicatorOnAllRanks) {
  std::vector<float> shared[3];
  for (auto& data : shared) data.resize(300'000);
  GetParam().run(3, [&](Collectives& all) {
    ASSERT_DONE(all.barrier(soon()));
    float* const data = shared[all.rank()].data();
    if (all.rank() == 2) return;  // does not come
    const int64_t start = monotonic_ns();
    const Status status = all.all_reduce(data, data, 300'000, DType::kF32, ReduceOp::kSum,
                                         within(all.rank() == 0 ? kSecond / 5 : 12 * kSecond));
    ASSERT_FALSE(status.ok());
    EXPECT_LT(monotonic_ns() - start, 10 * kSecond);
    if (all.rank() == 0) {
      EXPECT_EQ(status.error().code(), Code::kCommTimeout);
      EXPECT_THAT(status.error().message(), HasSubstr("rank "));
    } else {
      EXPECT_THAT(status.error().message(), HasSubstr("rank 0"));
    }
    EXPECT_FALSE(all.barrier(within(kSecond)).ok());
  });
}

TEST_P(CollectivesTest, ACancelEndsTheCommunicatorOnAllRanks) {
  GetParam().run(3, [&](Collectives& all) {
    ASSERT_DONE(all.barrier(soon()));
    if (all.rank() == 2) return;
    std::atomic<bool> cancel{false};
    std::thread other;
    Limits limits = within(12 * kSecond);
    if (all.rank() == 0) {
      limits.cancel = &cancel;
      other = std::thread([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        cancel = true;
      });
    }
    const Status status = all.barrier(limits);
    if (other.joinable()) other.join();
    ASSERT_FALSE(status.ok());
    if (all.rank() == 0) {
      EXPECT_EQ(status.error().code(), Code::kCancelled);
    } else {
      EXPECT_THAT(status.error().message(), HasSubstr("rank 0"));
    }
  });
}

TEST_P(CollectivesTest, RefusesBadArgumentsAndGoesOn) {
  GetParam().run(2, [&](Collectives& all) {
    float data[8] = {};
    const std::vector<int64_t> negative{-1, 2}, three{1, 1, 1}, huge{INT64_MAX / 2, INT64_MAX / 2},
        wide{INT64_MAX / 4 + 1, 0};
    const auto refused = [](const Status& status, const char* word) {
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().code(), Code::kInvalidArgument);
      EXPECT_THAT(status.error().message(), HasSubstr(word));
    };
    refused(all.all_reduce(data, data, -3, DType::kF32, ReduceOp::kSum, soon()), "a count of -3");
    refused(all.all_reduce(data, data, 8, DType::kF64, ReduceOp::kSum, soon()), "F64 is not");
    refused(all.all_reduce(data, data, 8, DType::kF32, static_cast<ReduceOp>(9), soon()),
            "operation 9");
    refused(all.all_reduce(nullptr, data, 8, DType::kF32, ReduceOp::kSum, soon()), "NULL");
    refused(all.all_gather(data, data, negative, DType::kF32, soon()), "a count of -1");
    refused(all.all_gather(data, data, three, DType::kF32, soon()), "3 counts for 2 ranks");
    refused(all.all_gather(data, data, huge, DType::kI64, soon()), "2^63");
    refused(all.reduce_scatter(data, data, wide, DType::kF32, ReduceOp::kSum, soon()), "2^63");
    refused(all.broadcast(data, 1, DType::kF32, 2, soon()), "root is rank 2 of 2");
    refused(all.broadcast(data, 1, DType::kF32, -1, soon()), "root is rank -1");
    refused(all.send(data, 1, DType::kF32, all.rank(), soon()), "is this rank");
    refused(all.receive(data, 1, DType::kF32, 5, soon()), "rank 5 of 2");
    ASSERT_DONE(all.barrier(soon()));
  });
}

// --- Splits -----------------------------------------------------------------------------------

TEST_P(CollectivesTest, SplitsByColourInTheOrderOfKeysAndRunsAllAtOnce) {
  for (const int world : {4, 7}) {
    GetParam().run(world, [&](Collectives& all) {
      // Odd and even ranks, the latter in reverse; then the whole in reverse.
      const int color = all.rank() % 2;
      auto part = all.split(color, color == 0 ? -all.rank() : all.rank(), soon());
      ASSERT_TRUE(part.ok()) << part.error().message();
      Collectives& half = **part;
      const int members = color == 0 ? (world + 1) / 2 : world / 2;
      ASSERT_EQ(half.size(), members);
      ASSERT_EQ(half.rank(), color == 0 ? members - 1 - all.rank() / 2 : all.rank() / 2);
      std::thread beside([&] {
        for (int i = 0; i < 30; ++i) {
          std::vector<int32_t> data(3000, all.rank());
          ASSERT_DONE(
              half.all_reduce(data.data(), data.data(), 3000, DType::kI32, ReduceOp::kSum, soon()));
          int expected = 0;
          for (int rank = color; rank < world; rank += 2) expected += rank;
          ASSERT_EQ(data, std::vector<int32_t>(3000, expected));
        }
      });
      for (int i = 0; i < 30; ++i) {
        int64_t one = 1;
        const Status done = all.all_reduce(&one, &one, 1, DType::kI64, ReduceOp::kSum, soon());
        EXPECT_TRUE(done.ok() && one == world);
      }
      beside.join();
      auto none = all.split(all.rank() == 0 ? -1 : 5, 0, soon());
      ASSERT_TRUE(none.ok());
      EXPECT_EQ(*none == nullptr, all.rank() == 0);
      if (*none != nullptr) ASSERT_DONE((*none)->barrier(soon()));
      auto again = half.split(0, 0, soon());
      ASSERT_TRUE(again.ok());
      ASSERT_DONE((*again)->barrier(soon()));
    });
  }
}

TEST_P(CollectivesTest, ClosedSplitsMakeRoomForOthers) {
  GetParam().run(2, [&](Collectives& all) {
    for (int i = 0; i < 40; ++i) {
      auto part = all.split(0, 0, soon());
      ASSERT_TRUE(part.ok()) << i << ": " << part.error().message();
      ASSERT_DONE((*part)->barrier(soon()));
    }
    std::vector<std::unique_ptr<Collectives>> open;
    for (int i = 0; i < 40; ++i) {
      auto part = all.split(0, 0, soon());
      if (!part) {
        EXPECT_EQ(part.error().code(), Code::kLimit);
        EXPECT_THAT(part.error().message(), HasSubstr("no room"));
        break;
      }
      open.push_back(std::move(*part));
    }
    EXPECT_GE(open.size(), 4u);
    EXPECT_LT(open.size(), 40u);
    ASSERT_DONE(all.barrier(soon()));
  });
}

TEST_P(CollectivesTest, CountsCallsBytesAndTime) {
  GetParam().run(2, [&](Collectives& all) {
    std::vector<float> data(100);
    ASSERT_DONE(all.all_reduce(data.data(), data.data(), 100, DType::kF32, ReduceOp::kSum, soon()));
    ASSERT_DONE(all.all_reduce(data.data(), data.data(), 50, DType::kF32, ReduceOp::kSum, soon()));
    ASSERT_DONE(all.barrier(soon()));
    const auto counters = all.counters();
    ASSERT_EQ(counters.size(), 2u);
    EXPECT_EQ(counters[0].name, "all_reduce");
    EXPECT_EQ(counters[0].calls, 2);
    EXPECT_EQ(counters[0].bytes, 600);
    EXPECT_GT(counters[0].ns, 0);
    EXPECT_EQ(counters[1].name, "barrier");
  });
}

TEST(Collectives, TellEachCallAtLevelDebug) {
  test::ThreadGroups(2).run([&](Group& group) {
    std::vector<std::string> lines;
    Log log;
    log.set([&](LogLevel, const char* line) { lines.emplace_back(line); }, LogLevel::kDebug);
    auto all = make_collectives(group, {}, &log, Deadline::after(60 * kSecond));
    ASSERT_TRUE(all.ok());
    std::vector<float> data(1024);
    ASSERT_DONE(
        (*all)->all_reduce(data.data(), data.data(), 1024, DType::kF32, ReduceOp::kMax, soon()));
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_THAT(lines[0], HasSubstr("shm: rank " + std::to_string(group.rank()) +
                                    " of 2, all_reduce of 4.00 KiB F32, max in "));
    (void)group.barrier(Deadline::after(60 * kSecond));
  });
}

TEST(Collectives, SharedMemoryRoundsHalvesOnce) {
  // 256 + 1 + 1 + ... in bf16, one at a time, would stay 256.
  test::ThreadGroups(5).run([&](Group& group) {
    auto all = make_collectives(group, {}, nullptr, Deadline::after(60 * kSecond));
    ASSERT_TRUE(all.ok());
    for (const int64_t count : {int64_t{3}, int64_t{100'000}}) {
      std::vector<bf16> data(static_cast<size_t>(count), to_bf16(group.rank() == 0 ? 256.f : 1.f));
      ASSERT_DONE((*all)->all_reduce(data.data(), data.data(), count, DType::kBF16, ReduceOp::kSum,
                                     soon()));
      EXPECT_EQ(to_float(data[0]), 260.f);
      EXPECT_EQ(to_float(data[static_cast<size_t>(count) - 1]), 260.f);
    }
    (void)group.barrier(Deadline::after(60 * kSecond));
  });
}

}  // namespace
}  // namespace amxt::comm
