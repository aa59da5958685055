// Parameters: the sharded state of training. Compute weights shared by the node, everything else private to the owner of a row.
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
  };
  // Collective on the node: the shared segment is made here.
  static Result<std::unique_ptr<Parameters>> create(const Layout* layout, comm::Group* group,
                                                    const Options& options, Deadline deadline);

  const Layout& layout() const { return *layout_; }
  int owner() const { return owner_; }
  const Options& options() const { return options_; }

  // The compute weights of a layer, readable until release(). (One node: all layers are always there.)
  model::LayerWeights<E> acquire(int64_t layer) const;
  void release(int64_t) const {}
  const E* tensor(int64_t index) const { return shared_ + layout_->shared_offset(index); }
  E* mutable_tensor(int64_t index) { return shared_ + layout_->shared_offset(index); }

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

  // Sum of squares of the gradient of each owned panel into sums[panel]; panels of others are not touched. Names the first tensor with
  // an element that is not finite (its index), or -1.
  int64_t gradient_squares(ThreadPool& pool, Isa isa, double* sums) const;
  // AdamW on all owned rows; weights are published by the caller's barrier.
  void update(ThreadPool& pool, Isa isa, kernels::AdamwStep step, Decay decay);

  // Rows of an owned range as fp32, row-major, `rows` x columns; and back. The rows lie within `range`.
  void read_rows(RowKind kind, const OwnedRange& range, int64_t row_begin, int64_t rows,
                 float* values) const;
  void write_rows(RowKind kind, const OwnedRange& range, int64_t row_begin, int64_t rows,
                  const float* values);

  // Takes the pages of zeroed state before it is used, so that a lack of memory shows now.
  void populate_low_bits(ThreadPool& pool);
  void populate_moments(ThreadPool& pool);

  int64_t shared_bytes() const { return segment_.bytes(); }
  int64_t private_bytes() const { return low_.bytes() + moments_.bytes() + gradient_.bytes(); }

 private:
  // Pieces of owned ranges that one task takes.
  struct Chunk {
    OwnedRange range;   // whole panels
    int64_t count = 0;  // elements
    bool vector = false;
  };
  Parameters(const Layout* layout, int owner, const Options& options);

  const Layout* layout_;
  int owner_;
  Options options_;
  int64_t private_elements_ = 0;
  comm::SharedMemory segment_;
  E* shared_ = nullptr;
  Buffer low_, moments_, gradient_;
  std::vector<Chunk> chunks_;
};

}  // namespace amxt::store
