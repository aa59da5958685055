#include "checkpoint/resume.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <span>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/agreement.h"
#include "checkpoint/blocks.h"
#include "checkpoint/checkpoint_file.h"
#include "checkpoint/save.h"

namespace amxt::checkpoint {
namespace {

// A checkpoint directory whose manifest is right and whose files have their sizes.
Result<Manifest> open_whole(const std::string& directory) {
  AMXT_ASSIGN(Manifest manifest, read_manifest(directory));
  for (size_t file = 0; file < manifest.files.size(); ++file)
    AMXT_TRY(check_file_size(manifest, static_cast<int64_t>(file)));
  return manifest;
}

store::RowKind row_kind(Part part) {
  if (part == Part::kMaster) return store::RowKind::kMaster;
  return part == Part::kFirstMoment ? store::RowKind::kFirstMoment : store::RowKind::kSecondMoment;
}

// The part of a chunk that belongs to an owned range.
struct Piece {
  int64_t file = 0;
  Chunk chunk;
  store::OwnedRange range;
  int64_t row_begin = 0, row_end = 0;
};

template <typename E>
class Reading {
 public:
  Reading(const Manifest& manifest, Restore what, store::Parameters<E>& parameters)
      : manifest_(manifest), what_(what), parameters_(parameters) {}

  Status run(const Progress& progress, Deadline deadline, const std::atomic<bool>* cancel) {
    AMXT_TRY(plan());
    return run_blocks(
        list_, "resuming", progress, deadline, cancel,
        [this](size_t block, std::span<std::byte> buffer) { return read(pieces_[block], buffer); });
  }

 private:
  // Chunks of all files that hold rows owned here, in the order in which they lie on disk.
  Status plan() {
    std::map<int64_t, std::vector<store::OwnedRange>> owned;  // by tensor
    for (const store::OwnedRange& range : parameters_.layout().ranges(parameters_.owner(), -1))
      owned[range.tensor].push_back(range);
    for (size_t file = 0; file < manifest_.files.size(); ++file) {
      std::vector<Piece> pieces;
      AMXT_TRY(find_pieces(static_cast<int64_t>(file), owned, &pieces));
      if (pieces.empty()) continue;
      list_.items.push_back({manifest_.files[file].name, 0});
      for (Piece& piece : pieces) {
        list_.buffer_bytes = std::max(list_.buffer_bytes, piece.chunk.bytes);
        list_.add(list_.items.size() - 1, piece.chunk.bytes);
        pieces_.push_back(std::move(piece));
      }
    }
    return {};
  }

  Status find_pieces(int64_t file, const std::map<int64_t, std::vector<store::OwnedRange>>& owned,
                     std::vector<Piece>* pieces) {
    const auto add = [&](const std::vector<Chunk>& chunks) {
      for (const Chunk& chunk : chunks) {
        const auto ranges = owned.find(chunk.tensor);
        if (ranges == owned.end() || (what_ == Restore::kWeights && chunk.part != Part::kMaster))
          continue;
        for (const store::OwnedRange& range : ranges->second) {
          const int64_t begin = std::max(range.row_begin, chunk.row_begin),
                        end = std::min(range.row_end, chunk.row_end);
          if (begin < end) pieces->push_back({file, chunk, range, begin, end});
        }
      }
    };
    add(chunks_of_file(manifest_, file));
    if (pieces->empty()) return {};
    AMXT_ASSIGN(CheckpointFile opened, CheckpointFile::open(manifest_, file));
    pieces->clear();
    add(opened.chunks());  // with their offsets
    files_.emplace(file, std::move(opened));
    return {};
  }

  Status read(const Piece& piece, std::span<std::byte> buffer) {
    const std::span<std::byte> data = buffer.first(static_cast<size_t>(piece.chunk.bytes));
    AMXT_TRY(files_.at(piece.file).read(manifest_, piece.chunk, data));
    const int64_t columns = manifest_.tensors[static_cast<size_t>(piece.chunk.tensor)].columns;
    const auto* values = reinterpret_cast<const float*>(data.data()) +
                         (piece.row_begin - piece.chunk.row_begin) * columns;
    parameters_.write_rows(row_kind(piece.chunk.part), piece.range, piece.row_begin,
                           piece.row_end - piece.row_begin, values);
    return {};
  }

