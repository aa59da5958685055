// attention.h over the sixteen lanes of simd.h. Included by attention_avx2.cpp and attention_avx512.cpp after their simd header.
//
// The idea: a task converts a block of K and V to fp32 once, for all query heads that share it, and multiplies in fp32 registers. Scores of
// a 64 x 64 block never leave the L1 cache. Forward keeps a running maximum and sum per query (online soft-max). Backward computes
// the probabilities again from the log-sum-exp: P = exp(S - lse), dV += P' dO, dP = dO V', dS = P (dP - delta),
// dQ += dS K, dK += dS' Q. The scale 1/sqrt(C) is put on Q when it is converted, which gives dK its factor too.
//
// Every product is C = A B with the lanes along C's rows: A is read one element at a time and broadcast, by rows or by columns
// (a transposed A costs nothing), B must lie with the lanes along its rows; so K is kept both ways.
// What a token may not see (later tokens, other documents) is a range before and one after, in each row of a block; ranges never
// move back from one row to the next. Products skip the parts of a block that no row of their tile sees.
#pragma once

#include "kernels/attention_table.h"
#include "kernels/simd.h"

namespace amxt::kernels {
namespace {

constexpr int64_t kBlock = kQueryBlock;
static_assert(kQueryBlock == kKeyBlock && kBlock % kLanes == 0);
constexpr int64_t kBlockVectors = kBlock / kLanes;
constexpr float kMinusInfinity = -__builtin_inff();

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t padded(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

struct Span {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// How an operand A is read: element (row, k) at data[row * row_step + k * k_step].
struct Broadcast {
  const float* data;
  int64_t row_step, k_step;
};

// C[R, V vectors] = keep[row] * C + sum over k of A B; keep null: C was nothing.
template <int R, int V>
inline void tile(Span k, Broadcast a, const float* b, int64_t ldb, float* c, int64_t ldc,
                 const float* keep) {
  F sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sum[r][v] = keep ? load(c + r * ldc + v * kLanes) * all(keep[r]) : all(0);
    }
  }
  const float* at = a.data + k.begin * a.k_step;
  const float* row = b + k.begin * ldb;
  for (int64_t i = k.begin; i < k.end; ++i, at += a.k_step, row += ldb) {
    F lanes[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) lanes[v] = load(row + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F one = all(at[r * a.row_step]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = fma(one, lanes[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, sum[r][v]);
  }
}

template <int R>
void tiles_of_rows(Span k, Broadcast a, const float* b, int64_t ldb, float* c, int64_t ldc,
                   Span vectors, const float* keep) {
  int64_t left = vectors.end - vectors.begin;
  int64_t steps = (left + kTileVectors - 1) / kTileVectors;
  b += vectors.begin * kLanes;
  c += vectors.begin * kLanes;
  for (; steps > 0; --steps) {
    const int64_t width = (left + steps - 1) / steps;  // 5 vectors: 3 and 2, not 4 and 1
    switch (width) {
      case 1:
        tile<R, 1>(k, a, b, ldb, c, ldc, keep);
        break;
      case 2:
        tile<R, least(2, kTileVectors)>(k, a, b, ldb, c, ldc, keep);
        break;
      case 3:
        tile<R, least(3, kTileVectors)>(k, a, b, ldb, c, ldc, keep);
        break;
      default:
        tile<R, kTileVectors>(k, a, b, ldb, c, ldc, keep);
        break;
    }
    left -= width;
    b += width * kLanes;
    c += width * kLanes;
  }
}

// One row of tiles: `rows` <= kTileRows rows of C over the vectors given.
inline void multiply(int64_t rows, Span k, Broadcast a, const float* b, int64_t ldb, float* c,
                     int64_t ldc, Span vectors, const float* keep) {
  static_assert(kTileRows == 6);
  switch (rows) {
    case 1:
      return tiles_of_rows<1>(k, a, b, ldb, c, ldc, vectors, keep);
    case 2:
      return tiles_of_rows<2>(k, a, b, ldb, c, ldc, vectors, keep);
    case 3:
      return tiles_of_rows<3>(k, a, b, ldb, c, ldc, vectors, keep);
    case 4:
      return tiles_of_rows<4>(k, a, b, ldb, c, ldc, vectors, keep);
    case 5:
      return tiles_of_rows<5>(k, a, b, ldb, c, ldc, vectors, keep);
    default:
      return tiles_of_rows<6>(k, a, b, ldb, c, ldc, vectors, keep);
  }
}

// to[row, C padded with zeros] = from * scale
template <typename E>
void widen(int64_t rows, int64_t head_dim, const E* from, int64_t ld, float scale, float* to) {
  const int64_t width = padded(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(0, head_dim, [&](int64_t i, auto part) {
      store(to + r * width + i, load(from + r * ld + i, part) * all(scale));
    });
  }
}

// to[C padded, kBlock] = the transpose of from[rows, C]; zeros beyond.
template <typename E>
void widen_transposed(int64_t rows, int64_t head_dim, const E* from, int64_t ld, float* to) {
  for (int64_t r = 0; r < kBlock; r += kLanes) {
    for_lanes(0, head_dim, [&](int64_t i, auto part) {
      F square[kLanes];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) {
        square[j] = r + j < rows ? load(from + (r + j) * ld + i, part) : all(0);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) store(to + (i + j) * kBlock + r, square[j]);
    });
  }
}

// Asks for part `part` of `parts` of a block that is converted soon: its rows lie too far apart for the hardware to foresee.
template <typename E>
inline void fetch(int64_t part, int64_t parts, int64_t rows, int64_t head_dim, const E* from,
                  int64_t ld) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(E));
  for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r) {
    for (int64_t i = 0; i < head_dim; i += line) __builtin_prefetch(from + r * ld + i, 0, 2);
  }
}

// to[row, C] = from * scale, rounded to E.
template <typename E>
void narrow(int64_t rows, int64_t head_dim, const float* from, float scale, E* to, int64_t ld) {
  const int64_t width = padded(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(0, head_dim, [&](int64_t i, auto part) {
      store(to + r * ld + i, load(from + r * width + i) * all(scale), part);
    });
  }
}

inline void clear(float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(p + i, all(0));
}

// The block of `count` tokens from `token` on.
struct Tokens {
  int64_t token, count;
};
template <typename E>
inline Tokens tokens_of_block(const AttentionCall<E>& call, int64_t block) {
  return {block * kBlock, least(kBlock, call.tokens - block * kBlock)};
}

// K or V of a block, for the heads that share it.
template <typename E>
inline const E* keys_at(const AttentionCall<E>& call, Tokens keys, int64_t kv_head) {
  return call.k + keys.token * call.ldk + kv_head * call.head_dim;
}
template <typename E>
inline const E* values_at(const AttentionCall<E>& call, Tokens keys, int64_t kv_head) {
  return call.v + keys.token * call.ldv + kv_head * call.head_dim;
}
// While head h of `heads` is computed with one block, its share of the next comes nearer.
template <typename E>
inline void fetch_next_keys(const AttentionCall<E>& call, int64_t h, int64_t heads, int64_t block,
                            int64_t last, int64_t kv_head) {
  if (block > last) return;
  const Tokens keys = tokens_of_block(call, block);
  fetch(h, heads, keys.count, call.head_dim, keys_at(call, keys, kv_head), call.ldk);
  fetch(h, heads, keys.count, call.head_dim, values_at(call, keys, kv_head), call.ldv);
}

// Keys of a block that each query of another sees: [low, high) within the block. Both rise with the query.
struct Sight {
  int64_t low[kBlock], high[kBlock];

