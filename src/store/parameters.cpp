#include "store/parameters.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/rows.h"

namespace amxt::store {
namespace {

// Elements that one task of the optimizer takes, about: panels are never cut.
constexpr int64_t kChunkElements = 128 * 1024;
// Elements of a gradient that are summed at a time: they stay in the first cache.
constexpr int64_t kSumElements = 4096;
// Rows of an embedding that one task adds up.
constexpr int64_t kRowsAtOnce = 8;

int64_t aligned(int64_t elements) { return (elements + 63) / 64 * 64; }

// Writes a byte of each page with what it holds.
void touch(ThreadPool& pool, const Buffer& buffer) {
  constexpr int64_t kPage = 4096;
  pool.run_blocks(buffer.bytes(), int64_t{8} << 20, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kPage) {
      auto* byte = reinterpret_cast<volatile std::byte*>(buffer.data() + at);
      *byte = *byte;
    }
  });
}

}  // namespace

template <typename E>
Parameters<E>::Parameters(const Layout* layout, int owner, const Options& options)
    : layout_(layout),
      owner_(owner),
      options_(options),
      private_elements_(layout->private_elements(owner)) {
  for (const OwnedRange& range : layout->ranges(owner, -1)) {
    const model::TensorSpec& spec = layout->specs()[static_cast<size_t>(range.tensor)];
    const int64_t panels = std::max<int64_t>(1, kChunkElements / (kPanelRows * spec.columns));
    for (int64_t row = range.row_begin; row < range.row_end;) {
      // Panels start at multiples of kPanelRows of the tensor.
      const int64_t end = std::min(range.row_end, (row / kPanelRows + panels) * kPanelRows);
      Chunk chunk;
      chunk.range = {range.tensor, row, end,
                     range.private_offset + (row - range.row_begin) * spec.columns};
      chunk.count = layout->stored_elements(chunk.range);
      chunk.vector = spec.vector;
      chunks_.push_back(chunk);
      row = end;
    }
  }
}

template <typename E>
Result<std::unique_ptr<Parameters<E>>> Parameters<E>::create(const Layout* layout,
                                                             comm::Group* group,
                                                             const Options& options,
                                                             Deadline deadline) {
  std::unique_ptr<Parameters> parameters(new Parameters(layout, group->rank(), options));
  const int64_t elements = parameters->private_elements_;
  if (options.optimizer) {
    if constexpr (sizeof(E) == 2) {
      AMXT_ASSIGN(parameters->low_,
                  Buffer::allocate(elements * 2, "low bits of the master weights"));
    }
    AMXT_ASSIGN(parameters->moments_, Buffer::allocate(elements * 8, "moments"));
    AMXT_ASSIGN(parameters->gradient_,
                Buffer::allocate(elements * dtype_bytes(options.gradient_dtype), "gradients"));
  }
  const comm::Nodes& nodes = group->nodes();
  const int64_t shared = home_elements(*layout, nodes, group->node());
  AMXT_ASSIGN(parameters->segment_,
              group->share("weights", shared * static_cast<int64_t>(sizeof(E)), deadline));
  auto* const first = reinterpret_cast<E*>(parameters->segment_.data());
  if (nodes.count() == 1) {
    parameters->shared_ = first;
    return parameters;
  }
  parameters->home_ = first;
  for (const int rank : nodes.on(group->node())) {
    if (rank == group->rank()) break;
    parameters->home_ += aligned(layout->private_elements(rank));
  }
  parameters->traffic_ = std::make_unique<Traffic>(group);
  AMXT_ASSIGN(parameters->window_,
              Window::create(layout, group, parameters->traffic_.get(),
                             reinterpret_cast<const std::byte*>(parameters->home_), sizeof(E),
                             options.window_slots, deadline));
  return parameters;
}

template <typename E>
int64_t Parameters<E>::home_elements(const Layout& layout, const comm::Nodes& nodes, int node) {
  if (nodes.count() == 1) return layout.shared_elements();
  int64_t elements = 0;
  for (const int rank : nodes.on(node)) elements += aligned(layout.private_elements(rank));
  return elements;
}

template <typename E>
Status Parameters<E>::connect(Deadline deadline) {
  if (!traffic_) return {};
  disconnect();
  AMXT_TRY(traffic_->connect(deadline));
  return window_->restart(deadline);
}

template <typename E>
void Parameters<E>::disconnect() {
  if (!traffic_) return;
  window_->stop();
  traffic_->disconnect();
}

template <typename E>
void Parameters<E>::begin_pass(std::span<const int64_t> deals) {
  if (window_) window_->begin(deals);
}

