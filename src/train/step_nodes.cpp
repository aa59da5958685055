// The half of a step that passes between nodes.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/rows.h"
#include "train/step.h"

namespace amxt::train {
namespace {

// For connecting the nodes anew after a call that was ended: the other ranks come when they make their next call.
constexpr int64_t kReconnectNs = 60'000'000'000;

}  // namespace

template <typename E>
Status StepRunner<E>::join_nodes(Deadline deadline) {
  const DType wire_dtype = p_.plan->wire_gradient_dtype;
  AMXT_ASSIGN(exchange_,
              store::GradientExchange::create(p_.layout, p_.parameters->traffic(), wire_dtype));
  return p_.parameters->connect(deadline);
}

template <typename E>
Status StepRunner<E>::begin_call(const StepControl::Limits& limits) {
  if (in_disorder_) {
    AMXT_TRY(p_.parameters->connect(Deadline::after(kReconnectNs)));
    embedding_fetches_ = 0;
    in_disorder_ = false;
  }
  Status started = control_->start(limits);
  if (!started) give_up_wire();
  return started;
}

template <typename E>
Status StepRunner<E>::end_call() {
  if (!has_nodes()) return {};
  Status ended = control_->commit();
  if (!ended) give_up_wire();
  return ended;
}

template <typename E>
void StepRunner<E>::give_up_wire() {
  if (!has_nodes() || in_disorder_) return;
  in_disorder_ = true;
  p_.parameters->disconnect();
  exchange_->restart();
}

template <typename E>
auto StepRunner<E>::wire_uses() const -> store::Traffic::Uses {
  return has_nodes() ? p_.parameters->traffic()->uses() : store::Traffic::Uses();
}

template <typename E>
auto StepRunner<E>::wire_since(const store::Traffic::Uses& before) const -> store::Traffic::Uses {
  store::Traffic::Uses uses = wire_uses();
  for (size_t i = 0; i < uses.size(); ++i) {
    uses[i].sent_bytes -= before[i].sent_bytes;
    uses[i].wait_ns -= before[i].wait_ns;
  }
  return uses;
}

template <typename E>
void StepRunner<E>::add_wire(const store::Traffic::Uses& of_rank, StepResult* result) const {
  if (!has_nodes()) return;
  result->transport = p_.parameters->traffic()->wire().name();
  int64_t wait_ns = 0;
  for (size_t i = 0; i < of_rank.size(); ++i) {
    result->wire[i].sent_bytes += of_rank[i].sent_bytes;
    result->wire[i].wait_ns = std::max(result->wire[i].wait_ns, of_rank[i].wait_ns);
    // Of the records others are waited for, not the wire.
    if (static_cast<store::Stream>(i) != store::Stream::kRecords) wait_ns += of_rank[i].wait_ns;
  }
  result->wire_wait_seconds =
      std::max(result->wire_wait_seconds, 1e-9 * static_cast<double>(wait_ns));
}

template <typename E>
Status StepRunner<E>::exchange_boxes() {
  std::vector<int64_t> offset, bytes(static_cast<size_t>(world()), record_stride_);
  for (int rank = 0; rank < world(); ++rank) offset.push_back(rank * record_stride_);
  return p_.parameters->traffic()->exchange_records(records_, offset, bytes,
                                                    [this] { return poll(); });
}

template <typename E>
Status StepRunner<E>::exchange_tokens() {
  const int64_t stride = token_stride_ * static_cast<int64_t>(sizeof(int32_t));
  std::vector<int64_t> offset, bytes;
  for (int rank = 0; rank < world(); ++rank) {
    offset.push_back(rank * stride);
    bytes.push_back(stride);
  }
  return p_.parameters->traffic()->exchange_records(reinterpret_cast<std::byte*>(tokens_), offset,
                                                    bytes, [this] { return poll(); });
}

// The sums of each owner's panels; who fetched them for the node puts them where the node's own are.
template <typename E>
Status StepRunner<E>::exchange_squares() {
  std::vector<int64_t> first, bytes;
  const auto panels_of = [this](int owner, FunctionRef<void(int64_t)> visit) {
    for (const store::OwnedRange& range : p_.layout->ranges(owner, -1)) {
      for (int64_t row = range.row_begin; row < range.row_end; row += store::kPanelRows)
        visit(p_.layout->panel(range.tensor, row));
    }
  };
  int64_t count = 0;
  for (int rank = 0; rank < world(); ++rank) {
    first.push_back(count * 8);
    panels_of(rank, [&](int64_t) { ++count; });
    bytes.push_back(count * 8 - first.back());
  }
  double* packed = packed_ + first[static_cast<size_t>(me())] / 8;
  panels_of(me(), [&](int64_t panel) { *packed++ = squares_[panel]; });
  store::Traffic& traffic = *p_.parameters->traffic();
  AMXT_TRY(traffic.exchange_records(reinterpret_cast<std::byte*>(packed_), first, bytes,
                                    [this] { return poll(); }));
  for (const int owner : traffic.served()) {
    const double* from = packed_ + first[static_cast<size_t>(owner)] / 8;
    panels_of(owner, [&](int64_t panel) { squares_[panel] = *from++; });
  }
  return {};
}

// What every node needs of the embedding, from the tokens that all know.
template <typename E>
void StepRunner<E>::find_needed() {
  const comm::Nodes& nodes = p_.group->nodes();
  needed_.resize(static_cast<size_t>(nodes.count()));
  std::vector<uint64_t> keys;  // owner, row
  const auto key_of = [this](int32_t token) {
    return static_cast<uint64_t>(p_.layout->embedding_owner(token)) << 32 |
           static_cast<uint64_t>(token);
  };
  for (int node = 0; node < nodes.count(); ++node) {
    keys.clear();
    for (const int rank : nodes.on(node)) {
      const int32_t* token = tokens_of(rank);
      for (int32_t i = 0; i < token_count(rank); ++i) keys.push_back(key_of(token[i]));
    }
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    Needed& needed = needed_[static_cast<size_t>(node)];
    needed.rows.clear();
    needed.begin.assign(static_cast<size_t>(world()) + 1, 0);
    for (const uint64_t key : keys) {
      needed.rows.push_back(static_cast<int32_t>(key & 0xFFFFFFFF));
      ++needed.begin[(key >> 32) + 1];
    }
    std::partial_sum(needed.begin.begin(), needed.begin.end(), needed.begin.begin());
    if (node != p_.group->node()) continue;
    places_.clear();
    for (int32_t i = 0; i < token_count(me()); ++i) {
      const auto at = std::lower_bound(keys.begin(), keys.end(), key_of(tokens_of(me())[i]));
      places_.push_back(static_cast<int32_t>(at - keys.begin()));
    }
  }
}

template <typename E>
Status StepRunner<E>::begin_wave(const Batch& batch, int64_t first, int64_t count, bool backward) {
  AMXT_TRY(gather_tokens(batch, first, count));
  std::vector<int64_t> deals;
  const int64_t layers = p_.config->layers, blocks = p_.layout->vocabulary_blocks();
  for (int64_t layer = 0; layer < layers; ++layer) deals.push_back(p_.layout->layer_deal(layer));
  deals.push_back(p_.layout->norm_deal());
  for (int pass = 0; pass < (backward ? 2 : 1); ++pass) {
    for (int64_t block = 0; block < blocks; ++block) deals.push_back(p_.layout->head_deal(block));
  }
  for (int64_t layer = layers - 1; backward && layer >= 0; --layer)
    deals.push_back(p_.layout->layer_deal(layer));
  p_.parameters->begin_pass(deals);
  return fetch_embedding();
}

template <typename E>
Status StepRunner<E>::fetch_embedding() {
  const int64_t D = p_.config->hidden_size, row_bytes = D * static_cast<int64_t>(sizeof(E));
  store::Traffic& traffic = *p_.parameters->traffic();
  const comm::Nodes& nodes = p_.group->nodes();
  const store::Tag tag{store::Stream::kEmbedding, embedding_fetches_++};
  const auto copy_row = [&](int32_t row, E* values) {
    const int64_t deal = p_.layout->embedding_deal(row / model::kVocabularyBlock);
    for (const store::OwnedRange& range : p_.layout->ranges(me(), deal)) {
      if (row < range.row_end) return p_.parameters->copy_weights(range, row, values);
    }
  };
  const Needed& own = needed_[static_cast<size_t>(p_.group->node())];
  store::Traffic::Pending pending;
  for (const int owner : traffic.served()) {
    const auto count = static_cast<int64_t>(own.of(owner).size());
    if (count == 0) continue;
    E* const to = embedding_ + own.begin[static_cast<size_t>(owner)] * D;
    AMXT_TRY(traffic.receive(tag, owner, to, count * row_bytes, &pending));
  }
  size_t staged = 0;
  for (int node = 0; node < nodes.count(); ++node)
    staged += node == p_.group->node() ? 0 : needed_[static_cast<size_t>(node)].of(me()).size();
  staged_.resize(staged * static_cast<size_t>(D));
  E* from = staged_.data();
  for (int node = 0; node < nodes.count(); ++node) {
    const std::span<const int32_t> rows = needed_[static_cast<size_t>(node)].of(me());
    const bool stays = node == p_.group->node();
    E* to = stays ? embedding_ + own.begin[static_cast<size_t>(me())] * D : from;
    E* const begin = to;
    for (const int32_t row : rows) {
      copy_row(row, to);
      to += D;
    }
    if (stays || rows.empty()) continue;
    from = to;
    AMXT_TRY(traffic.send(tag, traffic.partner(node, me()), begin,
                          static_cast<int64_t>(rows.size()) * row_bytes, &pending));
  }
  AMXT_TRY(traffic.wait(tag.stream, &pending, [this] { return poll(); }));
  return control_->barrier();
}

template <typename E>
Status StepRunner<E>::deal_parts(int64_t deal, bool first_wave, Compute compute) {
  store::GradientExchange& exchange = *exchange_;
  const bool as_bf16 = exchange.wire_dtype() == DType::kBF16;
  AMXT_TRY(exchange.begin([this] { return poll(); }));
  std::vector<int64_t> to;
  for (size_t index = 0; index < exchange.owners().size(); ++index) {
    const int owner = exchange.owners()[index];
    const std::span<const store::OwnedRange> ranges = p_.layout->ranges(owner, deal);
    for (const store::OwnedRange& range : ranges) {
      const int64_t at = range.private_offset - ranges.front().private_offset;
      GradientRows rows;
      if (as_bf16) {
        rows.as_bf16 = reinterpret_cast<bf16*>(exchange.part(index)) + at;
      } else {
        rows.as_float = reinterpret_cast<float*>(exchange.part(index)) + at;
      }
      AMXT_TRY(compute(range, rows));
    }
    to.push_back(p_.layout->span_elements(owner, deal));
  }
  const std::vector<int64_t> from(static_cast<size_t>(p_.group->node_count()),
                                  p_.layout->span_elements(me(), deal));
  return exchange.send(to, from, [this, deal, first_wave](auto parts) {
    p_.parameters->sum_gradient(*p_.pool, p_.isa, deal, exchange_->wire_dtype(), parts,
                                !first_wave);
  });
}

// As deal_parts(), but of each block only the rows that tokens have.
template <typename E>
Status StepRunner<E>::embedding_parts(int64_t count, bool first_wave) {
  store::GradientExchange& exchange = *exchange_;
  const int64_t D = p_.config->hidden_size;
  const bool as_bf16 = exchange.wire_dtype() == DType::kBF16;
  find_embedding_rows(count, 0, p_.config->vocab_size);
  // A node's rows of an owner within a block.
  const auto rows_of = [this](int node, int owner, int64_t block) {
    const std::span<const int32_t> all = needed_[static_cast<size_t>(node)].of(owner);
    const auto begin = std::lower_bound(all.begin(), all.end(), block * model::kVocabularyBlock);
    const auto end = std::lower_bound(begin, all.end(), (block + 1) * model::kVocabularyBlock);
    return std::span<const int32_t>(begin, end);
  };
  for (int64_t block = 0; block < p_.layout->vocabulary_blocks(); ++block) {
    AMXT_TRY(exchange.begin([this] { return poll(); }));
    std::vector<int64_t> to, from;
    for (size_t index = 0; index < exchange.owners().size(); ++index) {
      const auto rows = rows_of(p_.group->node(), exchange.owners()[index], block);
      std::byte* part = exchange.part(index);
      for (size_t at = 0; at < rows.size(); ++at) {
        const auto row = static_cast<uint64_t>(rows[at]);
        const auto offset = static_cast<int64_t>(at) * D;
        float* sum = as_bf16 ? block_ : reinterpret_cast<float*>(part) + offset;
        std::fill_n(sum, D, 0.0f);
        auto token = std::lower_bound(embedding_rows_.begin(), embedding_rows_.end(), row << 32);
        for (; token != embedding_rows_.end() && *token >> 32 == row; ++token)
          kernels::accumulate(p_.isa, D, source_of(*token & 0xFFFFFFFF, count), sum);
        if (as_bf16) kernels::convert(p_.isa, D, sum, reinterpret_cast<bf16*>(part) + offset);
      }
      to.push_back(static_cast<int64_t>(rows.size()) * D);
    }
    std::vector<std::span<const int32_t>> mine;  // by node
    for (int node = 0; node < p_.group->node_count(); ++node) {
      mine.push_back(rows_of(node, me(), block));
      from.push_back(static_cast<int64_t>(mine.back().size()) * D);
    }
    const bool clear = first_wave && !p_.layout->tied();
    AMXT_TRY(exchange.send(to, from, [this, block, mine, clear](auto parts) {
      for (const store::OwnedRange& range :
           p_.layout->ranges(me(), p_.layout->embedding_deal(block))) {
        if (clear) clear_gradient(range);
        p_.parameters->add_gradient_rows(*p_.pool, p_.isa, range, exchange_->wire_dtype(), parts,
                                         mine);
      }
    }));
  }
  return exchange.finish([this] { return poll(); });
}

#define AMXT_INSTANTIATE(E)                                                              \
  template Status StepRunner<E>::join_nodes(Deadline);                                   \
  template Status StepRunner<E>::begin_call(const StepControl::Limits&);                 \
  template Status StepRunner<E>::end_call();                                             \
  template void StepRunner<E>::give_up_wire();                                           \
  template auto StepRunner<E>::wire_uses() const -> store::Traffic::Uses;                \
  template auto StepRunner<E>::wire_since(const store::Traffic::Uses&) const             \
      -> store::Traffic::Uses;                                                           \
  template void StepRunner<E>::add_wire(const store::Traffic::Uses&, StepResult*) const; \
  template Status StepRunner<E>::exchange_boxes();                                       \
  template Status StepRunner<E>::exchange_squares();                                     \
  template Status StepRunner<E>::exchange_tokens();                                      \
  template void StepRunner<E>::find_needed();                                            \
  template Status StepRunner<E>::begin_wave(const Batch&, int64_t, int64_t, bool);       \
  template Status StepRunner<E>::fetch_embedding();                                      \
  template Status StepRunner<E>::deal_parts(int64_t, bool, Compute);                     \
  template Status StepRunner<E>::embedding_parts(int64_t, bool)

AMXT_INSTANTIATE(float);
AMXT_INSTANTIATE(bf16);

}  // namespace amxt::train
