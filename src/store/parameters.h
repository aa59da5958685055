// Parameters: the sharded state of training. Compute weights shared by the node, everything else private to the owner of a row.
// A node of several keeps the compute weights of its own ranks' rows only ("home"), and sees the others through a window (window.h).
//
//   E = bf16    weight (bf16, shared) + 16 low bits + m + v (fp32) + gradient (bf16 or fp32): 2 + 2 + 4 + 4 + 2 (4) bytes per parameter
//   E = float   weight (fp32, shared) + m + v + gradient (fp32): 4 + 4 + 4 + 4
//
// Invariants: only the owner of a row writes it, and only between the commit of a step and its end; then every rank may read it.
// Private arrays are in the owner's private order (Layout); elements between ranges are never read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/bf16.h"
#include "base/buffer.h"
#include "base/cpu.h"
#include "base/dtype.h"
#include "base/thread_pool.h"
#include "comm/group.h"
#include "kernels/optimizer.h"
#include "model/decoder.h"
#include "store/layout.h"
#include "store/traffic.h"
#include "store/window.h"

namespace amxt::store {

enum class RowKind : int32_t {
  kMaster = 0,
  kGradient = 1,
  kFirstMoment = 2,
  kSecondMoment = 3,
  kCompute = 4
};

// Which parameters weight decay acts on.
enum class Decay : int32_t { kAll = 0, kMatrices = 1 };

template <typename E>
class Parameters {
 public:
  struct Options {
    bool optimizer = true;               // false: forward only, no low bits, moments or gradients
    DType gradient_dtype = DType::kF32;  // kF32, or kBF16 when E is bf16
    int window_slots = 2;                // deals at a time that a node of several sees
  };
  // Collective on the node: the shared segment is made here.
  static Result<std::unique_ptr<Parameters>> create(const Layout* layout, comm::Group* group,
                                                    const Options& options, Deadline deadline);

  const Layout& layout() const { return *layout_; }
  int owner() const { return owner_; }
  const Options& options() const { return options_; }

  // The one door to the compute weights of others: all rows of a deal, readable until release(). The address is of its first row; its
  // tensors lie as in the shared order. On one node every deal is always there. On several, begin_pass() says beforehand what will be
  // acquired, in order, on all ranks alike, and drain() ends the reading of this rank's rows by others; one thread does all this.
  bool has_window() const { return window_ != nullptr; }
  void begin_pass(std::span<const int64_t> deals);
  Result<const E*> acquire(int64_t deal, Poll poll);
  void release(int64_t deal);
  Status drain(Poll poll);
  // The matrices and vectors of a layer within its deal.
  model::LayerWeights<E> layer_weights(int64_t layer, const E* deal) const;
  // Connects the nodes for the window and everything else that passes between them; gives up what was under way. Collective.
  Status connect(Deadline deadline);
  void disconnect();
  // Null on one node.
  Traffic* traffic() { return traffic_.get(); }

  // The compute weights of rows that this rank owns.
  E* weights(const OwnedRange& range) const {
    if (home_ != nullptr) return home_ + range.private_offset;
    return shared_ + layout_->shared_offset(range.tensor) + range.row_begin * columns(range);
  }
  // A whole tensor, in the layout's order; on one node only.
  const E* tensor(int64_t index) const { return shared_ + layout_->shared_offset(index); }

  // Private arrays at an owned range; gradients as float or bf16 by options().gradient_dtype.
  uint16_t* low(const OwnedRange& range) const {
    return low_.template as<uint16_t>() + range.private_offset;
  }
  float* first_moment(const OwnedRange& range) const {
    return moments_.template as<float>() + range.private_offset;
  }
  float* second_moment(const OwnedRange& range) const {
    return first_moment(range) + private_elements_;
  }
  float* gradient_float(const OwnedRange& range) const {
    return gradient_.template as<float>() + range.private_offset;
  }
  bf16* gradient_bf16(const OwnedRange& range) const {
    return gradient_.template as<bf16>() + range.private_offset;
  }
  bool gradients_are_bf16() const { return options_.gradient_dtype == DType::kBF16; }

