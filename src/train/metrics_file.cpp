#include "train/metrics_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "base/json.h"
#include "base/text.h"

namespace amxt::train {
namespace {

// Bytes that are read at a time while lines are looked through.
constexpr int64_t kBlock = int64_t{1} << 20;

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

// Step of a metrics line, -1 when it is none.
int64_t step_of(std::string_view line) {
  const Result<Json> json = parse_json(line);
  if (!json || !json->is_object() || !json->contains("step") ||
      !(*json)["step"].is_number_integer())
    return -1;
  return (*json)["step"].get<int64_t>();
}

// kExists when the file holds something else than metrics, which nobody asked to cut: its first line, or what is there of one, tells.
Status require_metrics(const File& file) {
  constexpr std::string_view kBegin = R"({"step":)";
  AMXT_ASSIGN(const int64_t size, file.size());
  std::string begin(static_cast<size_t>(std::min(kBlock, size)), '\0');
  AMXT_TRY(file.read_at(0, std::as_writable_bytes(std::span(begin))));
  const size_t end = begin.find('\n');
  const bool metrics =
      end != std::string::npos
          ? step_of(std::string_view(begin).substr(0, end)) >= 0
          : size < kBlock && begin.substr(0, kBegin.size()) == kBegin.substr(0, begin.size());
  if (metrics) return {};
  return Error(Code::kExists, fmt::format("{}: holds something else than metrics: choose another "
                                          "file, or remove it",
                                          quote(file.path())));
}

// Length of the leading part of the file that is whole lines of steps up to `last_step`.
Result<int64_t> good_length(const File& file, int64_t last_step) {
  AMXT_ASSIGN(const int64_t size, file.size());
  std::string rest;
  int64_t good = 0;
  for (int64_t at = 0; at < size; at += kBlock) {
    std::string block(static_cast<size_t>(std::min(kBlock, size - at)), '\0');
    AMXT_TRY(file.read_at(at, std::as_writable_bytes(std::span(block))));
    rest += block;
    size_t begin = 0;
    for (size_t end = rest.find('\n'); end != std::string::npos; end = rest.find('\n', begin)) {
      const int64_t step = step_of(std::string_view(rest).substr(begin, end - begin));
      if (step < 0 || step > last_step) return good;
      good += static_cast<int64_t>(end + 1 - begin);
      begin = end + 1;
    }
    rest.erase(0, begin);
    if (static_cast<int64_t>(rest.size()) > kBlock) return good;
  }
  return good;
}

}  // namespace

std::string metrics_line(const StepMetrics& m) {
  Json json;
  json["step"] = m.step;
  json["epoch"] = number(m.epoch);
  json["loss"] = number(m.loss);
  json["grad_norm"] = number(m.grad_norm);
  json["lr"] = number(m.learning_rate);
  json["tokens"] = m.tokens;
  json["seconds"] = number(m.seconds);
  json["tokens_per_second"] = number(m.tokens_per_second);
  json["model_tflops"] = number(m.model_tflops);
  json["peak_rss_bytes"] = m.peak_rss_bytes;
  json["peak_pss_bytes_all_ranks"] = m.peak_pss_bytes_all_ranks;
  json["world_size"] = m.world_size;
  if (m.wire_bytes > 0) {
    json["wire_bytes"] = m.wire_bytes;
    json["wire_wait_seconds"] = number(m.wire_wait_seconds);
    for (const StepMetrics::Traffic& one : m.traffic) {
      json["traffic"][one.transport][one.collective] = {{"bytes", one.bytes},
                                                        {"wait_seconds", number(one.wait_seconds)}};
    }
  }
  if (m.skipped) json["skipped"] = true;
  return json.dump();
}

Status MetricsFile::probe(const std::string& path) {
  const bool was_there = path_exists(path);
  AMXT_ASSIGN(const File file, File::open_append(path));
  if (!file.is_regular()) return {};  // what is written to a pipe or a terminal stays
  AMXT_TRY(require_metrics(file));
  AMXT_ASSIGN(const int64_t size, file.size());
  Status written = file.append("\n");
  Status undone = was_there ? file.truncate(size) : remove_tree(path);
  return written ? std::move(undone) : std::move(written);
}

Result<MetricsFile> MetricsFile::open(const std::string& path, int64_t last_step) {
  AMXT_ASSIGN(File file, File::open_append(path));
  AMXT_TRY(require_metrics(file));
  AMXT_ASSIGN(const int64_t size, file.size());
  AMXT_ASSIGN(const int64_t good, good_length(file, last_step));
  if (good < size) AMXT_TRY(file.truncate(good));
  return MetricsFile(std::move(file));
}

Status MetricsFile::add(const StepMetrics& metrics) {
  return file_.append(metrics_line(metrics) + "\n");
}

}  // namespace amxt::train
