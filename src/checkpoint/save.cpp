#include "checkpoint/save.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/agreement.h"
#include "checkpoint/blocks.h"
#include "checkpoint/checkpoint_file.h"
#include "checkpoint/checksum.h"
#include "checkpoint/nonce.h"
#include "io/safetensors.h"

namespace amxt::checkpoint {
namespace {

constexpr std::string_view kTemporaryPrefix =
    ".tmp-";  // what begins so is nobody's any more at the start of a job
constexpr int64_t kNonceLimit = 256;

store::RowKind row_kind(Part part) {
  switch (part) {
    case Part::kMaster:
      return store::RowKind::kMaster;
    case Part::kFirstMoment:
      return store::RowKind::kFirstMoment;
    case Part::kSecondMoment:
      return store::RowKind::kSecondMoment;
  }
  return store::RowKind::kMaster;
}

Status remove_leftovers(const std::string& output) {
  AMXT_ASSIGN(const std::vector<std::string> names, list_directory(output));
  for (const std::string& name : names) {
    const bool link = name == std::string(kLatestName) + ".tmp";
    if (link || name.starts_with(kTemporaryPrefix)) AMXT_TRY(remove_tree(join_path(output, name)));
  }
  return {};
}

// One rank's file of a checkpoint.
template <typename E>
class RankFile {
 public:
  RankFile(const std::string& directory, const Manifest& manifest,
           const store::Parameters<E>& parameters)
      : path_(join_path(directory, file_name(parameters.owner(), manifest.world_size))),
        manifest_(manifest),
        parameters_(parameters) {}

  // Bytes and checksum of the file, which is on disk.
  Result<ManifestFile> write(const Progress& progress, Deadline deadline,
                             const std::atomic<bool>* cancel) {
    plan();
    std::map<std::string, std::string> metadata{
        {"format", kFormatName},
        {"version", std::to_string(kFormatVersion)},
        {"step", std::to_string(manifest_.training.step)},
        {"rank", std::to_string(parameters_.owner())},
        {"world_size", std::to_string(manifest_.world_size)}};
    AMXT_ASSIGN(io::SafetensorsWriter writer,
                io::SafetensorsWriter::create(path_, plans_, std::move(metadata)));
    Status status = run_blocks(list_, "saving", progress, deadline, cancel,
                               [&](size_t block, std::span<std::byte> buffer) {
                                 return write_chunk(&writer, block, buffer);
                               });
    if (!status) return std::move(status).error();
    AMXT_TRY(writer.write(writer.tensors().back(), 0, std::as_bytes(std::span(checksums_))));
    const int64_t bytes = writer.file_bytes();
    AMXT_TRY(writer.finish());
    AMXT_ASSIGN(const File file, File::open_read(path_));
    AMXT_ASSIGN(std::string checksum, file_checksum(file, checksums_));
    file.drop_cache();
    return ManifestFile{base_name(path_), bytes, std::move(checksum)};
  }

 private:
  struct Place {
    size_t entry = 0;  // index into the file's tensors
    int64_t first_row = 0;
    store::OwnedRange range;
  };

  void plan() {
    const store::Layout& layout = parameters_.layout();
    std::vector<store::OwnedRange> ranges(layout.ranges(parameters_.owner(), -1).begin(),
                                          layout.ranges(parameters_.owner(), -1).end());
    std::sort(ranges.begin(), ranges.end(),
              [](const store::OwnedRange& a, const store::OwnedRange& b) {
                return std::pair(a.tensor, a.row_begin) < std::pair(b.tensor, b.row_begin);
              });
    chunks_ = chunks_of_file(manifest_, parameters_.owner());
    list_.items.push_back({base_name(path_), 0});
    size_t chunk = 0;
    for (const store::OwnedRange& range : ranges) {
      const model::TensorSpec& spec = layout.specs()[static_cast<size_t>(range.tensor)];
      list_.buffer_bytes = std::max(list_.buffer_bytes, spec.columns * 4);
      for (int kind = 0; kind < kParts; ++kind) {
        const Part part = static_cast<Part>(kind);
        std::vector<int64_t> shape{spec.columns};
        if (!spec.vector) shape.insert(shape.begin(), range.rows());
        plans_.push_back({part_name(part, spec.name, range.row_begin, range.row_end), DType::kF32,
                          std::move(shape)});
        for (; chunk < chunks_.size() && chunks_[chunk].part == part &&
               chunks_[chunk].tensor == range.tensor && chunks_[chunk].row_end <= range.row_end;
             ++chunk) {
          places_.push_back({plans_.size() - 1, range.row_begin, range});
          list_.add(0, chunks_[chunk].bytes);
        }
      }
    }
    checksums_.resize(chunks_.size());
    plans_.push_back({kChecksumsName, DType::kU64, {static_cast<int64_t>(chunks_.size())}});
  }