  const Manifest& manifest_;
  Restore what_;
  store::Parameters<E>& parameters_;
  std::map<int64_t, CheckpointFile> files_;
  std::vector<Piece> pieces_;
  BlockList list_;
};

Result<Manifest> open_before(const std::string& path, int64_t before) {
  if (!path_exists(path))
    return Error(Code::kNotFound, fmt::format("{}: no such directory", quote(path)));
  if (!is_directory(path))
    return Error(Code::kFormat,
                 fmt::format("{}: not a directory of a checkpoint or of checkpoints", quote(path)));
  // output/latest itself may be given: messages then name the checkpoint.
  if (const auto target = read_symlink(path); target && step_of_name(*target))
    return open_whole(join_path(parent_path(path), *target));
  if (is_one_checkpoint(path)) return open_whole(path);
  AMXT_ASSIGN(Found found, find_latest(path, before));
  if (found.manifest) return std::move(*found.manifest);
  std::string message = fmt::format("{}: no checkpoint there", quote(path));
  for (const std::string& note : found.notes) message += "; " + note;
  return Error(Code::kNotFound, std::move(message));
}

}  // namespace

Result<Found> find_latest(const std::string& output, int64_t before) {
  Found found;
  AMXT_ASSIGN(std::vector<int64_t> steps, checkpoint_steps(output));
  const std::string link = join_path(output, kLatestName);
  std::string named;
  if (const auto target = read_symlink(link)) named = *target;
  std::erase_if(steps, [&](int64_t step) { return step >= before; });
  if (const auto step = step_of_name(named); step && *step >= before) {
    // passed over
  } else if (step) {
    auto manifest = open_whole(join_path(output, named));
    if (manifest) {
      found.manifest = std::move(*manifest);
      return found;
    }
    found.notes.push_back(fmt::format("{} names {}, passed over: {}", quote(link), quote(named),
                                      manifest.error().message()));
  } else if (!named.empty()) {
    found.notes.push_back(fmt::format("{} names {}, which is no checkpoint of this directory",
                                      quote(link), quote(named)));
  } else if (!steps.empty()) {
    found.notes.push_back(fmt::format("{} is no symbolic link to a checkpoint", quote(link)));
  }
  std::reverse(steps.begin(), steps.end());
  for (const int64_t step : steps) {
    if (step_name(step) == named) continue;
    auto manifest = open_whole(join_path(output, step_name(step)));
    if (manifest) {
      found.manifest = std::move(*manifest);
      return found;
    }
    found.notes.push_back(
        fmt::format("{} passed over: {}", step_name(step), manifest.error().message()));
  }
  return found;
}

bool is_one_checkpoint(const std::string& path) {
  if (const auto target = read_symlink(path); target && step_of_name(*target)) return true;
  return path_exists(join_path(path, kManifestName)) || step_of_name(base_name(path)).has_value();
}

Result<Manifest> open_checkpoint(const std::string& path) { return open_before(path, INT64_MAX); }

Result<Manifest> open_checkpoint(const std::string& path, comm::Group& group, Deadline deadline,
                                 int64_t before) {
  const auto said = [](const Result<Manifest>& opened,
                       const std::string Manifest::* field) -> Result<std::string> {
    if (!opened) return Error(opened.error());
    return (*opened).*field;
  };
  const bool leads = group.rank() == 0;
  Result<Manifest> manifest = leads ? open_before(path, before) : Result<Manifest>(Manifest());
  AMXT_ASSIGN(const std::vector<std::string> chosen,
              agree(group, said(manifest, &Manifest::path), deadline));
  if (!leads) manifest = open_whole(chosen[0]);
  AMXT_ASSIGN(const std::vector<std::string> seen,
              agree(group, said(manifest, &Manifest::checksum), deadline));
  for (size_t rank = 1; rank < seen.size(); ++rank) {
    if (seen[rank] == seen[0]) continue;
    return Error(Code::kMismatch,
                 fmt::format("{}: rank {} sees another checkpoint there than rank 0",
                             quote(chosen[0]), rank))
        .with_rank(static_cast<int32_t>(rank));
  }
  return manifest;
}

template <typename E>
Status restore(const Manifest& manifest, Restore what, const model::ModelConfig& config,
               store::Parameters<E>& parameters, comm::Group& group, const Progress& progress,
               Deadline deadline, const std::atomic<bool>* cancel) {
  const auto read = [&]() -> Status {
    AMXT_TRY(check_same_model(manifest, config));
    AMXT_TRY(check_same_tensors(manifest, parameters.layout()));
    if (what == Restore::kState && !parameters.options().optimizer) {
      return Error(Code::kInvalidState,
                   "a trainer for forward only takes weights alone from a checkpoint");
    }
    return Reading<E>(manifest, what, parameters).run(progress, deadline, cancel);
  };
  return agree(group, read(), deadline);
}

template Status restore<float>(const Manifest&, Restore, const model::ModelConfig&,
                               store::Parameters<float>&, comm::Group&, const Progress&, Deadline,
                               const std::atomic<bool>*);
template Status restore<bf16>(const Manifest&, Restore, const model::ModelConfig&,
                              store::Parameters<bf16>&, comm::Group&, const Progress&, Deadline,
                              const std::atomic<bool>*);

}  // namespace amxt::checkpoint
