#include "train/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/buffer.h"
#include "base/json.h"
#include "kernels/peak.h"

namespace amxt::train {
namespace {

// Neighbours only ever slow a limit down: the best sample counts.
constexpr int kSamples = 5;
constexpr double kPeakSeconds = 0.05;
constexpr int64_t kTriadFloats = int64_t{8} << 20;  // of each of three arrays

Result<double> memory_limit(ThreadPool* pool) {
  AMXT_ASSIGN(Buffer memory, Buffer::allocate(3 * kTriadFloats * int64_t{sizeof(float)},
                                              "arrays that the memory's limit is measured on"));
  float* const x = memory.as<float>();
  std::fill_n(x, 3 * kTriadFloats, 1.25f);
  int64_t best_ns = INT64_MAX;
  for (int i = 0; i < kSamples; ++i) {
    const int64_t begin = monotonic_ns();
    kernels::triad(*pool, kTriadFloats, 0.5f, x, x + kTriadFloats, x + 2 * kTriadFloats);
    best_ns = std::min(best_ns, monotonic_ns() - begin);
  }
  return static_cast<double>(3 * kTriadFloats * int64_t{sizeof(float)}) /
         static_cast<double>(best_ns) * 1e9;
}

double seconds_of(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

Result<std::unique_ptr<Profile>> Profile::begin(ThreadPool* pool, Isa isa) {
  std::unique_ptr<Profile> profile(new Profile(pool));
  AMXT_ASSIGN(auto peak, kernels::ComputePeak::create(pool, isa, kPeakSeconds));
  profile->peak_name_ = peak.name();
  for (int i = 0; i < kSamples; ++i) {
    const auto sample = peak.sample();
    profile->flop_per_second_ = std::max(profile->flop_per_second_, sample.flop / sample.seconds);
  }
  AMXT_ASSIGN(profile->bytes_per_second_, memory_limit(pool));
  pool->set_trace(&profile->trace_);
  profile->begin_ns_ = monotonic_ns();
  return profile;
}

void Profile::end() {
  pool_->set_trace(nullptr);
  end_ns_ = monotonic_ns();
}

std::vector<Profile::Row> Profile::rows() const {
  std::map<std::string, Row> by_name;
  double all = 0;
  for (const Trace::Event& event : trace_.events()) {
    Row& row = by_name[event.name];
    row.name = event.name;
    ++row.calls;
    row.seconds += seconds_of(event.end_ns - event.begin_ns);
    row.flop += event.flop;
    row.bytes += event.bytes;
    row.limit_seconds += std::max(event.flop / flop_per_second_, event.bytes / bytes_per_second_);
    all += seconds_of(event.end_ns - event.begin_ns);
  }
  std::vector<Row> rows;
  for (auto& [name, row] : by_name) rows.push_back(std::move(row));
  std::sort(rows.begin(), rows.end(),
            [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  Row rest;
  rest.name = "between operations";
  rest.seconds = std::max(0.0, seconds_of(end_ns_ - begin_ns_) - all);
  rows.push_back(rest);
  return rows;
}

std::string Profile::table(int64_t step) const {
  const double whole = seconds_of(end_ns_ - begin_ns_);
  std::string text = fmt::format(
      "step {}: {:.3f} s; limits: {:.3f} TFLOP/s ({}), {:.1f} GB/s (triad)\n"
      "{:<22}{:>7}{:>10}{:>8}{:>10}{:>8}{:>10}",
      step, whole, flop_per_second_ * 1e-12, peak_name_, bytes_per_second_ * 1e-9, "operation",
      "calls", "seconds", "share", "TFLOP/s", "GB/s", "of limit");
  for (const Row& row : rows()) {
    const auto rate = [&](double amount, double unit) {
      return amount > 0 && row.seconds > 0 ? fmt::format("{:.3g}", amount / row.seconds * unit)
                                           : std::string("-");
    };
    text += fmt::format(
        "\n{:<22}{:>7}{:>10.4f}{:>7.1f}%{:>10}{:>8}{:>10}", row.name, row.calls, row.seconds,
        100 * row.seconds / whole, rate(row.flop, 1e-12), rate(row.bytes, 1e-9),
        row.limit_seconds > 0 ? fmt::format("{:.0f}%", 100 * row.limit_seconds / row.seconds)
                              : "-");
  }
  if (trace_.left_out() > 0)
    text += fmt::format("\n{} operations more were left out", trace_.left_out());
  return text;
}

std::string Profile::chrome_trace(int rank) const {
  Json json;
  json["displayTimeUnit"] = "ms";
  Json& events = json["traceEvents"] = Json::array();
  for (const Trace::Event& event : trace_.events()) {
    Json args = Json::object();
    if (event.flop > 0) args["flop"] = event.flop;
    if (event.bytes > 0) args["bytes"] = event.bytes;
    events.push_back({{"name", event.name},
                      {"ph", "X"},
                      {"ts", static_cast<double>(event.begin_ns - begin_ns_) * 1e-3},
                      {"dur", static_cast<double>(event.end_ns - event.begin_ns) * 1e-3},
                      {"pid", rank},
                      {"tid", 0},
                      {"args", std::move(args)}});
  }
  return json.dump();
}

}  // namespace amxt::train
