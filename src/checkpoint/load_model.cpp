#include "checkpoint/load_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/text.h"
#include "checkpoint/agreement.h"
#include "checkpoint/blocks.h"
#include "kernels/optimizer.h"
#include "kernels/rows.h"

namespace amxt::checkpoint {
namespace {

// Elements of an owned range that are read at a time.
struct Piece {
  store::OwnedRange range;
  int64_t first = 0;  // element of the tensor
  int64_t count = 0;
};

constexpr int64_t kConvertElements = 4096;  // F16 passes through fp32 in pieces of this size

Status check_same_tensors(const model::ModelDirectory& model, const store::Layout& layout) {
  const auto& have = model.specs();
  const auto& want = layout.specs();
  for (size_t i = 0; i < std::max(have.size(), want.size()); ++i) {
    if (i < have.size() && i < want.size() && have[i].name == want[i].name &&
        have[i].rows == want[i].rows && have[i].columns == want[i].columns) {
      continue;
    }
    const std::string& name = i < want.size() ? want[i].name : have[i].name;
    return Error(
        Code::kMismatch,
        fmt::format("{}: not the model that the trainer was created for: tensor {} differs",
                    quote(model.path()), quote(name)));
  }
  return {};
}

// Weight and low bits of `count` elements from their fp32 values; `low` may be null.
void put_values(const float* values, int64_t count, bf16* weight, uint16_t* low) {
  uint16_t dropped = 0;
  for (int64_t i = 0; i < count; ++i)
    kernels::split_master(values[i], &weight[i], low != nullptr ? &low[i] : &dropped);
}

void put_values(const float* values, int64_t count, float* weight, uint16_t*) {
  std::copy_n(values, count, weight);
}

void put_f16(const uint16_t* values, int64_t count, float* weight, uint16_t*) {
  kernels::convert_f16(count, values, weight);
}

void put_f16(const uint16_t* values, int64_t count, bf16* weight, uint16_t* low) {
  float converted[kConvertElements];
  for (int64_t i = 0; i < count; i += kConvertElements) {
    const int64_t n = std::min(kConvertElements, count - i);
    kernels::convert_f16(n, values + i, converted);
    put_values(converted, n, weight + i, low != nullptr ? low + i : nullptr);
  }
}

void put_bf16(const bf16* values, int64_t count, float* weight, uint16_t*) {
  for (int64_t i = 0; i < count; ++i) weight[i] = to_float(values[i]);
}

template <typename E>
class ModelLoad {
 public:
  ModelLoad(const model::ModelDirectory& model, store::Parameters<E>& parameters)
      : model_(model), parameters_(parameters) {}

  Status run(const Progress& progress, Deadline deadline, const std::atomic<bool>* cancel) {
    AMXT_TRY(check_same_tensors(model_, parameters_.layout()));
    plan();
    return run_blocks(
        list_, "loading the model", progress, deadline, cancel,
        [this](size_t block, std::span<std::byte> buffer) { return read(pieces_[block], buffer); });
  }

 private:
  const model::TensorLocation& location(const Piece& piece) const {
    return model_.location(static_cast<size_t>(piece.range.tensor));
  }

  // Owned rows in blocks, in the order in which they lie on disk.
  void plan() {
    const store::Layout& layout = parameters_.layout();
    for (const store::OwnedRange& range : layout.ranges(parameters_.owner(), -1)) {
      const int64_t columns = layout.specs()[static_cast<size_t>(range.tensor)].columns;
      const model::TensorLocation& at = model_.location(static_cast<size_t>(range.tensor));
      const int64_t step = elements_at_once(layout, range, dtype_bytes(at.entry->dtype));
      const int64_t end = range.row_end * columns;
      for (int64_t first = range.row_begin * columns; first < end; first += step) {
        pieces_.push_back({range, first, std::min(step, end - first)});
      }
    }
    std::sort(pieces_.begin(), pieces_.end(), [this](const Piece& a, const Piece& b) {
      const auto place = [this](const Piece& piece) {
        const model::TensorLocation& at = location(piece);
        return std::pair(at.file, at.entry->begin + piece.first * dtype_bytes(at.entry->dtype));
      };
      return place(a) < place(b);
    });
    for (const io::SafetensorsFile& file : model_.files())
      list_.items.push_back({base_name(file.path()), 0});
    for (const Piece& piece : pieces_) {
      const model::TensorLocation& at = location(piece);
      list_.add(static_cast<size_t>(at.file), piece.count * dtype_bytes(at.entry->dtype));
      list_.buffer_bytes = std::max(list_.buffer_bytes, buffer_bytes(piece));
    }
  }

