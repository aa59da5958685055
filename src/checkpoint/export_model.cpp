#include "checkpoint/export_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/agreement.h"
#include "checkpoint/blocks.h"
#include "checkpoint/nonce.h"
#include "io/index.h"
#include "io/safetensors.h"
#include "model/shards.h"

namespace amxt::checkpoint {
namespace {

constexpr const char* kConfigName = "config.json";
// Of the files' metadata: what may be replaced by another export.
constexpr const char* kWriterKey = "exported_by";
constexpr const char* kWriter = "amxtrain";

const std::map<std::string, std::string>& metadata() {
  static const std::map<std::string, std::string> entries{{"format", "pt"}, {kWriterKey, kWriter}};
  return entries;
}

bool is_copied(std::string_view name) {
  constexpr std::string_view kNames[] = {
      "generation_config.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json",
      "special_tokens_map.json"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames) ||
         (name.starts_with("tokenizer") && name.ends_with(".json")) || name.ends_with(".model") ||
         name.starts_with("chat_template");
}

Status write_file(const std::string& path, std::string_view text) {
  AMXT_ASSIGN(const File file, File::create(path));
  AMXT_TRY(file.write_at(0, std::as_bytes(std::span(text.data(), text.size()))));
  return file.sync();
}

Status copy_file(const std::string& from, const std::string& to) {
  AMXT_ASSIGN(const File source, File::open_read(from));
  AMXT_ASSIGN(const int64_t bytes, source.size());
  AMXT_ASSIGN(const File target, File::create(to));
  std::vector<std::byte> block(static_cast<size_t>(std::min<int64_t>(bytes, 1 << 20)));
  for (int64_t offset = 0; offset < bytes; offset += static_cast<int64_t>(block.size())) {
    const std::span<std::byte> data = std::span(block).first(
        static_cast<size_t>(std::min<int64_t>(bytes - offset, static_cast<int64_t>(block.size()))));
    AMXT_TRY(source.read_at(offset, data));
    AMXT_TRY(target.write_at(offset, data));
  }
  return target.sync();
}

// The model's own text; its type is that of the files.
Result<std::string> config_text(const model::ModelConfig& config, DType dtype) {
  AMXT_ASSIGN(Json json, parse_json(config.text));
  const char* name = dtype == DType::kBF16 ? "bfloat16" : "float32";
  if (json.contains("dtype")) json["dtype"] = name;
  if (json.contains("torch_dtype") || !json.contains("dtype")) json["torch_dtype"] = name;
  return json.dump(2) + "\n";
}

// True when every file with weights in there was written by an export, and there is one.
bool is_exported(const std::string& directory) {
  const auto names = list_directory(directory);
  if (!names || !path_exists(join_path(directory, kConfigName))) return false;
  bool any = false;
  for (const std::string& name : *names) {
    if (!name.ends_with(".safetensors")) continue;
    const auto file = io::SafetensorsFile::open_beneath(directory, name);
    if (!file) return false;
    const auto writer = file->metadata().find(kWriterKey);
    if (writer == file->metadata().end() || writer->second != kWriter) return false;
    any = true;
  }
  return any;
}

// Gives the finished directory its name. What had it before is then under `temporary`.
Status swap_in(const std::string& temporary, const std::string& directory) {
  AMXT_TRY(check_replaceable(directory));
  if (!path_exists(directory)) return rename_path(temporary, directory);
  Status exchanged = exchange_paths(temporary, directory);
  if (exchanged || exchanged.error().code() != Code::kUnsupported) return exchanged;
  const std::string aside = temporary + "-old";
  AMXT_TRY(rename_path(directory, aside));
  if (Status renamed = rename_path(temporary, directory); !renamed) {
    (void)rename_path(aside, directory);
    return renamed;
  }
  return rename_path(aside, temporary);
}

template <typename E>
class ModelExport {
 public:
  static constexpr DType kDType = sizeof(E) == 2 ? DType::kBF16 : DType::kF32;

  ModelExport(const std::string& directory, const store::Parameters<E>& parameters,
              const ExportOptions& options)
      : directory_(directory),
        parameters_(parameters),
        plan_(model::plan_shards(parameters.layout().specs(), kDType, options.shard_bytes)) {}