  template <typename E>
  void look(const AttentionCall<E>& call, Tokens queries, Tokens keys) {
    for (int64_t i = 0; i < queries.count; ++i) {
      const int64_t t = queries.token + i;
      low[i] = most(0, call.document_start[t] - keys.token);
      high[i] = least(keys.count, t + 1 - keys.token);
      if (low[i] > high[i]) low[i] = high[i] = most(0, least(low[i], keys.count));
    }
  }
  // What the rows [first, last] see together.
  Span of_rows(int64_t first, int64_t last) const { return {low[first], high[last]}; }
};

// S[rows, kBlock] = A B, where some row of a tile sees anything.
inline void scores(const Sight& sight, int64_t rows, const float* a, const float* b,
                   int64_t head_dim, float* s) {
  const int64_t width = padded(head_dim);
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t n = least(kTileRows, rows - i);
    const Span seen = sight.of_rows(i, i + n - 1);
    if (seen.empty()) continue;
    const Span vectors = {seen.begin / kLanes, (seen.end + kLanes - 1) / kLanes};
    multiply(n, {0, head_dim}, {a + i * width, width, 1}, b, kBlock, s + i * kBlock, kBlock,
             vectors, nullptr);
  }
}

// C[rows, C] = keep C + P B over the keys that each tile sees; P is zero elsewhere.
inline void weigh(const Sight& sight, int64_t rows, const float* p, const float* b,
                  int64_t head_dim, float* c, const float* keep) {
  const int64_t width = padded(head_dim);
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t n = least(kTileRows, rows - i);
    const Span seen = sight.of_rows(i, i + n - 1);
    if (seen.empty()) continue;
    multiply(n, seen, {p + i * kBlock, kBlock, 1}, b, width, c + i * width, width,
             {0, width / kLanes}, keep + i);
  }
}