template <typename E>
Result<const E*> Parameters<E>::acquire(int64_t deal, Poll poll) {
  if (!window_) return shared_ + layout_->deal_offset(deal);
  AMXT_ASSIGN(const std::byte* const at, window_->acquire(deal, poll));
  return reinterpret_cast<const E*>(at);
}

template <typename E>
void Parameters<E>::release(int64_t deal) {
  if (window_) window_->release(deal);
}

template <typename E>
Status Parameters<E>::drain(Poll poll) {
  return window_ ? window_->drain(poll) : Status();
}

template <typename E>
model::LayerWeights<E> Parameters<E>::layer_weights(int64_t layer, const E* deal) const {
  using model::Role;
  const E* const origin = deal - layout_->deal_offset(layout_->layer_deal(layer));
  const auto at = [&](Role role) -> const E* {
    const int64_t index = layout_->find(role, layer);
    return index < 0 ? nullptr : origin + layout_->shared_offset(index);
  };
  model::LayerWeights<E> w;
  w.input_norm = at(Role::kInputNorm);
  w.qkv = at(Role::kQuery);
  w.qkv_bias = at(Role::kQueryBias);
  w.query_norm = at(Role::kQueryNorm);
  w.key_norm = at(Role::kKeyNorm);
  w.output = at(Role::kOutput);
  w.output_bias = at(Role::kOutputBias);
  w.post_norm = at(Role::kPostNorm);
  w.gate_up = at(Role::kGate);
  w.gate_up_bias = at(Role::kGateBias);
  w.down = at(Role::kDown);
  w.down_bias = at(Role::kDownBias);
  return w;
}

template <typename E>
void Parameters<E>::sum_gradient(ThreadPool& pool, Isa isa, int64_t deal, DType dtype,
                                 std::span<const std::byte* const> parts, bool add) {
  const std::span<const OwnedRange> ranges = layout_->ranges(owner_, deal);
  if (ranges.empty()) return;
  const int64_t first = ranges.front().private_offset;
  for (const OwnedRange& range : ranges) {
    pool.run_blocks(layout_->stored_elements(range), kSumElements, [&](int64_t begin, int64_t end) {
      float sum[kSumElements];
      const int64_t n = end - begin, at = range.private_offset - first + begin;
      bf16* const as_bf16 = gradients_are_bf16() ? gradient_bf16(range) + begin : nullptr;
      float* const as_float = gradients_are_bf16() ? sum : gradient_float(range) + begin;
      if (!add) std::fill_n(as_float, n, 0.0f);
      if (add && as_bf16 != nullptr) kernels::convert(isa, n, as_bf16, sum);
      for (const std::byte* part : parts) {
        if (dtype == DType::kBF16) {
          kernels::accumulate(isa, n, reinterpret_cast<const bf16*>(part) + at, as_float);
        } else {
          kernels::accumulate(isa, n, reinterpret_cast<const float*>(part) + at, as_float);
        }
      }
      if (as_bf16 != nullptr) kernels::convert(isa, n, sum, as_bf16);
    });
  }
}

template <typename E>
void Parameters<E>::add_gradient_rows(ThreadPool& pool, Isa isa, const OwnedRange& range,
                                      DType dtype, std::span<const std::byte* const> parts,
                                      std::span<const std::span<const int32_t>> rows) {
  const int64_t width = columns(range);
  std::vector<int32_t> all;  // rows that any node has
  for (const auto& list : rows) all.insert(all.end(), list.begin(), list.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  pool.run_blocks(static_cast<int64_t>(all.size()), kRowsAtOnce, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<size_t>(width));
    for (int64_t index = begin; index < end; ++index) {
      const int32_t row = all[static_cast<size_t>(index)];
      read_gradient(range, row, sum.data());
      for (size_t node = 0; node < parts.size(); ++node) {
        const auto found = std::lower_bound(rows[node].begin(), rows[node].end(), row);
        if (found == rows[node].end() || *found != row) continue;
        const int64_t at = (found - rows[node].begin()) * width;
        if (dtype == DType::kBF16) {
          kernels::accumulate(isa, width, reinterpret_cast<const bf16*>(parts[node]) + at,
                              sum.data());
        } else {
          kernels::accumulate(isa, width, reinterpret_cast<const float*>(parts[node]) + at,
                              sum.data());
        }
      }
      write_gradient(range, row, sum.data());
    }
  });
}

