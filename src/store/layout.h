// Layout: the one bijection (tensor, row, column) -> (owner, place). Nothing else knows where a weight lies.
//
// Two orders, one of them of all ranks of the node, one of each owner:
//   shared    the compute weights of the node, tensor after tensor in the order of model::tensor_specs(); q, k and v (and gate and up)
//             without a gap, so that each group is one matrix. Every rank maps it whole.
//   private   what an owner keeps of its rows (low bits, moments, gradients), its ranges one after the other.
// Rows are dealt out in panels of 32 (the last of a tensor may be short; a vector is one panel). A deal is what is handed out evenly by
// bytes at a time: a decoder layer, the final norm, a block of the vocabulary (so that each rank has rows in every block that the head
// works on). A rank may own no row of a tensor, or none of a deal.
//
// In the blocked order (kernels/blocked_layout.h) each panel of a matrix that products read is permuted within itself, in every array
// alike, and the last one of a tensor takes the room of 32 rows: so offsets of panels are those of row-major rows. Vectors stay as they
// are, and so does an embedding that is not the head's weight too.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/blocked_layout.h"
#include "model/config.h"
#include "model/tensors.h"

namespace amxt::store {

inline constexpr int64_t kPanelRows = 32;

struct OwnedRange {
  int64_t tensor = 0;  // index into specs()
  int64_t row_begin = 0, row_end = 0;
  int64_t private_offset = 0;  // elements, within the owner's arrays
  int64_t rows() const { return row_end - row_begin; }
};

// Where one element is.
struct Place {
  int owner = 0;
  int64_t shared_offset = 0;   // elements, in the shared segment
  int64_t private_offset = 0;  // elements, in the owner's arrays
};

class Layout {
 public:
  using Order = kernels::WeightOrder;
  // The order for bf16 or fp32 weights of this model: blocked where all sides of its matrices but the vocabulary are multiples of 32;
  // else `why` says what is in the way.
  static Order order_for(const model::ModelConfig& config, bool is_bf16,
                         std::string* why = nullptr);

  Layout(const model::ModelConfig& config, int owners, Order order = Order::kRowMajor);

  Order order() const { return order_; }
  bool is_blocked(int64_t tensor) const {
    return order_ == Order::kBlocked && !spec(tensor).vector && (tensor != embedding() || tied_);
  }
  const model::TensorSpec& spec(int64_t tensor) const {
    return specs_[static_cast<size_t>(tensor)];
  }
  // Elements that so many rows of a tensor, from a panel's first one on, take in every array.
  int64_t stored_elements(int64_t tensor, int64_t rows) const {
    if (is_blocked(tensor)) rows = (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
    return rows * spec(tensor).columns;
  }
  int64_t stored_elements(const OwnedRange& range) const {
    return stored_elements(range.tensor, range.rows());
  }

  int owners() const { return owners_; }
  const std::vector<model::TensorSpec>& specs() const { return specs_; }
  bool tied() const { return tied_; }
  int64_t shared_elements() const { return shared_elements_; }
  int64_t private_elements(int owner) const {
    return private_elements_[static_cast<size_t>(owner)];
  }
  int64_t shared_offset(int64_t tensor) const {
    return shared_offset_[static_cast<size_t>(tensor)];
  }
  Place locate(int64_t tensor, int64_t row, int64_t column) const;

  // Index into specs(), -1 when absent. `unit` as in TensorSpec.
  int64_t find(model::Role role, int64_t unit) const;
  int64_t embedding() const { return 0; }
  int64_t head() const { return tied_ ? 0 : static_cast<int64_t>(specs_.size()) - 1; }

  // Deals: vocabulary blocks of the embedding, layers, final norm, vocabulary blocks of an untied head.
  int64_t deals() const { return static_cast<int64_t>(deal_begin_.size()) - 1; }
  int64_t vocabulary_blocks() const { return vocabulary_blocks_; }
  int64_t layer_deal(int64_t layer) const { return vocabulary_blocks_ + layer; }
  int64_t norm_deal() const { return vocabulary_blocks_ + layers_; }
  int64_t embedding_deal(int64_t block) const { return block; }
  int64_t head_deal(int64_t block) const { return tied_ ? block : norm_deal() + 1 + block; }
  // A deal in the shared order: where its first row begins, and its elements from there to the end of its last one, gaps included.
  int64_t deal_offset(int64_t deal) const { return extent(deal).begin; }
  int64_t deal_elements(int64_t deal) const { return extent(deal).end - extent(deal).begin; }
  int64_t largest_deal() const;
  // Elements that the ranges of `owner` in a deal span in its private order, gaps included.
  int64_t span_elements(int owner, int64_t deal) const;
  // Owner of a row of the embedding.
  int embedding_owner(int64_t row) const {
    return embedding_owner_[static_cast<size_t>(row / kPanelRows)];
  }
  // Ranges of `owner` in a deal; all of an owner's, in private order, with deal = -1.
  std::span<const OwnedRange> ranges(int owner, int64_t deal) const;

  // Panels, numbered over all tensors: where partial sums of norms are kept, in an order that does not depend on owners.
  int64_t panels() const { return panels_; }
  int64_t panel(int64_t tensor, int64_t row) const {
    return panel_base_[static_cast<size_t>(tensor)] + row / kPanelRows;
  }

 private:
  struct Extent {
    int64_t begin = 0, end = 0;
  };
  const Extent& extent(int64_t deal) const { return extent_[static_cast<size_t>(deal)]; }
  void deal_out(int64_t first_tensor, int64_t last_tensor, int64_t row_begin, int64_t row_end);

  std::vector<model::TensorSpec> specs_;
  int owners_;
  Order order_;
  bool tied_;
  int64_t layers_;
  int64_t vocabulary_blocks_ = 0;
  int64_t shared_elements_ = 0;
  int64_t panels_ = 0;
  std::vector<int64_t> shared_offset_, panel_base_, private_elements_;
  std::vector<std::vector<OwnedRange>> ranges_;           // by owner
  std::vector<std::vector<size_t>> deal_begin_by_owner_;  // by owner: first range of each deal
  std::vector<int64_t> deal_begin_;   // first tensor of each deal, and an end mark
  std::vector<Extent> extent_;        // by deal
  std::vector<int> embedding_owner_;  // by panel
};

}  // namespace amxt::store