alignas(64) constexpr float kOnes[kBlock] = {
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// C[keys, C] += P' B over the queries that see each tile of keys.
inline void weigh_transposed(const Sight& sight, int64_t queries, int64_t keys, const float* p,
                             const float* b, int64_t head_dim, float* c) {
  const int64_t width = padded(head_dim);
  Span seeing = {0, 0};
  for (int64_t i = 0; i < keys; i += kTileRows) {
    const int64_t n = least(kTileRows, keys - i);
    while (seeing.begin < queries && sight.high[seeing.begin] <= i) ++seeing.begin;
    while (seeing.end < queries && sight.low[seeing.end] < i + n) ++seeing.end;
    if (seeing.empty()) continue;
    multiply(n, seeing, {p + i, 1, kBlock}, b, width, c + i * width, width, {0, width / kLanes},
             kOnes);
  }
}

// value where the query sees the key, `other` elsewhere; v is the vector of the row.
inline F where_seen(const Sight& sight, int64_t row, int64_t v, F value, float other) {
  const int64_t low = sight.low[row] - v * kLanes, high = sight.high[row] - v * kLanes;
  if (low <= 0 && high >= kLanes) return value;
  return select(lanes_between(low, high), value, all(other));
}

// --- forward ---

// The running state of one head's query block.
struct Running {
  float* q;        // [kBlock, C], scaled
  float* out;      // [kBlock, C], not yet divided by the sum
  float* maximum;  // [kBlock]
  float* sum;      // [kBlock, kLanes]: lane by lane, added up at the end
};

// From scores to probabilities relative to the running maximum, in place; `keep` [kBlock] gets the factors that bring
// what was summed before to that maximum.
inline void soft_max(const Sight& sight, int64_t rows, float* s, const Running& state,
                     float* keep) {
  alignas(64) float base[kBlock] = {};
  for (int64_t i = 0; i < rows; ++i) {
    F top = all(state.maximum[i]);
    for (int64_t v = sight.low[i] / kLanes; v * kLanes < sight.high[i]; ++v) {
      const F value = load(s + i * kBlock + v * kLanes);
      top = max(where_seen(sight, i, v, value, kMinusInfinity), top);
    }
    const float highest = largest(top);
    base[i] = highest == kMinusInfinity ? 0 : highest;
    keep[i] = state.maximum[i] - base[i];
    state.maximum[i] = highest;
  }
  for (int64_t i = 0; i < kBlock; i += kLanes) store(keep + i, exp(load(keep + i)));
  for (int64_t i = 0; i < rows; ++i) {
    const F shift = all(base[i]);
    F total = load(state.sum + i * kLanes) * all(keep[i]);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kBlockVectors; ++v) {
      float* at = s + i * kBlock + v * kLanes;
      if (v * kLanes >= sight.high[i] || (v + 1) * kLanes <= sight.low[i]) {
        store(at, all(0));
        continue;
      }
      const F p = where_seen(sight, i, v, exp(load(at) - shift), 0);
      total = total + p;
      store(at, p);
    }
    store(state.sum + i * kLanes, total);
  }
}

struct ForwardScratch {
  float *keys, *values, *s, *keep;
  Running head[kHeadChunk];

  // Lays the parts out from `base` on, or only counts when it is null.
  int64_t lay(float* base, int64_t head_dim) {
    const int64_t block = kBlock * padded(head_dim);
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* p = base ? base + used : nullptr;
      used += count;
      return p;
    };
    keys = take(block);
    values = take(block);
    s = take(kBlock * kBlock);
    keep = take(kBlock);
    for (Running& state : head) {
      state.q = take(block);
      state.out = take(block);
      state.maximum = take(kBlock);
      state.sum = take(kBlock * kLanes);
    }
    return used;
  }
};