  // Rank 0: the directory with all files but the weights in them; gives its path.
  Result<std::string> begin(const model::ModelConfig& config, const std::string& model_directory) {
    AMXT_TRY(check_replaceable(directory_));
    const std::string parent = parent_path(directory_);
    AMXT_TRY(make_directories(parent));
    const std::string prefix = fmt::format("{}export-{}-", kTemporaryPrefix, base_name(directory_));
    AMXT_ASSIGN(const std::vector<std::string> names, list_directory(parent));
    for (const std::string& name : names) {
      if (name.starts_with(prefix)) AMXT_TRY(remove_tree(join_path(parent, name)));
    }
    temporary_ = join_path(parent, prefix + make_nonce());
    AMXT_TRY(make_directory(temporary_));
    made_ = true;
    AMXT_ASSIGN(const std::string text, config_text(config, kDType));
    AMXT_TRY(write_file(join_path(temporary_, kConfigName), text));
    AMXT_TRY(copy_companions(model_directory));
    if (!plan_.index_text.empty())
      AMXT_TRY(write_file(join_path(temporary_, io::kIndexFile), plan_.index_text));
    for (const model::Shard& shard : plan_.shards) {
      AMXT_ASSIGN(io::SafetensorsWriter writer,
                  io::SafetensorsWriter::create(join_path(temporary_, shard.file), plans_of(shard),
                                                metadata()));
      writers_.push_back(std::move(writer));
    }
    return temporary_;
  }

  // Every rank: the rows owned here, on disk; gives their bytes.
  Result<std::string> write(const std::string& temporary, const Progress& progress,
                            Deadline deadline, const std::atomic<bool>* cancel) {
    temporary_ = temporary;
    if (writers_.empty()) {
      for (const model::Shard& shard : plan_.shards) {
        AMXT_ASSIGN(io::SafetensorsWriter writer,
                    io::SafetensorsWriter::open(join_path(temporary_, shard.file), plans_of(shard),
                                                metadata()));
        writers_.push_back(std::move(writer));
      }
    }
    plan_pieces();
    AMXT_TRY(run_blocks(list_, "exporting", progress, deadline, cancel,
                        [this](size_t block, std::span<std::byte> buffer) {
                          return write_piece(pieces_[block], buffer);
                        }));
    int64_t bytes = 0;
    for (const io::SafetensorsWriter& writer : writers_) {
      if (writer.bytes_given() > 0) AMXT_TRY(writer.sync());
      bytes += writer.bytes_given();
    }
    return std::to_string(bytes);
  }

  // Rank 0, when all have written: `bytes` by rank.
  Status commit(const std::vector<std::string>& bytes) {
    int64_t given = 0;
    for (const std::string& text : bytes) given += std::stoll(text);
    if (given != plan_.total_bytes) {
      return Error(Code::kInternal, fmt::format("{}: {} of {} bytes were written",
                                                quote(directory_), given, plan_.total_bytes));
    }
    for (io::SafetensorsWriter& writer : writers_) AMXT_TRY(writer.finish_shared());
    for (const model::Shard& shard : plan_.shards) {
      if (const auto file = File::open_read(join_path(temporary_, shard.file))) file->drop_cache();
    }
    AMXT_TRY(sync_directory(temporary_));
    AMXT_TRY(swap_in(temporary_, directory_));
    return sync_directory(parent_path(directory_));
  }

  // Rank 0, in the end: an unfinished directory, or what was replaced.
  void remove_temporary() {
    if (made_) (void)remove_tree(temporary_);
  }

 private:
  struct Piece {
    size_t shard = 0, entry = 0;
    store::OwnedRange range;
    int64_t first = 0, count = 0;  // elements of the tensor
  };

  std::vector<io::TensorPlan> plans_of(const model::Shard& shard) const {
    return model::tensor_plans(shard, parameters_.layout().specs(), kDType);
  }

  Status copy_companions(const std::string& model_directory) {
    if (model_directory.empty()) return {};
    AMXT_ASSIGN(const std::vector<std::string> names, list_directory(model_directory));
    for (const std::string& name : names) {
      const std::string from = join_path(model_directory, name);
      if (is_copied(name) && !is_directory(from))
        AMXT_TRY(copy_file(from, join_path(temporary_, name)));
    }
    return {};
  }

