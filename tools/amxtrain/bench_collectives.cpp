#include "bench_collectives.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>

#include "console.h"

namespace command {

namespace {

constexpr int64_t kWait = AMXT_SECONDS(300);
constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

amxt_tensor floats(std::vector<float>& data, int64_t count) {
  amxt_tensor tensor = AMXT_TENSOR_INIT;
  tensor.data = data.data();
  tensor.count = count;
  return tensor;
}

// The command again, behind `launch`.
[[noreturn]] void become_launch(const CommonOptions& common, const CollectivesBench& options) {
  std::vector<std::string> words{"amxtrain",
                                 "launch",
                                 "--nproc-per-node",
                                 std::to_string(options.ranks),
                                 "--",
                                 "/proc/self/exe",
                                 "bench",
                                 "collectives",
                                 "--repeat",
                                 std::to_string(options.repeat)};
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
  if (length > 0) words[5].assign(self, static_cast<size_t>(length));
  words.insert(words.end(), {"--bytes", fmt::format("{}", fmt::join(options.sizes, ","))});
  if (options.as_json) words.emplace_back("--json");
  if (common.threads) words.insert(words.end(), {"--threads", std::to_string(*common.threads)});
  if (common.log_level) words.insert(words.end(), {"--log", *common.log_level});
  if (common.allow_unauthenticated_data) words.emplace_back("--allow-unauthenticated-data");
  if (common.connect_timeout_seconds) {
    words.insert(words.end(),
                 {"--connect-timeout", std::to_string(*common.connect_timeout_seconds)});
  }
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  execv(words[5].c_str(), arguments.data());
  throw Failure(fmt::format("{}: {}", in_quotes(words[5]), std::strerror(errno)));
}

// a = b + s * c on all ranks at once, out of the caches: the memory's speed as streams of reads and writes see it, in bytes per second.
double triad(amxt_group* group) {
  constexpr size_t kCount = size_t{16} << 20;
  std::vector<float> a(kCount), b(kCount, 1.F), c(kCount, 2.F);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    call([&](amxt_error* error) { return amxt_group_barrier(group, kWait, error); });
    const double begin = now();
    for (size_t i = 0; i < kCount; i += 64) {  // blocks that the compiler makes vectors of
      for (size_t j = i; j < i + 64; ++j) a[j] = b[j] + 3.F * c[j];
    }
    call([&](amxt_error* error) { return amxt_group_barrier(group, kWait, error); });
    best = std::max(best, 3.0 * sizeof(float) * kCount * amxt_group_size(group) / (now() - begin));
  }
  return best;
}

struct Collective {
  const char* name;
  // One call on arrays of `bytes` per rank.
  std::function<void(int64_t count)> run;
  // What must cross the memory bus at least, in units of the array: reads of what is given, writes of what is got.
  double traffic;
};

void print_row(const CollectivesBench& options, const std::string& name,
               const std::string& transport, int ranks, int64_t bytes, double seconds,
               double bytes_per_second, double ratio) {
  if (options.as_json) {
    print_line(Json{{"name", name},
                    {"transport", transport},
                    {"ranks", ranks},
                    {"dtype", "F32"},
                    {"bytes", bytes},
                    {"seconds", seconds},
                    {"gib_per_second", bytes_per_second / kGib},
                    {"ratio_to_limit", ratio > 0 ? Json(ratio) : Json()}}
                   .dump());
    return;
  }
  print_line(fmt::format("{} {} {} {:10.1f} us {:8.2f} GiB/s{}", padded(name, 16),
                         padded(transport, 10), padded(bytes_text(static_cast<double>(bytes)), 9),
                         seconds * 1e6, bytes_per_second / kGib,
                         ratio > 0 ? fmt::format("  {:3.0f}% of the limit", ratio * 100) : ""));
}

void measure(amxt_group* group, const CollectivesBench& options) {
  const int ranks = amxt_group_size(group), rank = amxt_group_rank(group);
  const auto widest = static_cast<size_t>(
      *std::max_element(options.sizes.begin(), options.sizes.end()) / sizeof(float) + ranks);
  std::vector<float> in(widest, 1.F), out(widest, 0.F);
  const auto P = static_cast<double>(ranks);
  const Collective all[] = {
      {"all_gather",
       [&](int64_t count) {
         const amxt_tensor send = floats(in, count / ranks),
                           receive = floats(out, count / ranks * ranks);
         call([&](amxt_error* error) {
           return amxt_group_allgather(group, &send, &receive, nullptr, kWait, error);
         });
       },
       1 + P},
      {"reduce_scatter",
       [&](int64_t count) {
         const amxt_tensor send = floats(in, count / ranks * ranks),
                           receive = floats(out, count / ranks);
         call([&](amxt_error* error) {
           return amxt_group_reduce_scatter(group, &send, &receive, nullptr, AMXT_REDUCE_SUM, kWait,
                                            error);
         });
       },
       P + 1},
      {"all_reduce",
       [&](int64_t count) {
         const amxt_tensor both = floats(out, count);
         call([&](amxt_error* error) {
           return amxt_group_allreduce(group, &both, &both, AMXT_REDUCE_MAX, kWait, error);
         });
       },
       P + 1 + 2 * P},
      {"broadcast",
       [&](int64_t count) {
         const amxt_tensor both = floats(in, count);
         call([&](amxt_error* error) {
           return amxt_group_broadcast(group, &both, 0, kWait, error);
         });
       },
       P},
      {"all_to_all",
       [&](int64_t count) {
         const amxt_tensor send = floats(in, count / ranks * ranks);
         const amxt_tensor receive = floats(out, count / ranks * ranks);
         call([&](amxt_error* error) {
           return amxt_group_alltoall(group, &send, nullptr, &receive, nullptr, kWait, error);
         });
       },
       2 * P}};

  all[0].run(ranks);  // connects, or says at once why it does not
  const double memory = triad(group);
  const Json info =
      json([&](char** text, amxt_error* error) { return amxt_group_info(group, text, error); });
  const auto transport = info.at("collectives").at("transport").get<std::string>();
  const bool in_memory = transport == "shm";
  if (rank == 0)
    print_row(options, "memory_triad", "none", ranks, 3 * (int64_t{64} << 20) * ranks,
              3.0 * static_cast<double>(64 << 20) * P / memory, memory, -1);

  for (const int64_t bytes : options.sizes) {
    const int64_t count = bytes / static_cast<int64_t>(sizeof(float));
    for (const Collective& one : all) {
      // Small ones often, so that a median means something.
      const auto repeat = static_cast<size_t>(options.repeat * (bytes <= (64 << 10) ? 50 : 1));
      one.run(count);
      std::vector<float> seconds(repeat);
      for (float& second : seconds) {
        call([&](amxt_error* error) { return amxt_group_barrier(group, kWait, error); });
        const double begin = now();
        one.run(count);
        second = static_cast<float>(now() - begin);
      }
      // A call has ended when it has on all ranks.
      const amxt_tensor slowest = floats(seconds, static_cast<int64_t>(repeat));
      call([&](amxt_error* error) {
        return amxt_group_allreduce(group, &slowest, &slowest, AMXT_REDUCE_MAX, kWait, error);
      });
      std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(repeat / 2),
                       seconds.end());
      const double median = seconds[repeat / 2];
      if (rank == 0) {
        print_row(options, one.name, transport, ranks, bytes, median,
                  static_cast<double>(bytes) / median,
                  in_memory ? one.traffic * static_cast<double>(bytes) / memory / median : -1);
      }
    }
  }
}

}  // namespace

int run_collectives(const CommonOptions& common, const CollectivesBench& options) {
  const Json launch =
      json([](char** text, amxt_error* error) { return amxt_launch_info(nullptr, text, error); });
  const bool alone = launch.at("launch").is_object() &&
                     launch.at("launch").at("source").get<std::string>() == "alone";
  if (alone && options.ranks > 1) become_launch(common, options);
  take_signals();
  const Session session(common);
  const Group group = join_group(session);
  try {
    measure(group.get(), options);
    call([&](amxt_error* error) { return amxt_group_finalize(group.get(), kWait, error); });
  } catch (const Failure& failure) {
    amxt_group_abort(group.get(), failure.what(), nullptr);
    throw;
  }
  return kSuccess;
}

}  // namespace command