int64_t forward_floats(int64_t head_dim) { return ForwardScratch{}.lay(nullptr, head_dim); }

// One task of queries: which heads and which block.
struct QueryTask {
  int64_t kv_head, first_head, heads, block;

  template <typename E>
  static QueryTask of(const AttentionCall<E>& call, int64_t task) {
    const int64_t per_block = call.kv_heads * chunks(call);
    const int64_t kv = task % per_block / chunks(call), chunk = task % chunks(call);
    return {kv, kv * group(call) + chunk * kHeadChunk,
            least(kHeadChunk, group(call) - chunk * kHeadChunk),
            query_blocks(call) - 1 - task / per_block};
  }
};

template <typename E>
Span seen_key_blocks(const AttentionCall<E>& call, Tokens queries) {
  return {call.document_start[queries.token] / kBlock,
          (queries.token + queries.count - 1) / kBlock + 1};
}

template <typename E>
void store_head(const AttentionCall<E>& call, Tokens queries, int64_t h, const Running& state) {
  const int64_t width = padded(call.head_dim);
  for (int64_t i = 0; i < queries.count; ++i) {
    const float total = sum(load(state.sum + i * kLanes));
    const int64_t t = queries.token + i;
    call.lse[h * call.tokens + t] = state.maximum[i] + __builtin_logf(total);
    narrow(1, call.head_dim, state.out + i * width, 1.0f / total,
           call.out + t * call.ldo + h * call.head_dim, call.ldo);
  }
}

template <typename E>
void forward_vector(const AttentionCall<E>& call, int64_t number, float* memory) {
  ForwardScratch scratch;
  scratch.lay(memory, call.head_dim);
  const QueryTask task = QueryTask::of(call, number);
  const Tokens queries = tokens_of_block(call, task.block);
  const int64_t dim = call.head_dim;

  for (int64_t h = 0; h < task.heads; ++h) {
    const Running& state = scratch.head[h];
    const E* from = call.q + queries.token * call.ldq + (task.first_head + h) * dim;
    widen(queries.count, dim, from, call.ldq, call.scale, state.q);
    clear(state.out, kBlock * padded(dim));
    clear(state.sum, kBlock * kLanes);
    for (int64_t i = 0; i < kBlock; ++i) state.maximum[i] = kMinusInfinity;
  }
  const Span blocks = seen_key_blocks(call, queries);
  Sight sight;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Tokens keys = tokens_of_block(call, block);
    sight.look(call, queries, keys);
    widen_transposed(keys.count, dim, keys_at(call, keys, task.kv_head), call.ldk, scratch.keys);
    widen(keys.count, dim, values_at(call, keys, task.kv_head), call.ldv, 1, scratch.values);
    for (int64_t h = 0; h < task.heads; ++h) {
      const Running& state = scratch.head[h];
      fetch_next_keys(call, h, task.heads, block + 1, blocks.end - 1, task.kv_head);
      scores(sight, queries.count, state.q, scratch.keys, dim, scratch.s);
      soft_max(sight, queries.count, scratch.s, state, scratch.keep);
      weigh(sight, queries.count, scratch.s, scratch.values, dim, state.out, scratch.keep);
    }
  }
  for (int64_t h = 0; h < task.heads; ++h) {
    store_head(call, queries, task.first_head + h, scratch.head[h]);
  }
}

// --- backward ---

template <typename E>
void delta_vector(const AttentionCall<E>& call, int64_t block) {
  const Tokens rows = tokens_of_block(call, block);
  for (int64_t t = rows.token; t < rows.token + rows.count; ++t) {
    for (int64_t h = 0; h < call.heads; ++h) {
      const E* out = call.forward_out + t * call.ldo + h * call.head_dim;
      const E* dout = call.dout + t * call.lddo + h * call.head_dim;
      F total = all(0);
      for_lanes(0, call.head_dim, [&](int64_t i, auto part) {
        total = fma(load(out + i, part), load(dout + i, part), total);
      });
      call.delta[h * call.tokens + t] = sum(total);
    }
  }
}

