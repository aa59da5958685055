#define AMXT_ENABLE_PREVIEW
#include "bench_gemm.h"

#include <fmt/format.h>

#include "console.h"

namespace command {

namespace {

// "T,N,K" as an array of numbers.
Json shape_of(const std::string& text) {
  const Json shape = Json::parse("[" + text + "]", nullptr, false);
  if (shape.size() != 3) throw Failure(fmt::format("--shape {} is not T,N,K", text), kUsage);
  for (const Json& side : shape) {
    if (!side.is_number_unsigned() || side.get<uint64_t>() < 1 || side.get<uint64_t>() > 1 << 20) {
      throw Failure(
          fmt::format("--shape {}: each of T,N,K is a whole number from 1 to 1048576", text),
          kUsage);
    }
  }
  return shape;
}

std::string percent(const Json& ratio) {
  return fmt::format("{:5.1f}%", ratio.get<double>() * 100);
}

void print_table(const Json& result) {
  const Json& peak = result.at("peak");
  print_line(fmt::format("{}, {}, random data, {} rounds in turn; peak ({}) {:.3f} TFLOP/s",
                         result.at("isa").get<std::string>(),
                         counted(result.at("threads").get<int64_t>(), "thread"),
                         result.at("repeat").get<int64_t>(), peak.at("name").get<std::string>(),
                         peak.at("tflops").get<double>()));
  print_line(fmt::format("{} {} {} {:>11}   {:>6}  {:>16}  spread", padded("T x N x K", 19),
                         padded("form", 18), padded("", 20), "TFLOP/s", "ratio",
                         "ratio, CPU time"));
  for (const Json& row : result.at("products")) {
    print_line(fmt::format(
        "{} {} {} {:11.3f}   {}  {:>16}  {:.1f}-{:.1f} ms",
        padded(
            fmt::format("{} x {} x {}", row.at("T").dump(), row.at("N").dump(), row.at("K").dump()),
            19),
        padded(row.at("form").get<std::string>(), 18),
        padded(row.at("implementation").get<std::string>(), 20), row.at("tflops").get<double>(),
        percent(row.at("ratio_to_peak")), percent(row.at("cpu_ratio_to_peak")),
        row.at("seconds_least").get<double>() * 1e3, row.at("seconds_most").get<double>() * 1e3));
  }
  for (const Json& mean : result.at("means")) {
    print_line(fmt::format("{} {} {} {:11.3f}   {}  {:>16}", padded("geometric mean", 19),
                           padded("", 18), padded(mean.at("implementation").get<std::string>(), 20),
                           mean.at("tflops").get<double>(), percent(mean.at("ratio_to_peak")),
                           percent(mean.at("cpu_ratio_to_peak"))));
  }
  for (const Json& skipped : result.at("skipped")) {
    print_line(fmt::format("not measured: {}: {}", skipped.at("name").get<std::string>(),
                           skipped.at("why").get<std::string>()));
  }
}

}  // namespace

int run_gemm(const CommonOptions& common, const GemmBench& options) {
  Json request = Json::object();
  if (options.repeat) request["repeat"] = *options.repeat;
  for (const std::string& shape : options.shapes) request["shapes"].push_back(shape_of(shape));
  take_signals();
  const Session session(common);
  const Json result = json([&](char** out, amxt_error* error) {
    return amxt_preview_bench(session.runtime(), "gemm", request.dump().c_str(), out, AMXT_FOREVER,
                              error);
  });
  if (options.as_json) {
    print_line(result.dump(2));
  } else {
    print_table(result);
  }
  return kSuccess;
}

}  // namespace command