  Status write_chunk(io::SafetensorsWriter* writer, size_t index, std::span<std::byte> buffer) {
    const Chunk& chunk = chunks_[index];
    const Place& place = places_[index];
    const std::span<std::byte> data = buffer.first(static_cast<size_t>(chunk.bytes));
    const int64_t rows = chunk.row_end - chunk.row_begin;
    parameters_.read_rows(row_kind(chunk.part), place.range, chunk.row_begin, rows,
                          reinterpret_cast<float*>(data.data()));
    checksums_[index] = checksum64(data);
    return writer->write(writer->tensors()[place.entry],
                         (chunk.row_begin - place.first_row) * (chunk.bytes / rows), data);
  }

  std::string path_;
  const Manifest& manifest_;
  const store::Parameters<E>& parameters_;
  std::vector<io::TensorPlan> plans_;
  std::vector<Chunk> chunks_;
  std::vector<Place> places_;  // by chunk
  std::vector<uint64_t> checksums_;
  BlockList list_;
};

// Removes a checkpoint so that at no time something half-removed has a checkpoint's name.
Status remove_checkpoint(const std::string& output, int64_t step) {
  const std::string dead = join_path(
      output, fmt::format("{}removed-{}-{}", kTemporaryPrefix, step_name(step), make_nonce()));
  AMXT_TRY(rename_path(join_path(output, step_name(step)), dead));
  return remove_tree(dead);
}

std::string target_of_latest(const std::string& output) {
  const auto target = read_symlink(join_path(output, kLatestName));
  return target ? *target : std::string();
}

// The newest `keep` stay, and what `latest` names.
std::vector<std::string> remove_old(const std::string& output, int64_t keep) {
  std::vector<std::string> warnings;
  auto steps = checkpoint_steps(output);
  if (!steps) return {steps.error().message()};
  const std::string latest = target_of_latest(output);
  const int64_t old =
      keep <= 0 ? 0 : std::max<int64_t>(0, static_cast<int64_t>(steps->size()) - keep);
  for (int64_t i = 0; i < old; ++i) {
    const int64_t step = (*steps)[static_cast<size_t>(i)];
    if (step_name(step) == latest) continue;
    if (Status status = remove_checkpoint(output, step); !status) {
      warnings.push_back(std::move(status).error().in("an old checkpoint stays").message());
    }
  }
  return warnings;
}

// Rank 0's part when all files are on disk: the manifest, the name, `latest`.
Status commit(const std::string& output, const std::string& temporary, const Manifest& manifest) {
  const std::string name = step_name(manifest.training.step), path = join_path(output, name);
  {
    AMXT_ASSIGN(const File file, File::create(join_path(temporary, kManifestName)));
    const std::string text = manifest_text(manifest);
    AMXT_TRY(file.reserve(static_cast<int64_t>(text.size())));
    AMXT_TRY(file.write_at(0, std::as_bytes(std::span(text.data(), text.size()))));
    AMXT_TRY(file.sync());
  }
  AMXT_TRY(sync_directory(temporary));
  if (path_exists(path))
    return Error(Code::kExists, fmt::format("{}: exists already", quote(path)));
  AMXT_TRY(rename_path(temporary, path));
  const auto publish = [&]() -> Status {
    AMXT_TRY(sync_directory(output));
    return replace_symlink(name, join_path(output, kLatestName));
  };
  Status status = publish();
  // It is complete, but a save that failed leaves none behind; unless `latest` has got as far as naming it.
  if (!status && target_of_latest(output) != name) (void)rename_path(path, temporary);
  return status;
}

// What rank 0 makes before all others begin; its answer is the name of the temporary directory.
Result<std::string> make_temporary(const std::string& output, int64_t step) {
  AMXT_TRY(make_directories(output));
  const std::string path = join_path(output, step_name(step));
  if (path_exists(path))
    return Error(Code::kExists, fmt::format("{}: exists already", quote(path)));
  const std::string name = fmt::format("{}{}-{}", kTemporaryPrefix, step_name(step), make_nonce());
  AMXT_TRY(make_directory(join_path(output, name)));
  return name;
}

Status check_same_step(const std::vector<std::string>& all, int64_t step) {
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == std::to_string(step)) continue;
    return Error(Code::kMismatch,
                 fmt::format("rank {} saves step {}, rank 0 another", rank, all[rank]))
        .with_rank(static_cast<int32_t>(rank));
  }
  return {};
}