  void plan_pieces() {
    std::map<int64_t, std::pair<size_t, size_t>> place;  // of a tensor: shard, entry
    for (size_t shard = 0; shard < plan_.shards.size(); ++shard) {
      list_.items.push_back({plan_.shards[shard].file, 0});
      for (size_t entry = 0; entry < plan_.shards[shard].tensors.size(); ++entry) {
        place[static_cast<int64_t>(plan_.shards[shard].tensors[entry])] = {shard, entry};
      }
    }
    const store::Layout& layout = parameters_.layout();
    list_.buffer_bytes = 1;
    constexpr int64_t kStep = kBlockBytes / static_cast<int64_t>(sizeof(E));
    for (const store::OwnedRange& range : layout.ranges(parameters_.owner(), -1)) {
      const int64_t columns = layout.specs()[static_cast<size_t>(range.tensor)].columns;
      const auto [shard, entry] = place.at(range.tensor);
      const int64_t end = range.row_end * columns;
      const int64_t begin = range.row_begin * columns;
      const int64_t panel = store::kPanelRows * columns;
      const bool is_blocked = layout.is_blocked(range.tensor);
      const int64_t step = is_blocked ? std::max<int64_t>(1, kStep / panel) * panel : kStep;
      for (int64_t first = begin; first < end; first += step)
        pieces_.push_back({shard, entry, range, first, std::min(step, end - first)});
      // Written from where they lie, else put in the order of the file first.
      if (is_blocked) {
        list_.buffer_bytes =
            std::max(list_.buffer_bytes, std::min(step, end - begin) * int64_t{sizeof(E)});
      }
    }
    std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
      return std::tuple(a.shard, a.entry, a.first) < std::tuple(b.shard, b.entry, b.first);
    });
    for (const Piece& piece : pieces_)
      list_.add(piece.shard, piece.count * static_cast<int64_t>(sizeof(E)));
  }

  Status write_piece(const Piece& piece, std::span<std::byte> buffer) {
    io::SafetensorsWriter& writer = writers_[piece.shard];
    const int64_t columns = parameters_.layout().spec(piece.range.tensor).columns;
    const E* from =
        parameters_.weights(piece.range) + piece.first - piece.range.row_begin * columns;
    if (parameters_.layout().is_blocked(piece.range.tensor)) {
      auto* const rows = reinterpret_cast<E*>(buffer.data());
      parameters_.get_panels(piece.range, piece.first / columns, piece.count / columns, rows);
      from = rows;
    }
    const std::span weights(from, static_cast<size_t>(piece.count));
    return writer.write(writer.tensors()[piece.entry],
                        piece.first * static_cast<int64_t>(sizeof(E)), std::as_bytes(weights));
  }

  std::string directory_;
  const store::Parameters<E>& parameters_;
  model::ShardPlan plan_;
  std::string temporary_;
  bool made_ = false;
  std::vector<io::SafetensorsWriter> writers_;  // by shard
  std::vector<Piece> pieces_;
  BlockList list_;
};

// "out/final/" and "out/final" are one name.
std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

Status check_replaceable(const std::string& directory) {
  if (!path_exists(directory)) return {};
  const auto names = list_directory(directory);
  const bool replaceable = !read_symlink(directory) && is_directory(directory) &&
                           ((names && names->empty()) || is_exported(directory));
  if (replaceable) return {};
  return Error(Code::kExists,
               fmt::format("{}: exists and is not an exported model; nothing is replaced",
                           quote(directory)));
}

int64_t export_bytes(const store::Layout& layout, int64_t element_bytes) {
  constexpr int64_t kEntryBytes = 256;
  constexpr int64_t kCompanionBytes = 64 << 20;  // tokenizers
  int64_t bytes = kCompanionBytes;
  for (const model::TensorSpec& spec : layout.specs())
    bytes += spec.elements() * element_bytes + kEntryBytes;
  return bytes;
}

template <typename E>
Status export_model(const std::string& directory, const std::string& model_directory,
                    const model::ModelConfig& config, const store::Parameters<E>& parameters,
                    comm::Group& group, const Progress& progress, Deadline deadline,
                    const std::atomic<bool>* cancel, const ExportOptions& options) {
  const bool leads = group.rank() == 0;
  ModelExport<E> writing(without_slash(directory), parameters, options);
  const auto all_parts = [&]() -> Status {
    AMXT_ASSIGN(
        const std::vector<std::string> begun,
        agree(group,
              leads ? writing.begin(config, model_directory) : Result<std::string>(std::string()),
              deadline));
    AMXT_ASSIGN(const std::vector<std::string> written,
                agree(group, writing.write(begun[0], progress, deadline, cancel), deadline));
    return agree(group, leads ? writing.commit(written) : Status(), deadline);
  };
  Status status = all_parts();
  if (leads) writing.remove_temporary();
  return status;
}

template Status export_model<float>(const std::string&, const std::string&,
                                    const model::ModelConfig&, const store::Parameters<float>&,
                                    comm::Group&, const Progress&, Deadline,
                                    const std::atomic<bool>*, const ExportOptions&);
template Status export_model<bf16>(const std::string&, const std::string&,
                                   const model::ModelConfig&, const store::Parameters<bf16>&,
                                   comm::Group&, const Progress&, Deadline,
                                   const std::atomic<bool>*, const ExportOptions&);

}  // namespace amxt::checkpoint