template <typename E>
int64_t Parameters<E>::gradient_squares(ThreadPool& pool, Isa isa, double* sums) const {
  std::atomic<int64_t> bad{INT64_MAX};
  pool.run(static_cast<int64_t>(chunks_.size()), [&](int64_t index, int) {
    const Chunk& chunk = chunks_[static_cast<size_t>(index)];
    const int64_t columns = layout_->specs()[static_cast<size_t>(chunk.range.tensor)].columns;
    bool finite = true;
    for (int64_t row = chunk.range.row_begin; row < chunk.range.row_end; row += kPanelRows) {
      const int64_t rows = std::min(kPanelRows, chunk.range.row_end - row);
      OwnedRange panel = chunk.range;
      panel.private_offset += (row - chunk.range.row_begin) * columns;
      const int64_t count = layout_->stored_elements(chunk.range.tensor, rows);
      sums[layout_->panel(chunk.range.tensor, row)] =
          gradients_are_bf16()
              ? kernels::sum_of_squares(isa, count, gradient_bf16(panel), &finite)
              : kernels::sum_of_squares(isa, count, gradient_float(panel), &finite);
    }
    if (!finite) {
      int64_t seen = bad.load();
      while (chunk.range.tensor < seen && !bad.compare_exchange_weak(seen, chunk.range.tensor)) {
      }
    }
  });
  return bad.load() == INT64_MAX ? -1 : bad.load();
}

template <typename E>
void Parameters<E>::update(ThreadPool& pool, Isa isa, kernels::AdamwStep step, Decay decay) {
  pool.run(static_cast<int64_t>(chunks_.size()), [&](int64_t index, int) {
    const Chunk& chunk = chunks_[static_cast<size_t>(index)];
    kernels::AdamwStep own = step;
    if (decay == Decay::kMatrices && chunk.vector) own.weight_decay = 0;
    E* weight = weights(chunk.range);
    if constexpr (sizeof(E) == 2) {
      if (gradients_are_bf16()) {
        kernels::adamw_split(isa, chunk.count, weight, low(chunk.range), first_moment(chunk.range),
                             second_moment(chunk.range), gradient_bf16(chunk.range), own);
      } else {
        kernels::adamw_split(isa, chunk.count, weight, low(chunk.range), first_moment(chunk.range),
                             second_moment(chunk.range), gradient_float(chunk.range), own);
      }
    } else {
      kernels::adamw_float(isa, chunk.count, weight, first_moment(chunk.range),
                           second_moment(chunk.range), gradient_float(chunk.range), own);
    }
  });
}

template <typename E>
void Parameters<E>::populate_low_bits(ThreadPool& pool) {
  touch(pool, low_);
}

template <typename E>
void Parameters<E>::populate_moments(ThreadPool& pool) {
  touch(pool, moments_);
}

// --- Rows ---------------------------------------------------------------------------------------

template <typename E>
int64_t Parameters<E>::offset_of(const OwnedRange& range, const RowPart& part) const {
  const int64_t at = part.row - range.row_begin;
  if (!layout_->is_blocked(range.tensor)) return at * columns(range) + part.column;
  return kernels::BlockedShape{range.rows(), columns(range)}.offset(at, part.column);
}

template <typename E>
template <typename T>
void Parameters<E>::copy_row(const OwnedRange& range, const RowPart& part, const T* array,
                             T* values) const {
  const T* const from = array + offset_of(range, part);
  if (layout_->is_blocked(range.tensor)) {
    kernels::row_from_blocked(part.count, from, values);
  } else {
    std::copy_n(from, part.count, values);
  }
}

template <typename E>
template <typename T>
void Parameters<E>::put_row(const OwnedRange& range, const RowPart& part, const T* values,
                            T* array) {
  T* const to = array + offset_of(range, part);
  if (layout_->is_blocked(range.tensor)) {
    kernels::row_to_blocked(part.count, values, to);
  } else {
    std::copy_n(values, part.count, to);
  }
}

template <typename E>
void Parameters<E>::copy_weights(const OwnedRange& range, int64_t row, E* values) const {
  copy_row<E>(range, whole_row(range, row), weights(range), values);
}

template <typename E>
void Parameters<E>::read_gradient(const OwnedRange& range, int64_t row, float* values) const {
  if (!gradients_are_bf16())
    return copy_row<float>(range, whole_row(range, row), gradient_float(range), values);
  bf16 rounded[kSumElements];
  for (int64_t column = 0; column < columns(range); column += kSumElements) {
    const RowPart part{row, column, std::min(kSumElements, columns(range) - column)};
    copy_row<bf16>(range, part, gradient_bf16(range), rounded);
    for (int64_t i = 0; i < part.count; ++i) values[column + i] = to_float(rounded[i]);
  }
}