  // The gradient of this rank's rows in a deal = (`add`: what is kept +) the nodes' parts, summed in fp32 in their order. A part holds the
  // rows as the private order does, from the deal's first on.
  void sum_gradient(ThreadPool& pool, Isa isa, int64_t deal, DType dtype,
                    std::span<const std::byte* const> parts, bool add);
  // The same for some rows of the embedding: rows[node] are those, ascending, that part has, one after the other; always added.
  void add_gradient_rows(ThreadPool& pool, Isa isa, const OwnedRange& range, DType dtype,
                         std::span<const std::byte* const> parts,
                         std::span<const std::span<const int32_t>> rows);

  // Sum of squares of the gradient of each owned panel into sums[panel]; panels of others are not touched. Names the first tensor with
  // an element that is not finite (its index), or -1.
  int64_t gradient_squares(ThreadPool& pool, Isa isa, double* sums) const;
  // AdamW on all owned rows; weights are published by the caller's barrier.
  void update(ThreadPool& pool, Isa isa, kernels::AdamwStep step, Decay decay);

  // A row of an owned range, row-major: compute weights, and gradients as fp32.
  void copy_weights(const OwnedRange& range, int64_t row, E* values) const;
  void read_gradient(const OwnedRange& range, int64_t row, float* values) const;
  void write_gradient(const OwnedRange& range, int64_t row, const float* values);
  // Compute weights and, where they are kept and given, low bits of whole panels of a range, row-major; and back.
  void put_panels(const OwnedRange& range, int64_t row_begin, int64_t rows, const E* weights,
                  const uint16_t* low);
  void get_panels(const OwnedRange& range, int64_t row_begin, int64_t rows, E* weights) const;

  // Rows of an owned range as fp32, row-major, `rows` x columns; and back. The rows lie within `range`.
  void read_rows(RowKind kind, const OwnedRange& range, int64_t row_begin, int64_t rows,
                 float* values) const;
  void write_rows(RowKind kind, const OwnedRange& range, int64_t row_begin, int64_t rows,
                  const float* values);

  // Takes the pages of zeroed state before it is used, so that a lack of memory shows now.
  void populate_low_bits(ThreadPool& pool);
  void populate_moments(ThreadPool& pool);

  int64_t shared_bytes() const { return segment_.bytes(); }
  // Elements of the segment that a node keeps for good, on one node and on several.
  static int64_t home_elements(const Layout& layout, const comm::Nodes& nodes, int node);
  // That the norm of gradients reads, and that an update reads and writes.
  double gradient_bytes() const { return static_cast<double>(gradient_.bytes()); }
  double update_bytes() const {
    return gradient_bytes() + 2.0 * static_cast<double>(low_.bytes() + moments_.bytes() +
                                                        private_elements_ * int64_t{sizeof(E)});
  }
  int64_t private_bytes() const { return low_.bytes() + moments_.bytes() + gradient_.bytes(); }

 private:
  // Columns of a row, from a multiple of 32 on.
  struct RowPart {
    int64_t row, column, count;
  };
  RowPart whole_row(const OwnedRange& range, int64_t row) const { return {row, 0, columns(range)}; }
  // Between an array in the layout's order, from the range's first element on, and a row-major one.
  template <typename T>
  void copy_row(const OwnedRange& range, const RowPart& part, const T* array, T* values) const;
  template <typename T>
  void put_row(const OwnedRange& range, const RowPart& part, const T* values, T* array);
  int64_t offset_of(const OwnedRange& range, const RowPart& part) const;

  // Pieces of owned ranges that one task takes.
  struct Chunk {
    OwnedRange range;   // whole panels
    int64_t count = 0;  // elements
    bool vector = false;
  };
  Parameters(const Layout* layout, int owner, const Options& options);
  int64_t columns(const OwnedRange& range) const {
    return layout_->specs()[static_cast<size_t>(range.tensor)].columns;
  }

  const Layout* layout_;
  int owner_;
  Options options_;
  int64_t private_elements_ = 0;
  comm::SharedMemory segment_;
  E* shared_ = nullptr;  // on one node: every weight, in the shared order
  E* home_ = nullptr;    // on several: this rank's, in its private order
  std::unique_ptr<Traffic> traffic_;
  std::unique_ptr<Window> window_;
  Buffer low_, moments_, gradient_;
  std::vector<Chunk> chunks_;
};

}  // namespace amxt::store