struct QueryPanels {
  float *q, *dout, *dq;  // [kBlock, C]; q scaled
};

struct BackwardScratch {
  float *keys, *keys_across, *values_across;  // [kBlock, C] and transposed
  float *s, *ds;
  QueryPanels head[kHeadChunk];
  float *dk, *dv;  // [key_rows, C]

  int64_t lay(float* base, int64_t head_dim, int64_t key_rows) {
    const int64_t block = kBlock * padded(head_dim);
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* p = base ? base + used : nullptr;
      used += count;
      return p;
    };
    keys = take(block);
    keys_across = take(block);
    values_across = take(block);
    s = take(kBlock * kBlock);
    ds = take(kBlock * kBlock);
    for (QueryPanels& panels : head) {
      panels.q = take(block);
      panels.dout = take(block);
      panels.dq = take(block);
    }
    const int64_t rows = (key_rows + kBlock - 1) / kBlock;
    dk = take(rows * block);
    dv = take(rows * block);
    return used;
  }
};

int64_t backward_floats(int64_t head_dim, int64_t key_rows) {
  return BackwardScratch{}.lay(nullptr, head_dim, key_rows);
}

template <typename E>
void load_keys(const AttentionCall<E>& call, Tokens keys, int64_t kv_head, BackwardScratch& to) {
  const int64_t dim = call.head_dim;
  const E* k = keys_at(call, keys, kv_head);
  widen(keys.count, dim, k, call.ldk, 1, to.keys);
  widen_transposed(keys.count, dim, k, call.ldk, to.keys_across);
  widen_transposed(keys.count, dim, values_at(call, keys, kv_head), call.ldv, to.values_across);
}

template <typename E>
void load_queries(const AttentionCall<E>& call, Tokens queries, int64_t h, const QueryPanels& to) {
  const int64_t dim = call.head_dim;
  widen(queries.count, dim, call.q + queries.token * call.ldq + h * dim, call.ldq, call.scale,
        to.q);
  widen(queries.count, dim, call.dout + queries.token * call.lddo + h * dim, call.lddo, 1, to.dout);
}

// s becomes P, ds (which holds dP) becomes dS; zeros where nothing is seen.
inline void soft_max_gradient(const Sight& sight, int64_t rows, const float* lse,
                              const float* delta, float* s, float* ds) {
  for (int64_t i = 0; i < rows; ++i) {
    const F shift = all(lse[i]), mean = all(delta[i]);
    for (int64_t v = 0; v < kBlockVectors; ++v) {
      const int64_t at = i * kBlock + v * kLanes;
      if (v * kLanes >= sight.high[i] || (v + 1) * kLanes <= sight.low[i]) {
        store(s + at, all(0));
        store(ds + at, all(0));
        continue;
      }
      const F p = exp(load(s + at) - shift);
      store(s + at, where_seen(sight, i, v, p, 0));
      store(ds + at, where_seen(sight, i, v, p * (load(ds + at) - mean), 0));
    }
  }
}

// One head, one block of queries against one of keys. dk and dv, or dq, may be null: then they are not computed.
template <typename E>
void backward_pair(const AttentionCall<E>& call, const Sight& sight, Tokens queries, Tokens keys,
                   int64_t h, const BackwardScratch& scratch, const QueryPanels& panels, float* dq,
                   float* dk, float* dv) {
  const int64_t dim = call.head_dim, at = h * call.tokens + queries.token;
  float *s = scratch.s, *ds = scratch.ds;
  scores(sight, queries.count, panels.q, scratch.keys_across, dim, s);
  scores(sight, queries.count, panels.dout, scratch.values_across, dim, ds);
  soft_max_gradient(sight, queries.count, call.kept_lse + at, call.delta + at, s, ds);
  if (dv) weigh_transposed(sight, queries.count, keys.count, s, panels.dout, dim, dv);
  if (dk) weigh_transposed(sight, queries.count, keys.count, ds, panels.q, dim, dk);
  if (dq) weigh(sight, queries.count, ds, scratch.keys, dim, dq, kOnes);
}

