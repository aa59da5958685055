#define AMXT_ENABLE_PREVIEW
#include "bench_kernels.h"

#include <fmt/format.h>

#include <algorithm>

#include "commands.h"
#include "console.h"
#include "options.h"

namespace command {

namespace {

struct Entry {
  const char* name;
  const char* about;
  const char* shape;
};

constexpr Entry kEntries[] = {
    {"gemm", "Matrix products of a linear layer, by each implementation",
     "T,N,K: tokens, output and input features (default: sides of an 8b model's layer)"},
    {"attention", "Causal attention, forward and backward",
     "T,heads,kv_heads,head_dim (default: an 8b model's, T 512 and 2048)"},
    {"optimizer", "Norm of gradients, clipping and AdamW, beside a stream that updates memory",
     "Number of parameters (default: 128 Mi)"},
    {"head", "Head and loss, forward and backward",
     "T,vocab,hidden: tokens, words, features (default: an 8b model's, T 512)"},
    {"norms", "RMSNorm, RoPE, SwiGLU and sums of rows, beside the memory's triad",
     "T,hidden,intermediate,head_dim (default: an 8b model's, T 512 and 4096)"},
    {"layer", "A decoder layer, forward and backward with the gradients of its weights",
     "T,hidden,intermediate,heads,kv_heads,head_dim (default: an 8b model's, T 512 and 2048)"}};

// What stands between commas, for the library to check.
Json shape_of(const std::string& text) {
  Json shape = Json::parse("[" + text + "]", nullptr, false);
  if (shape.is_discarded()) {
    throw Failure(fmt::format("--shape {} is not numbers with commas between them", text), kUsage);
  }
  return shape;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : " x ") + part;
  return text;
}

struct Line {
  std::string shape, form, implementation, rate, ratio, cpu_ratio, spread;
};

std::string percent(const Json& ratio) { return fmt::format("{:.1f}%", ratio.get<double>() * 100); }

Line line_of(const Json& row, const std::vector<std::string>& sides, const char* unit) {
  Line line;
  std::vector<std::string> shape;
  for (const std::string& side : sides) {
    if (row.contains(side)) shape.push_back(row.at(side).dump());
  }
  line.shape = shape.empty() ? "geometric mean" : joined(shape);
  line.form = row.value("form", "");
  line.implementation = row.value("implementation", "");
  line.rate = fmt::format("{:.3f}", row.at(unit).get<double>());
  line.ratio = percent(row.at("ratio_to_peak"));
  line.cpu_ratio = percent(row.at("cpu_ratio_to_peak"));
  if (row.contains("seconds")) {
    line.spread = fmt::format("{:.1f}-{:.1f} ms", row.at("seconds_least").get<double>() * 1e3,
                              row.at("seconds_most").get<double>() * 1e3);
  }
  return line;
}

void print_lines(const std::vector<Line>& lines) {
  size_t shape = 19, form = 18, implementation = 0;
  for (const Line& line : lines) {
    shape = std::max(shape, line.shape.size());
    form = std::max(form, line.form.size());
    implementation = std::max(implementation, line.implementation.size());
  }
  for (const Line& line : lines) {
    print_line(fmt::format("{} {} {} {:>11}   {:>6}  {:>16}  {}", padded(line.shape, shape),
                           padded(line.form, form), padded(line.implementation, implementation),
                           line.rate, line.ratio, line.cpu_ratio, line.spread));
  }
}

void print_table(const Json& result) {
  const Json& peak = result.at("peak");
  const bool flop = peak.contains("tflops");
  const char *const unit = flop ? "tflops" : "gb_per_second", *const unit_text =
                                                                  flop ? "TFLOP/s" : "GB/s";
  const auto sides = result.at("sides").get<std::vector<std::string>>();
  print_line(fmt::format("{}, {}, random data, {} rounds in turn; peak ({}) {:.3f} {}; shapes {}",
                         result.at("isa").get<std::string>(),
                         counted(result.at("threads").get<int64_t>(), "thread"),
                         result.at("repeat").get<int64_t>(), peak.at("name").get<std::string>(),
                         peak.at(unit).get<double>(), unit_text, joined(sides)));
  std::vector<Line> lines{{"shape", "form", "", unit_text, "ratio", "ratio, CPU time", "spread"}};
  for (const char* list : {"rows", "means"}) {
    for (const Json& row : result.value(list, Json::array())) {
      lines.push_back(line_of(row, sides, unit));
    }
  }
  print_lines(lines);
  for (const Json& row : result.at("rows")) {
    if (!row.contains("extra_bytes")) continue;
    print_line(fmt::format("extra memory {}, {} of the logits in fp32",
                           bytes_text(row.at("extra_bytes").get<double>()),
                           percent(row.at("extra_to_logits"))));
  }
  for (const Json& skipped : result.value("skipped", Json::array())) {
    print_line(fmt::format("not measured: {}: {}", skipped.at("name").get<std::string>(),
                           skipped.at("why").get<std::string>()));
  }
}

}  // namespace

std::vector<std::pair<CLI::App*, std::shared_ptr<KernelBench>>> add_kernel_benches(
    CLI::App& bench, CommonOptions& common) {
  std::vector<std::pair<CLI::App*, std::shared_ptr<KernelBench>>> added;
  for (const Entry& entry : kEntries) {
    CLI::App* const app = bench.add_subcommand(entry.name, entry.about);
    auto options = std::make_shared<KernelBench>();
    options->name = entry.name;
    app->add_flag("--json", options->as_json, "Print JSON");
    app->add_option("--shape", options->shapes, std::string(entry.shape) + "; can be repeated");
    app->add_option("--repeat", options->repeat, "Rounds (default 5)")->transform(whole(1, 10'000));
    add_common_options(*app, common);
    added.emplace_back(app, std::move(options));
  }
  return added;
}

int run_kernel_bench(const CommonOptions& common, const KernelBench& options) {
  Json request = Json::object();
  if (options.repeat) request["repeat"] = *options.repeat;
  for (const std::string& shape : options.shapes) request["shapes"].push_back(shape_of(shape));
  take_signals();
  const Session session(common);
  const Json result = json([&](char** out, amxt_error* error) {
    return amxt_preview_bench(session.runtime(), options.name.c_str(), request.dump().c_str(), out,
                              AMXT_FOREVER, error);
  });
  if (options.as_json) {
    print_line(result.dump(2));
  } else {
    print_table(result);
  }
  return kSuccess;
}

}  // namespace command
