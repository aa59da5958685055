#include <algorithm>
#include <cmath>

#include "base/buffer.h"
#include "kernels/blocked_layout.h"
#include "kernels/gemm.h"
#include "kernels/gemm_blocked.h"
#include "train/bench_kernels.h"
#include "train/bench_samples.h"

namespace amxt::train {

namespace {

using kernels::BlockedGemm;
using kernels::Gemm;

std::vector<BenchShape> layers_of_8b() {
  std::vector<BenchShape> shapes;
  for (const int64_t T : {512, 2048}) {
    for (const auto& [K, N] :
         {std::pair<int64_t, int64_t>{2048, 8192}, {4096, 4096}, {4096, 14336}, {4096, 1024}}) {
      shapes.push_back({T, N, K});
    }
  }
  return shapes;
}

const BenchKind& kind() {
  constexpr int64_t kMost = int64_t{1} << 20;
  static const BenchKind kind{"gemm", {{"T", kMost}, {"N", kMost}, {"K", kMost}}, layers_of_8b()};
  return kind;
}

struct Shape {
  int64_t T, N, K;

  explicit Shape(const BenchShape& shape) : T(shape[0]), N(shape[1]), K(shape[2]) {}
};

// Operands of a shape. Weights are random, so that one buffer serves as row-major and as blocked.
struct Operands {
  Buffer x, w, dy, y, dx, dw;
};

Result<Operands> operands_of(const Shape& shape) {
  const auto [T, N, K] = shape;
  const int64_t weights = kernels::BlockedShape{N, K}.elements();
  constexpr int64_t kSize = sizeof(bf16);
  AMXT_TRY(
      check_bench_memory(kind(), {T, N, K}, 2 * kSize * (T * K + T * N) + 3 * kSize * weights));
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
std::vector<Contender> products_of(const Shape& shape, const Operands& operands, Gemm<bf16>* list,
                                   BlockedGemm* own) {
  const auto [T, N, K] = shape;
  const bf16 *x = operands.x.as<bf16>(), *w = operands.w.as<bf16>(), *dy = operands.dy.as<bf16>();
  bf16 *y = operands.y.as<bf16>(), *dx = operands.dx.as<bf16>(), *dw = operands.dw.as<bf16>();
  float* const dw_sums = operands.dw.as<float>();
  const double flop = 2.0 * static_cast<double>(T * N) * static_cast<double>(K),
               once = bytes_of(shape, 2), added = bytes_of(shape, 8);
  std::vector<Contender> products;
  const auto add = [&](const char* form, double bytes, auto blocked, auto row_major) {
    const auto row = [&](const std::string& implementation) {
      return Json{{"form", form}, {"implementation", implementation}};
    };
    products.push_back({row(own->name()), flop, bytes, blocked});
    products.push_back({row(list->name()), flop, bytes, row_major});
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
  return products;
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
  AMXT_ASSIGN(const BenchRequest request, parse_bench_request(kind(), options));
  AMXT_ASSIGN(const std::unique_ptr<BenchRun> run,
              BenchRun::create(kind(), request, threads, pin, limits));
  AMXT_ASSIGN(const std::unique_ptr<Gemm<bf16>> list, Gemm<bf16>::create(run->pool(), run->isa()));
  AMXT_ASSIGN(const std::unique_ptr<BlockedGemm> own, BlockedGemm::create(run->pool(), run->isa()));
  AMXT_TRY(run->limit_by_compute());
  for (const BenchShape& each : request.shapes) {
    const Shape shape(each);
    AMXT_ASSIGN(const Operands operands, operands_of(shape));
    AMXT_TRY(run->take_turns(each, products_of(shape, operands, list.get(), own.get())));
  }
  Json json = run->result();
  json["skipped"] = Json::array();
  for (const kernels::GemmCandidate& candidate : list->candidates()) {
    if (candidate.skipped_because.empty() || candidate.name == own->name()) continue;
    json["skipped"].push_back({{"name", candidate.name}, {"why", candidate.skipped_because}});
  }
  json["means"] = means_of(json.at("rows"));
  return json.dump();
}

}  // namespace amxt::train