// The heads of one task against all blocks of keys they see. dk and dv are those of token 0 of the sequence, or null.
template <typename E>
void backward_query_task(const AttentionCall<E>& call, const QueryTask& task,
                         BackwardScratch& scratch, float* dk, float* dv) {
  const Tokens queries = tokens_of_block(call, task.block);
  const int64_t dim = call.head_dim, width = padded(dim);
  for (int64_t h = 0; h < task.heads; ++h) {
    load_queries(call, queries, task.first_head + h, scratch.head[h]);
    clear(scratch.head[h].dq, kBlock * width);
  }
  const Span blocks = seen_key_blocks(call, queries);
  Sight sight;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Tokens keys = tokens_of_block(call, block);
    sight.look(call, queries, keys);
    load_keys(call, keys, task.kv_head, scratch);
    const int64_t at = keys.token * width;
    for (int64_t h = 0; h < task.heads; ++h) {
      fetch_next_keys(call, h, task.heads, block + 1, blocks.end - 1, task.kv_head);
      backward_pair(call, sight, queries, keys, task.first_head + h, scratch, scratch.head[h],
                    scratch.head[h].dq, dk ? dk + at : nullptr, dv ? dv + at : nullptr);
    }
  }
  for (int64_t h = 0; h < task.heads; ++h) {
    narrow(queries.count, dim, scratch.head[h].dq, call.scale,
           call.dq + queries.token * call.lddq + (task.first_head + h) * dim, call.lddq);
  }
}

template <typename E>
void store_keys(const AttentionCall<E>& call, Tokens keys, int64_t kv_head, const float* dk,
                const float* dv) {
  const int64_t dim = call.head_dim, at = kv_head * dim;
  narrow(keys.count, dim, dk, 1, call.dk + keys.token * call.lddk + at, call.lddk);
  narrow(keys.count, dim, dv, 1, call.dv + keys.token * call.lddv + at, call.lddv);
}

template <typename E>
void backward_vector(const AttentionCall<E>& call, int64_t kv_head, float* memory) {
  BackwardScratch scratch;
  scratch.lay(memory, call.head_dim, call.tokens);
  const int64_t size = key_blocks(call) * kBlock * padded(call.head_dim);
  clear(scratch.dk, size);
  clear(scratch.dv, size);
  for (int64_t block = 0; block < query_blocks(call); ++block) {
    for (int64_t first = 0; first < group(call); first += kHeadChunk) {
      const QueryTask task = {kv_head, kv_head * group(call) + first,
                              least(kHeadChunk, group(call) - first), block};
      backward_query_task(call, task, scratch, scratch.dk, scratch.dv);
    }
  }
  store_keys(call, {0, call.tokens}, kv_head, scratch.dk, scratch.dv);
}

template <typename E>
void backward_queries_vector(const AttentionCall<E>& call, int64_t task, float* memory) {
  BackwardScratch scratch;
  scratch.lay(memory, call.head_dim, kBlock);
  backward_query_task(call, QueryTask::of(call, task), scratch, nullptr, nullptr);
}

template <typename E>
void backward_keys_vector(const AttentionCall<E>& call, int64_t task, float* memory) {
  BackwardScratch scratch;
  scratch.lay(memory, call.head_dim, kBlock);
  const int64_t kv_head = task % call.kv_heads, block = task / call.kv_heads;
  const Tokens keys = tokens_of_block(call, block);
  load_keys(call, keys, kv_head, scratch);
  clear(scratch.dk, kBlock * padded(call.head_dim));
  clear(scratch.dv, kBlock * padded(call.head_dim));
  Sight sight;
  for (int64_t other = block; other < query_blocks(call); ++other) {
    const Tokens queries = tokens_of_block(call, other);
    if (call.document_start[queries.token] >= keys.token + keys.count) break;
    sight.look(call, queries, keys);
    for (int64_t h = kv_head * group(call); h < (kv_head + 1) * group(call); ++h) {
      load_queries(call, queries, h, scratch.head[0]);
      backward_pair(call, sight, queries, keys, h, scratch, scratch.head[0], nullptr, scratch.dk,
                    scratch.dv);
    }
  }
  store_keys(call, keys, kv_head, scratch.dk, scratch.dv);
}

template <typename E>
constexpr AttentionTable<E> attention_table() {
  return {forward_vector<E>, delta_vector<E>, backward_vector<E>, backward_keys_vector<E>,
          backward_queries_vector<E>};
}

constexpr AttentionTables attention_tables() {
  return {attention_table<float>(), attention_table<bf16>(), forward_floats, backward_floats};
}

}  // namespace
}  // namespace amxt::kernels