  // Of an element: its weight and low bits.
  static constexpr int64_t kMadeBytes = sizeof(E) + sizeof(uint16_t);

  // In the blocked order by whole panels, which are put in their order after they were read.
  static int64_t elements_at_once(const store::Layout& layout, const store::OwnedRange& range,
                                  int64_t element_bytes) {
    if (!layout.is_blocked(range.tensor)) return kBlockBytes / element_bytes;
    const int64_t panel = store::kPanelRows * layout.spec(range.tensor).columns;
    return std::max<int64_t>(1, kBlockBytes / (element_bytes + kMadeBytes) / panel) * panel;
  }
  bool is_blocked(const Piece& piece) const {
    return parameters_.layout().is_blocked(piece.range.tensor);
  }
  // What was read, and of the blocked order the weights and low bits that are made of it.
  int64_t buffer_bytes(const Piece& piece) const {
    const int64_t element = dtype_bytes(location(piece).entry->dtype);
    return piece.count * (element + (is_blocked(piece) ? kMadeBytes : 0));
  }

  Status read(const Piece& piece, std::span<std::byte> buffer) {
    const model::TensorLocation& at = location(piece);
    const io::SafetensorsFile& file = model_.files()[static_cast<size_t>(at.file)];
    const DType dtype = at.entry->dtype;
    const int64_t offset = piece.first * dtype_bytes(dtype),
                  bytes = piece.count * dtype_bytes(dtype);
    const bool has_low = sizeof(E) == 2 && parameters_.options().optimizer;
    auto* const after = buffer.data() + bytes;
    E* const weight = is_blocked(piece) ? reinterpret_cast<E*>(after)
                                        : parameters_.weights(piece.range) + within(piece);
    uint16_t* const low =
        !has_low            ? nullptr
        : is_blocked(piece) ? reinterpret_cast<uint16_t*>(after + piece.count * int64_t{sizeof(E)})
                            : parameters_.low(piece.range) + within(piece);
    const bool in_place = dtype == (sizeof(E) == 2 ? DType::kBF16 : DType::kF32);
    const std::span<std::byte> data =
        in_place ? std::as_writable_bytes(std::span(weight, static_cast<size_t>(piece.count)))
                 : buffer.first(static_cast<size_t>(bytes));
    AMXT_TRY(file.read(*at.entry, offset, data));
    drop_cache(file.file(), at.entry->begin + offset, bytes);
    if (in_place) {
      if (low != nullptr) std::fill_n(low, piece.count, uint16_t{0});
    } else if (dtype == DType::kF32) {
      put_values(reinterpret_cast<const float*>(data.data()), piece.count, weight, low);
    } else if (dtype == DType::kF16) {
      put_f16(reinterpret_cast<const uint16_t*>(data.data()), piece.count, weight, low);
    } else if constexpr (sizeof(E) == 4) {
      put_bf16(reinterpret_cast<const bf16*>(data.data()), piece.count, weight, low);
    }
    if (is_blocked(piece)) {
      const int64_t columns = parameters_.layout().spec(piece.range.tensor).columns;
      parameters_.put_panels(piece.range, piece.first / columns, piece.count / columns, weight,
                             low);
    }
    return {};
  }

  // Elements from the beginning of the piece's range.
  int64_t within(const Piece& piece) const {
    const int64_t columns =
        parameters_.layout().specs()[static_cast<size_t>(piece.range.tensor)].columns;
    return piece.first - piece.range.row_begin * columns;
  }

  const model::ModelDirectory& model_;
  store::Parameters<E>& parameters_;
  std::vector<Piece> pieces_;
  BlockList list_;
};

}  // namespace

template <typename E>
Status load_model(const model::ModelDirectory& model, store::Parameters<E>& parameters,
                  comm::Group& group, const Progress& progress, Deadline deadline,
                  const std::atomic<bool>* cancel) {
  return agree(group, ModelLoad<E>(model, parameters).run(progress, deadline, cancel), deadline);
}

template Status load_model<float>(const model::ModelDirectory&, store::Parameters<float>&,
                                  comm::Group&, const Progress&, Deadline,
                                  const std::atomic<bool>*);
template Status load_model<bf16>(const model::ModelDirectory&, store::Parameters<bf16>&,
                                 comm::Group&, const Progress&, Deadline, const std::atomic<bool>*);

}  // namespace amxt::checkpoint