// The names by which the ranks of a job find each other in a directory.
std::string nonce_path(const std::string& output, const std::string& nonce) {
  return join_path(output, fmt::format("{}nonce-{}", kTemporaryPrefix, nonce));
}

Result<std::string> begin_check(const std::string& output, int64_t bytes,
                                std::optional<File>* lock) {
  AMXT_TRY(make_directories(output));
  if (!is_directory(output))
    return Error(Code::kExists, fmt::format("{}: exists and is not a directory", quote(output)));
  if (lock != nullptr) {
    AMXT_ASSIGN(*lock, File::lock_directory(output));
  }
  const std::string latest = join_path(output, kLatestName);
  if (path_exists(latest) && !read_symlink(latest)) {
    return Error(Code::kExists,
                 fmt::format("{}: is not the symbolic link that it must be (a copy may "
                             "have followed it): remove it, what it names is beside it",
                             quote(latest)));
  }
  AMXT_TRY(remove_leftovers(output));
  AMXT_ASSIGN(const int64_t free, free_bytes(output));
  if (free < bytes) {
    return Error(Code::kNoSpace,
                 fmt::format("{}: {} are needed for checkpoints and the final model, {} are free",
                             quote(output), bytes_text(static_cast<uint64_t>(bytes)),
                             bytes_text(static_cast<uint64_t>(free))));
  }
  std::string nonce = make_nonce();
  AMXT_ASSIGN(const File file, File::create(nonce_path(output, nonce)));
  AMXT_TRY(file.write_at(0, std::as_bytes(std::span(nonce.data(), nonce.size()))));
  AMXT_TRY(file.sync());
  return nonce;
}

// That this rank sees rank 0's file and can write beside it.
Status check_nonce(const std::string& output, const std::string& nonce, int rank) {
  const auto text = read_text_file(nonce_path(output, nonce), kNonceLimit);
  if (!text || *text != nonce) {
    return Error(Code::kMismatch,
                 fmt::format("{}: not the directory that rank 0 sees there{}", quote(output),
                             text ? std::string() : fmt::format(" ({})", text.error().message())));
  }
  if (rank == 0) return {};
  const std::string own = fmt::format("{}-{}", nonce_path(output, nonce), rank);
  const auto write = [&]() -> Status {
    AMXT_ASSIGN(const File file, File::create(own));
    AMXT_TRY(file.write_at(0, std::as_bytes(std::span(nonce.data(), nonce.size()))));
    return file.sync();
  };
  Status written = write();
  Status removed = remove_tree(own);
  return written ? std::move(removed) : std::move(written);
}

}  // namespace

int64_t checkpoint_bytes(const store::Layout& layout) {
  constexpr int64_t kEntryBytes = 256;  // of a header or of the manifest, for each part
  int64_t bytes = 1 << 20;
  for (int owner = 0; owner < layout.owners(); ++owner) {
    for (const store::OwnedRange& range : layout.ranges(owner, -1)) {
      const int64_t columns = layout.specs()[static_cast<size_t>(range.tensor)].columns;
      const int64_t chunks = kParts * (range.rows() / chunk_rows(kChunkBytes, columns) + 1);
      bytes += kParts * (range.rows() * columns * 4 + kEntryBytes) + chunks * 8 + kEntryBytes;
    }
    bytes += 4096;
  }
  return bytes;
}

