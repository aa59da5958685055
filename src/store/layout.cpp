#include "store/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "model/head.h"

namespace amxt::store {
namespace {

// Where a tensor starts; a multiple of a cache line for both float and bf16.
constexpr int64_t kAlignElements = 64;

int64_t aligned(int64_t elements) {
  return (elements + kAlignElements - 1) / kAlignElements * kAlignElements;
}

// True for a tensor that continues the matrix (or vector) of the one before it.
bool continues(model::Role role) {
  using model::Role;
  return role == Role::kKey || role == Role::kValue || role == Role::kKeyBias ||
         role == Role::kValueBias || role == Role::kUp || role == Role::kUpBias;
}

int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

}  // namespace

Layout::Order Layout::order_for(const model::ModelConfig& config, bool is_bf16, std::string* why) {
  const auto row_major = [&](std::string reason) {
    if (why != nullptr) *why = std::move(reason);
    return Order::kRowMajor;
  };
  if (!is_bf16) return row_major("the weights are fp32");
  const std::pair<const char*, int64_t> sides[] = {{"hidden_size", config.hidden_size},
                                                   {"intermediate_size", config.intermediate_size},
                                                   {"size of all query heads", config.query_size()},
                                                   {"size of all kv heads", config.kv_size()}};
  for (const auto& [name, side] : sides) {
    if (side % kPanelRows != 0)
      return row_major(fmt::format("the {}, {}, is no multiple of {}", name, side, kPanelRows));
  }
  return Order::kBlocked;
}

Layout::Layout(const model::ModelConfig& config, int owners, Order order)
    : specs_(model::tensor_specs(config)),
      owners_(owners),
      order_(order),
      tied_(config.tie_word_embeddings),
      layers_(config.layers) {
  for (const model::TensorSpec& spec : specs_) {
    if (!continues(spec.role)) shared_elements_ = aligned(shared_elements_);
    shared_offset_.push_back(shared_elements_);
    shared_elements_ += stored_elements(static_cast<int64_t>(shared_offset_.size()) - 1, spec.rows);
    panel_base_.push_back(panels_);
    panels_ += panels_of(spec.rows);
  }
  shared_elements_ = aligned(shared_elements_);
  private_elements_.assign(static_cast<size_t>(owners), 0);
  ranges_.resize(static_cast<size_t>(owners));
  deal_begin_by_owner_.resize(static_cast<size_t>(owners));

  const auto deal_vocabulary = [&](int64_t tensor) {
    const int64_t rows = specs_[static_cast<size_t>(tensor)].rows;
    for (int64_t row = 0; row < rows; row += model::kVocabularyBlock) {
      deal_out(tensor, tensor + 1, row, std::min(rows, row + model::kVocabularyBlock));
    }
  };
  vocabulary_blocks_ = (config.vocab_size + model::kVocabularyBlock - 1) / model::kVocabularyBlock;
  deal_vocabulary(0);
  int64_t tensor = 1;
  const auto count = static_cast<int64_t>(specs_.size());
  for (int64_t layer = 0; layer < layers_; ++layer) {
    int64_t end = tensor;
    while (end < count && specs_[static_cast<size_t>(end)].unit == layer) ++end;
    deal_out(tensor, end, 0, INT64_MAX);
    tensor = end;
  }
  deal_out(tensor, tensor + 1, 0, INT64_MAX);  // final norm
  if (!tied_) deal_vocabulary(tensor + 1);
  deal_begin_.push_back(count);
  for (auto& begins : deal_begin_by_owner_) begins.push_back(0);
  for (size_t owner = 0; owner < ranges_.size(); ++owner)
    deal_begin_by_owner_[owner].back() = ranges_[owner].size();
}

// Hands the panels of the rows [row_begin, row_end) of tensors [first, last) to the owners in turn of their share of the bytes.
void Layout::deal_out(int64_t first, int64_t last, int64_t row_begin, int64_t row_end) {
  deal_begin_.push_back(first);
  for (size_t owner = 0; owner < ranges_.size(); ++owner)
    deal_begin_by_owner_[owner].push_back(ranges_[owner].size());
  int64_t total = 0;
  for (int64_t tensor = first; tensor < last; ++tensor) {
    const model::TensorSpec& spec = specs_[static_cast<size_t>(tensor)];
    total += (std::min(row_end, spec.rows) - row_begin) * spec.columns;
  }
  extent_.push_back({shared_offset(first) + row_begin * spec(first).columns,
                     shared_offset(last - 1) +
                         stored_elements(last - 1, std::min(row_end, spec(last - 1).rows))});
  int64_t dealt = 0;
  for (int64_t tensor = first; tensor < last; ++tensor) {
    const model::TensorSpec& spec = specs_[static_cast<size_t>(tensor)];
    const int64_t end = std::min(row_end, spec.rows);
    for (int64_t row = row_begin; row < end; row += kPanelRows) {
      const int64_t rows = std::min(kPanelRows, end - row);
      const int64_t elements = rows * spec.columns;
      // By the middle of the panel: an even share, and the same rule for any number of owners.
      const auto owner = static_cast<size_t>(
          std::min<int64_t>(owners_ - 1, (2 * dealt + elements) * owners_ / (2 * total)));
      dealt += elements;
      if (tensor == embedding()) embedding_owner_.push_back(static_cast<int>(owner));
      std::vector<OwnedRange>& ranges = ranges_[owner];
      const bool new_deal = ranges.size() == deal_begin_by_owner_[owner].back();
      if (!new_deal && ranges.back().tensor == tensor && ranges.back().row_end == row) {
        ranges.back().row_end += rows;
        private_elements_[owner] += stored_elements(tensor, rows);
        continue;
      }
      private_elements_[owner] = aligned(private_elements_[owner]);
      ranges.push_back({tensor, row, row + rows, private_elements_[owner]});
      private_elements_[owner] += stored_elements(tensor, rows);
    }
  }
}

std::span<const OwnedRange> Layout::ranges(int owner, int64_t deal) const {
  const std::vector<OwnedRange>& all = ranges_[static_cast<size_t>(owner)];
  if (deal < 0) return all;
  const std::vector<size_t>& begins = deal_begin_by_owner_[static_cast<size_t>(owner)];
  const size_t begin = begins[static_cast<size_t>(deal)],
               end = begins[static_cast<size_t>(deal) + 1];
  return std::span(all).subspan(begin, end - begin);
}

int64_t Layout::largest_deal() const {
  int64_t largest = 0;
  for (const Extent& extent : extent_) largest = std::max(largest, extent.end - extent.begin);
  return largest;
}

int64_t Layout::span_elements(int owner, int64_t deal) const {
  const std::span<const OwnedRange> all = ranges(owner, deal);
  if (all.empty()) return 0;
  const OwnedRange& last = all.back();
  return last.private_offset + stored_elements(last) - all.front().private_offset;
}

int64_t Layout::find(model::Role role, int64_t unit) const {
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].role == role && specs_[i].unit == unit) return static_cast<int64_t>(i);
  }
  return -1;
}

Place Layout::locate(int64_t tensor, int64_t row, int64_t column) const {
  const int64_t columns = spec(tensor).columns;
  const auto within = [&](int64_t rows, int64_t at) {
    if (!is_blocked(tensor)) return at * columns + column;
    return kernels::BlockedShape{rows, columns}.offset(at, column);
  };
  Place place;
  place.shared_offset = shared_offset(tensor) + within(spec(tensor).rows, row);
  for (int owner = 0; owner < owners_; ++owner) {
    for (const OwnedRange& range : ranges_[static_cast<size_t>(owner)]) {
      if (range.tensor == tensor && row >= range.row_begin && row < range.row_end) {
        place.owner = owner;
        place.private_offset = range.private_offset + within(range.rows(), row - range.row_begin);
        return place;
      }
    }
  }
  return place;
}

}  // namespace amxt::store