template <typename E>
void Parameters<E>::write_gradient(const OwnedRange& range, int64_t row, const float* values) {
  if (!gradients_are_bf16())
    return put_row(range, whole_row(range, row), values, gradient_float(range));
  bf16 rounded[kSumElements];
  for (int64_t column = 0; column < columns(range); column += kSumElements) {
    const RowPart part{row, column, std::min(kSumElements, columns(range) - column)};
    for (int64_t i = 0; i < part.count; ++i) rounded[i] = to_bf16(values[column + i]);
    put_row<bf16>(range, part, rounded, gradient_bf16(range));
  }
}

template <typename E>
void Parameters<E>::put_panels(const OwnedRange& range, int64_t row_begin, int64_t rows,
                               const E* values, const uint16_t* low_bits) {
  const int64_t width = columns(range), offset = (row_begin - range.row_begin) * width;
  E* const to = weights(range) + offset;
  const bool has_low = sizeof(E) == 2 && options_.optimizer && low_bits != nullptr;
  if (layout_->is_blocked(range.tensor)) {
    const kernels::BlockedShape shape{rows, width};
    kernels::to_blocked(shape, values, width, to);
    if (has_low) kernels::to_blocked(shape, low_bits, width, low(range) + offset);
  } else {
    std::copy_n(values, rows * width, to);
    if (has_low) std::copy_n(low_bits, rows * width, low(range) + offset);
  }
}

template <typename E>
void Parameters<E>::get_panels(const OwnedRange& range, int64_t row_begin, int64_t rows,
                               E* values) const {
  const int64_t width = columns(range);
  const E* const from = weights(range) + (row_begin - range.row_begin) * width;
  if (layout_->is_blocked(range.tensor)) {
    kernels::from_blocked({rows, width}, from, values, width);
  } else {
    std::copy_n(from, rows * width, values);
  }
}

template <typename E>
void Parameters<E>::read_rows(RowKind kind, const OwnedRange& range, int64_t row_begin,
                              int64_t rows, float* values) const {
  const int64_t width = columns(range);
  std::vector<E> weight(static_cast<size_t>(width));
  std::vector<uint16_t> dropped(sizeof(E) == 2 ? static_cast<size_t>(width) : 0);
  for (int64_t row = row_begin; row < row_begin + rows; ++row, values += width) {
    switch (kind) {
      case RowKind::kFirstMoment:
        copy_row<float>(range, whole_row(range, row), first_moment(range), values);
        break;
      case RowKind::kSecondMoment:
        copy_row<float>(range, whole_row(range, row), second_moment(range), values);
        break;
      case RowKind::kGradient:
        read_gradient(range, row, values);
        break;
      case RowKind::kCompute:
      case RowKind::kMaster: {
        copy_weights(range, row, weight.data());
        const bool joins = sizeof(E) == 2 && kind == RowKind::kMaster && options_.optimizer;
        if (joins) copy_row<uint16_t>(range, whole_row(range, row), low(range), dropped.data());
        for (int64_t i = 0; i < width; ++i) {
          const E value = weight[static_cast<size_t>(i)];
          if constexpr (sizeof(E) == 2) {
            values[i] = joins ? kernels::join_master(value, dropped[static_cast<size_t>(i)])
                              : to_float(value);
          } else {
            values[i] = value;
          }
        }
        break;
      }
    }
  }
}

template <typename E>
void Parameters<E>::write_rows(RowKind kind, const OwnedRange& range, int64_t row_begin,
                               int64_t rows, const float* values) {
  const int64_t width = columns(range);
  std::vector<E> weight(static_cast<size_t>(width));
  std::vector<uint16_t> dropped(sizeof(E) == 2 ? static_cast<size_t>(width) : 0);
  for (int64_t row = row_begin; row < row_begin + rows; ++row, values += width) {
    switch (kind) {
      case RowKind::kFirstMoment:
        put_row(range, whole_row(range, row), values, first_moment(range));
        break;
      case RowKind::kSecondMoment:
        put_row(range, whole_row(range, row), values, second_moment(range));
        break;
      case RowKind::kMaster:
        if constexpr (sizeof(E) == 2) {
          for (int64_t i = 0; i < width; ++i) {
            const auto at = static_cast<size_t>(i);
            kernels::split_master(values[i], &weight[at], &dropped[at]);
          }
          put_row<E>(range, whole_row(range, row), weight.data(), weights(range));
          if (options_.optimizer)
            put_row<uint16_t>(range, whole_row(range, row), dropped.data(), low(range));
        } else {
          put_row<float>(range, whole_row(range, row), values, weights(range));
        }
        break;
      case RowKind::kGradient:
      case RowKind::kCompute:
        return;  // read only; refused above
    }
  }
}

template class Parameters<float>;
template class Parameters<bf16>;

}  // namespace amxt::store