Status check_output(const std::string& output, int64_t bytes, comm::Group& group, Deadline deadline,
                    std::optional<File>* lock) {
  const bool leads = group.rank() == 0;
  const std::vector<std::string> made =
      leads ? missing_directories(output) : std::vector<std::string>();
  const auto check = [&]() -> Status {
    auto begun = leads ? begin_check(output, bytes, lock) : Result<std::string>(std::string());
    AMXT_ASSIGN(const std::vector<std::string> all, agree(group, std::move(begun), deadline));
    Status status = agree(group, check_nonce(output, all[0], group.rank()), deadline);
    if (leads) (void)remove_tree(nonce_path(output, all[0]));
    return status;
  };
  Status status = check();
  if (!status) remove_if_empty(made);
  return status;
}

Result<std::vector<int64_t>> checkpoint_steps(const std::string& output) {
  std::vector<int64_t> steps;
  if (!path_exists(output)) return steps;
  AMXT_ASSIGN(const std::vector<std::string> names, list_directory(output));
  for (const std::string& name : names) {
    if (const auto step = step_of_name(name)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

Status remove_later(const std::string& output, int64_t step) {
  AMXT_ASSIGN(const std::vector<int64_t> steps, checkpoint_steps(output));
  if (steps.empty() || steps.back() <= step) return {};
  if (std::binary_search(steps.begin(), steps.end(), step) &&
      target_of_latest(output) != step_name(step)) {
    AMXT_TRY(replace_symlink(step_name(step), join_path(output, kLatestName)));
  }
  for (const int64_t later : steps) {
    if (later > step) AMXT_TRY(remove_checkpoint(output, later));
  }
  return sync_directory(output);
}

template <typename E>
Result<Saved> save(const std::string& output, const TrainingState& training,
                   const model::ModelConfig& config, const store::Parameters<E>& parameters,
                   const SaveOptions& options, comm::Group& group, const Progress& progress,
                   Deadline deadline, const std::atomic<bool>* cancel) {
  const bool leads = group.rank() == 0;
  auto begun = leads ? make_temporary(output, training.step)
                     : Result<std::string>(std::to_string(training.step));
  const std::string made = leads && begun ? join_path(output, *begun) : std::string();
  const auto all_parts = [&]() -> Result<Saved> {
    AMXT_ASSIGN(const std::vector<std::string> names, agree(group, std::move(begun), deadline));
    AMXT_TRY(agree(group, leads ? check_same_step(names, training.step) : Status(), deadline));
    const std::string temporary = join_path(output, names[0]);
    Manifest manifest = plan_manifest(training, config, parameters.layout());
    manifest.chunk_bytes = options.chunk_bytes;

    const auto write = [&]() -> Result<std::string> {
      if (!parameters.options().optimizer)
        return Error(Code::kInvalidState, "a trainer for forward only has no state to save");
      if (!is_directory(temporary)) {
        return Error(Code::kMismatch,
                     fmt::format("{}: not the directory that rank 0 sees there", quote(output)));
      }
      AMXT_ASSIGN(const ManifestFile file,
                  RankFile<E>(temporary, manifest, parameters).write(progress, deadline, cancel));
      AMXT_TRY(sync_directory(temporary));
      return fmt::format("{} {}", file.bytes, file.checksum);
    };
    AMXT_ASSIGN(const std::vector<std::string> files, agree(group, write(), deadline));
    for (size_t rank = 0; rank < files.size(); ++rank) {
      const size_t space = files[rank].find(' ');
      manifest.files[rank].bytes = std::stoll(files[rank].substr(0, space));
      manifest.files[rank].checksum = files[rank].substr(space + 1);
    }
    AMXT_TRY(agree(group, leads ? commit(output, temporary, manifest) : Status(), deadline));
    Saved saved{join_path(output, step_name(training.step)), {}};
    if (leads) saved.warnings = remove_old(output, options.keep);
    return saved;
  };
  Result<Saved> saved = all_parts();
  if (!saved && !made.empty()) (void)remove_tree(made);
  return saved;
}

template Result<Saved> save<float>(const std::string&, const TrainingState&,
                                   const model::ModelConfig&, const store::Parameters<float>&,
                                   const SaveOptions&, comm::Group&, const Progress&, Deadline,
                                   const std::atomic<bool>*);
template Result<Saved> save<bf16>(const std::string&, const TrainingState&,
                                  const model::ModelConfig&, const store::Parameters<bf16>&,
                                  const SaveOptions&, comm::Group&, const Progress&, Deadline,
                                  const std::atomic<bool>*);

}  // namespace amxt::checkpoint
