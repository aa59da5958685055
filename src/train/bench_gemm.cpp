#include "train/bench_gemm.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/json.h"
#include "base/text.h"
#include "kernels/blocked_layout.h"
#include "kernels/gemm.h"
#include "kernels/gemm_blocked.h"
#include "kernels/peak.h"

namespace amxt::train {

namespace {

using kernels::BlockedGemm;
using kernels::Gemm;

struct Shape {
  int64_t T, N, K;
};

struct Request {
  std::vector<Shape> shapes;
  int64_t repeat = 5;
};

std::vector<Shape> layers_of_8b() {
  std::vector<Shape> shapes;
  for (const int64_t T : {512, 2048}) {
    for (const auto& [K, N] :
         {std::pair<int64_t, int64_t>{2048, 8192}, {4096, 4096}, {4096, 14336}, {4096, 1024}}) {
      shapes.push_back({T, N, K});
    }
  }
  return shapes;
}

Error invalid(std::string_view what) {
  return Error(Code::kInvalidArgument, fmt::format("bench gemm: {}", what));
}

Result<int64_t> whole(const Json& value, int64_t most, std::string_view what) {
  if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > most) {
    return invalid(
        fmt::format("{} is {}, and must be a whole number from 1 to {}", what, value.dump(), most));
  }
  return value.get<int64_t>();
}

Result<Request> parse(std::string_view text) {
  Request request;
  request.shapes = layers_of_8b();
  if (text.empty()) return request;
  AMXT_ASSIGN(const Json json, parse_json(text));
  if (!json.is_object()) return invalid("options are no JSON object");
  for (const auto& [name, value] : json.items()) {
    if (name == "repeat") {
      AMXT_ASSIGN(request.repeat, whole(value, 10'000, "repeat"));
    } else if (name == "shapes" && value.is_array() && !value.empty()) {
      request.shapes.clear();
      for (const Json& shape : value) {
        if (!shape.is_array() || shape.size() != 3) {
          return invalid(fmt::format("{} is no shape [T, N, K]", shape.dump()));
        }
        int64_t sides[3];
        for (size_t i = 0; i < 3; ++i) {
          AMXT_ASSIGN(sides[i], whole(shape[i], int64_t{1} << 20, "a side of a shape"));
        }
        request.shapes.push_back({sides[0], sides[1], sides[2]});
      }
    } else {
      return invalid(fmt::format("unknown option, or not what it must be: \"{}\"", name));
    }
  }
  return request;
}

double clock_seconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Processor time of the pool's threads. Each has a clock of its own: the process's is told only at the ticks of threads that run.
class CpuClocks {
 public:
  explicit CpuClocks(ThreadPool& pool) : clocks_(static_cast<size_t>(pool.threads())) {
    std::atomic<int> arrived{0};
    pool.run(pool.threads(), [&](int64_t, int thread) {
      pthread_getcpuclockid(pthread_self(), &clocks_[static_cast<size_t>(thread)]);
      // A thread that waits here can't take a second task.
      arrived.fetch_add(1);
      while (arrived.load() < pool.threads()) std::this_thread::yield();
    });
  }
  double mean_seconds() const {
    double sum = 0;
    for (const clockid_t clock : clocks_) sum += clock_seconds(clock);
    return sum / static_cast<double>(clocks_.size());
  }

 private:
  std::vector<clockid_t> clocks_;
};

// Of one thing that takes its turn. Processor seconds, a thread's on average, are what a busy machine leaves as it is.
struct Samples {
  std::vector<double> seconds, cpu_seconds;

  Status add(const CpuClocks& clocks, const std::function<Status()>& run) {
    const double cpu = clocks.mean_seconds(), begin = clock_seconds(CLOCK_MONOTONIC);
    AMXT_TRY(run());
    seconds.push_back(clock_seconds(CLOCK_MONOTONIC) - begin);
    cpu_seconds.push_back(clocks.mean_seconds() - cpu);
    return {};
  }
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}
double least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}
double most(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

// One form of one shape by one implementation.
struct Product {
  const char* form;
  std::string implementation;
  double bytes;  // of operands, and of the result as often as it is touched
  std::function<Status()> run;
  Samples samples;
};

// Operands of a shape. Weights are random, so that one buffer serves as row-major and as blocked.
struct Operands {
  Buffer x, w, dy, y, dx, dw;
};

Result<Operands> operands_of(const Shape& shape) {
  const auto [T, N, K] = shape;
  const int64_t weights = kernels::BlockedShape{N, K}.elements();
  constexpr int64_t kSize = sizeof(bf16);
  const int64_t bytes = 2 * kSize * (T * K + T * N) + 3 * kSize * weights;
  if (const int64_t free = cpu_limits().memory_available_bytes; bytes > free) {
    return Error(Code::kOutOfMemory,
                 fmt::format("bench gemm: T {}, N {}, K {} takes {}, and {} are available", T, N, K,
                             bytes_text(static_cast<uint64_t>(bytes)),
                             bytes_text(static_cast<uint64_t>(free))));
  }
  Operands operands;
  const char* const what = "operands of the benchmark";
  AMXT_ASSIGN(operands.x, Buffer::allocate(T * K * kSize, what));
  AMXT_ASSIGN(operands.w, Buffer::allocate(weights * kSize, what));
  AMXT_ASSIGN(operands.dy, Buffer::allocate(T * N * kSize, what));
  AMXT_ASSIGN(operands.y, Buffer::allocate(T * N * kSize, what));
  AMXT_ASSIGN(operands.dx, Buffer::allocate(T * K * kSize, what));
  AMXT_ASSIGN(operands.dw, Buffer::allocate(weights * int64_t{sizeof(float)}, what));
  fill_random(operands.x.as<bf16>(), T * K, 1);
  fill_random(operands.w.as<bf16>(), weights, 2);
  fill_random(operands.dy.as<bf16>(), T * N, 3);
  return operands;
}

double bytes_of(const Shape& shape, int64_t weight_bytes) {
  return 2.0 * static_cast<double>(shape.T * (shape.N + shape.K)) +
         static_cast<double>(weight_bytes * shape.N * shape.K);
}

// What packs activations and transposes does so within the call.
void add_products(const Shape& shape, const Operands& operands, Gemm<bf16>* list, BlockedGemm* own,
                  std::vector<Product>* products) {
  const auto [T, N, K] = shape;
  const bf16 *x = operands.x.as<bf16>(), *w = operands.w.as<bf16>(), *dy = operands.dy.as<bf16>();
  bf16 *y = operands.y.as<bf16>(), *dx = operands.dx.as<bf16>(), *dw = operands.dw.as<bf16>();
  float* const dw_sums = operands.dw.as<float>();
  const double once = bytes_of(shape, 2), added = bytes_of(shape, 8);
  const auto add = [&](const char* form, double bytes, auto blocked, auto row_major) {
    products->push_back({form, own->name(), bytes, blocked, {}});
    products->push_back({form, list->name(), bytes, row_major, {}});
  };
  add(
      "forward", once, [=] { return own->forward(T, N, K, x, K, w, y, N); },
      [=] { return list->forward(T, N, K, x, K, w, K, y, N); });
  add(
      "grad_input", once, [=] { return own->grad_input(T, N, K, dy, N, w, dx, K); },
      [=] { return list->grad_input(T, N, K, dy, N, w, K, dx, K); });
  add(
      "grad_weight", once, [=] { return own->grad_weight(T, N, K, dy, N, x, K, dw); },
      [=] { return list->grad_weight_rounded(T, N, K, dy, N, x, K, dw, K); });
  add(
      "grad_weight_added", added,
      [=] { return own->grad_weight_float(T, N, K, dy, N, x, K, dw_sums, true); },
      [=] { return list->grad_weight(T, N, K, dy, N, x, K, dw_sums, K, true); });
}

Json row_of(const Shape& shape, const Product& product, double peak, double cpu_peak) {
  const Samples& samples = product.samples;
  const double flop = 2.0 * static_cast<double>(shape.T * shape.N) * static_cast<double>(shape.K);
  const double seconds = median(samples.seconds), cpu_seconds = median(samples.cpu_seconds);
  Json row;
  row["form"] = product.form;
  row["implementation"] = product.implementation;
  row["T"] = shape.T;
  row["N"] = shape.N;
  row["K"] = shape.K;
  row["flop"] = flop;
  row["bytes"] = product.bytes;
  row["seconds"] = seconds;
  row["seconds_least"] = least(samples.seconds);
  row["seconds_most"] = most(samples.seconds);
  row["cpu_seconds"] = cpu_seconds;
  row["tflops"] = flop / seconds * 1e-12;
  row["ratio_to_peak"] = flop / seconds * 1e-12 / peak;
  row["cpu_ratio_to_peak"] = flop / cpu_seconds * 1e-12 / cpu_peak;
  return row;
}

// The geometric means over all shapes of the three forms that a step is made of.
Json means_of(const Json& rows) {
  Json means = Json::array();
  for (const Json& row : rows) {
    const std::string implementation = row.at("implementation").get<std::string>();
    if (std::any_of(means.begin(), means.end(), [&](const Json& mean) {
          return mean.at("implementation") == implementation;
        })) {
      continue;
    }
    Json mean{{"implementation", implementation}};
    for (const char* what : {"tflops", "ratio_to_peak", "cpu_ratio_to_peak"}) {
      double logarithms = 0, count = 0;
      for (const Json& each : rows) {
        if (each.at("implementation") != implementation || each.at("form") == "grad_weight_added")
          continue;
        logarithms += std::log(each.at(what).get<double>());
        count += 1;
      }
      mean[what] = std::exp(logarithms / count);
    }
    means.push_back(std::move(mean));
  }
  return means;
}

}  // namespace

Result<std::string> bench_gemm(std::string_view options, int threads, bool pin,
                               const BenchLimits& limits) {
  AMXT_ASSIGN(const Request request, parse(options));
  AMXT_ASSIGN(const CpuIsa* isa, cpu_isa());
  AMXT_ASSIGN(const std::unique_ptr<ThreadPool> pool, bench_pool(threads, pin));
  pool->pin_caller();
  AMXT_ASSIGN(const std::unique_ptr<Gemm<bf16>> list, Gemm<bf16>::create(pool.get(), isa->chosen));
  AMXT_ASSIGN(const std::unique_ptr<BlockedGemm> own, BlockedGemm::create(pool.get(), isa->chosen));
  const CpuClocks clocks(*pool);
  constexpr double kPeakSeconds = 0.02;
  AMXT_ASSIGN(kernels::ComputePeak peak,
              kernels::ComputePeak::create(pool.get(), isa->chosen, kPeakSeconds));

  struct Finished {
    Shape shape;
    std::vector<Product> products;
  };
  std::vector<Finished> finished;
  Samples peaks;
  double peak_flop = 0;
  for (const Shape& shape : request.shapes) {
    AMXT_TRY(limits.check());
    AMXT_ASSIGN(const Operands operands, operands_of(shape));
    std::vector<Product> products;
    add_products(shape, operands, list.get(), own.get(), &products);
    for (Product& product : products) {
      AMXT_TRY(limits.check());
      AMXT_TRY(product.run());  // prepares what the first call needs
    }
    for (int64_t round = 0; round < request.repeat; ++round) {
      AMXT_TRY(peaks.add(clocks, [&]() -> Status {
        peak_flop = peak.sample().flop;
        return {};
      }));
      for (Product& product : products) {
        AMXT_TRY(limits.check());
        AMXT_TRY(product.samples.add(clocks, product.run));
      }
    }
    for (Product& product : products) product.run = nullptr;  // its operands go
    finished.push_back({shape, std::move(products)});
  }

  // Neighbours only ever slow the limit down: its best sample is what the machine can do.
  const double tflops = peak_flop / least(peaks.seconds) * 1e-12;
  const double cpu_tflops = peak_flop / least(peaks.cpu_seconds) * 1e-12;
  Json rows = Json::array();
  for (const Finished& each : finished) {
    for (const Product& product : each.products) {
      rows.push_back(row_of(each.shape, product, tflops, cpu_tflops));
    }
  }
  Json json;
  json["isa"] = isa_name(isa->chosen);
  json["threads"] = threads;
  json["data"] = "random";
  json["repeat"] = request.repeat;
  json["peak"] = {{"name", peak.name()},
                  {"tflops", tflops},
                  {"tflops_median", peak_flop / median(peaks.seconds) * 1e-12},
                  {"tflops_of_cpu_seconds", cpu_tflops}};
  json["skipped"] = Json::array();
  for (const kernels::GemmCandidate& candidate : list->candidates()) {
    if (candidate.skipped_because.empty()) continue;
    json["skipped"].push_back({{"name", candidate.name}, {"why", candidate.skipped_because}});
  }
  json["means"] = means_of(rows);
  json["products"] = std::move(rows);
  return json.dump();
}

}  // namespace amxt::train
