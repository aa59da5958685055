// amxtrain bench collectives and gemm: rows for people and for programs.
#include <map>
#include <sstream>

#include "ranks/command.h"

namespace amxt::test {
namespace {

class CommandBench : public CommandTest {};

std::vector<Json> rows_of(const std::string& text) {
  std::vector<Json> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) rows.push_back(Json::parse(line));
  return rows;
}

void expect_rows(const Finished& finished, const std::string& transport, int ranks) {
  ASSERT_EQ(finished.code, 0) << finished;
  const std::vector<Json> rows = rows_of(finished.out);
  ASSERT_EQ(rows.size(), 1u + 2 * 5) << finished;
  EXPECT_EQ(rows[0].at("name"), "memory_triad");
  std::set<std::string> names;
  for (size_t i = 1; i < rows.size(); ++i) {
    const Json& row = rows[i];
    names.insert(row.at("name").get<std::string>());
    EXPECT_EQ(row.at("transport"), transport) << row;
    EXPECT_EQ(row.at("ranks"), ranks) << row;
    EXPECT_EQ(row.at("dtype"), "F32") << row;
    EXPECT_EQ(row.at("bytes"), i <= 5 ? 4096 : 300'000) << row;
    const double seconds = row.at("seconds").get<double>();
    EXPECT_GT(seconds, 0) << row;
    const double bytes = row.at("bytes").get<double>();
    EXPECT_NEAR(row.at("gib_per_second").get<double>() * seconds * 1024 * 1024 * 1024, bytes,
                bytes / 1000)
        << row;
    EXPECT_EQ(row.at("ratio_to_limit").is_null(), transport != "shm") << row;
  }
  EXPECT_EQ(names, (std::set<std::string>{"all_gather", "reduce_scatter", "all_reduce", "broadcast",
                                          "all_to_all"}));
}

const Arguments kBench{"bench", "collectives", "--json", "--bytes", "4096,300000", "--repeat", "1"};

TEST_F(CommandBench, CollectivesStartTheirOwnTwoRanks) { expect_rows(amxtrain(kBench), "shm", 2); }

TEST_F(CommandBench, CollectivesRunUnderALauncher) {
  expect_rows(amxtrain(Arguments{"launch", "--nproc-per-node", "3", "--", kCommand} + kBench),
              "shm", 3);
}

TEST_F(CommandBench, CollectivesCrossNodesByGloo) {
  const Arguments as_nodes{"launch",
                           "--nproc-per-node",
                           "2",
                           "--",
                           "sh",
                           "-c",
                           "AMXTRAIN_NODE_ID=$RANK exec \"$@\"",
                           "sh",
                           kCommand};
  expect_rows(amxtrain(as_nodes + kBench), "gloo", 2);
}

TEST_F(CommandBench, WithASecretDataGoesOverGlooOnlyWhereThatIsAllowed) {
  write_text(path("secret"), "a secret of enough bytes");
  fs::permissions(path("secret"), fs::perms::owner_read | fs::perms::owner_write);
  const auto run = [&](const Arguments& more) {
    return amxtrain(Arguments{"launch", "--nproc-per-node", "2", "--", "sh", "-c",
                              "AMXTRAIN_NODE_ID=$RANK exec \"$@\"", "sh", kCommand} +
                        kBench + more,
                    {{"AMXTRAIN_SECRET_FILE", path("secret")}});
  };
  const Finished refused = run({});
  EXPECT_NE(refused.code, 0) << refused;
  EXPECT_TRUE(has(refused.err, "--allow-unauthenticated-data")) << refused;
  EXPECT_EQ(refused.out, "") << "before anything is measured";
  expect_rows(run({"--allow-unauthenticated-data"}), "gloo", 2);
}

TEST_F(CommandBench, RanksThatItStartsGetItsOptions) {
  const Finished finished =
      amxtrain(kBench + Arguments{"--log", "debug", "--connect-timeout", "60", "--threads", "1",
                                  "--allow-unauthenticated-data"});
  expect_rows(finished, "shm", 2);
  EXPECT_TRUE(has(finished.err, "amxtrain: debug: ")) << finished;
}

TEST_F(CommandBench, CollectivesOfOneRankAreNone) {
  expect_rows(amxtrain(kBench + Arguments{"--ranks", "1"}), "none", 1);
}

TEST_F(CommandBench, CollectivesAreATableForPeople) {
  const Finished finished =
      amxtrain({"bench", "collectives", "--bytes", "1048576", "--repeat", "1"});
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_TRUE(has(finished.out, "reduce_scatter   shm        1.00 MiB")) << finished;
  EXPECT_TRUE(has(finished.out, "% of the limit")) << finished;
}

TEST_F(CommandBench, BadSizesAreRefused) {
  for (const Arguments& wrong : {Arguments{"--bytes", "0"}, Arguments{"--bytes", "4096,x"},
                                 Arguments{"--repeat", "0"}, Arguments{"--ranks", "65"}}) {
    const Finished finished = amxtrain(Arguments{"bench", "collectives"} + wrong);
    EXPECT_EQ(finished.code, 2) << finished;
    EXPECT_EQ(error_lines(finished.err).size(), 1u) << finished;
  }
}

const Arguments kGemm{"bench", "gemm", "--threads", "2", "--repeat", "3", "--shape", "65,96,130"};

TEST_F(CommandBench, GemmMeasuresEachFormByEachImplementation) {
  const Finished finished = amxtrain(kGemm + Arguments{"--shape", "32,64,64", "--json"});
  ASSERT_EQ(finished.code, 0) << finished;
  const Json result = Json::parse(finished.out);
  EXPECT_EQ(result.at("threads"), 2);
  EXPECT_EQ(result.at("repeat"), 3);
  EXPECT_EQ(result.at("data"), "random");
  const double peak = result.at("peak").at("tflops").get<double>();
  EXPECT_GT(peak, 0);

  std::map<std::string, std::set<std::string>> forms;  // by implementation
  for (const Json& row : result.at("rows")) {
    const bool first = row.at("T") == 65;
    forms[row.at("implementation").get<std::string>()].insert(row.at("form").get<std::string>());
    EXPECT_EQ(row.at("N"), first ? 96 : 64) << row;
    EXPECT_EQ(row.at("K"), first ? 130 : 64) << row;
    const double flop = 2.0 * (first ? 65 * 96 * 130 : 32 * 64 * 64);
    const double weight_bytes = row.at("form") == "grad_weight_added" ? 8 : 2;
    EXPECT_EQ(row.at("flop"), flop) << row;
    EXPECT_EQ(row.at("bytes"), first ? 2.0 * 65 * (96 + 130) + weight_bytes * 96 * 130
                                     : 2.0 * 32 * 128 + weight_bytes * 64 * 64)
        << row;
    const double seconds = row.at("seconds").get<double>();
    EXPECT_LE(row.at("seconds_least"), seconds) << row;
    EXPECT_GE(row.at("seconds_most"), seconds) << row;
    EXPECT_NEAR(row.at("tflops").get<double>(), flop / seconds * 1e-12, 1e-6) << row;
    EXPECT_NEAR(row.at("ratio_to_peak").get<double>(), flop / seconds * 1e-12 / peak, 1e-6) << row;
    EXPECT_GT(row.at("cpu_ratio_to_peak"), 0) << row;
  }
  const std::set<std::string> all{"forward", "grad_input", "grad_weight", "grad_weight_added"};
  EXPECT_GE(forms.size(), 1u);
  for (const auto& [implementation, its] : forms) EXPECT_EQ(its, all) << implementation;
  EXPECT_EQ(result.at("rows").size(), 2 * 4 * forms.size());
  EXPECT_EQ(result.at("means").size(), forms.size());
  for (const Json& skipped : result.at("skipped")) {
    EXPECT_EQ(forms.count(skipped.at("name").get<std::string>()), 0u) << skipped;
    EXPECT_NE(skipped.at("why"), "") << skipped;
  }
}

TEST_F(CommandBench, GemmIsATableForPeople) {
  const Finished finished = amxtrain(kGemm);
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_TRUE(has(finished.out, "65 x 96 x 130       grad_weight_added ")) << finished;
  EXPECT_TRUE(has(finished.out, "geometric mean")) << finished;
  EXPECT_TRUE(has(finished.out, "2 threads, random data, 3 rounds in turn; peak (")) << finished;
}

TEST_F(CommandBench, BadShapesAreRefused) {
  for (const char* wrong : {"512", "512,1024", "512,1024,0", "512,1024,-1", "512,1024,1.5",
                            "512,1024,x", "1,2,3,4", "512,1024,1048577", "\"1\",2,3", ""}) {
    const Finished finished = amxtrain({"bench", "gemm", "--shape", wrong});
    EXPECT_EQ(finished.code, 2) << wrong << finished;
    EXPECT_EQ(error_lines(finished.err).size(), 1u) << wrong << finished;
  }
  for (const char* name : {"attention", "optimizer", "head", "norms", "layer"}) {
    for (const Arguments& wrong : {Arguments{"--shape", "1,2"}, Arguments{"--shape", "x"},
                                   Arguments{"--shape", "0"}, Arguments{"--repeat", "0"}}) {
      const Finished finished = amxtrain(Arguments{"bench", name} + wrong);
      EXPECT_EQ(finished.code, 2) << name << finished;
      EXPECT_EQ(error_lines(finished.err).size(), 1u) << name << finished;
    }
  }
}

// A benchmark of one small shape: its rows have the sides, figures that agree with each other, and FLOP and bytes as expected, by form.
struct Counts {
  double flop, bytes;
};
Json expect_kernel_rows(const Finished& finished, const std::vector<int64_t>& shape,
                        const std::map<std::string, Counts>& forms) {
  EXPECT_EQ(finished.code, 0) << finished;
  if (finished.code != 0) return {};
  const Json result = Json::parse(finished.out);
  EXPECT_EQ(result.at("threads"), 2);
  EXPECT_EQ(result.at("repeat"), 3);
  EXPECT_EQ(result.at("data"), "random");
  EXPECT_EQ(result.at("sides").size(), shape.size());
  const bool of_flop = result.at("peak").contains("tflops");
  const char* const unit = of_flop ? "tflops" : "gb_per_second";
  const double peak = result.at("peak").at(unit).get<double>();
  EXPECT_GT(peak, 0);
  std::set<std::string> seen;
  for (const Json& row : result.at("rows")) {
    const std::string form = row.at("form").get<std::string>();
    EXPECT_TRUE(seen.insert(form).second) << row;
    EXPECT_EQ(forms.count(form), 1u) << row;
    if (forms.count(form) == 0) continue;
    for (size_t i = 0; i < shape.size(); ++i) {
      EXPECT_EQ(row.at(result.at("sides")[i].get<std::string>()), shape[i]) << row;
    }
    const Counts& counts = forms.at(form);
    EXPECT_EQ(row.value("flop", 0.0), counts.flop) << row;
    EXPECT_EQ(row.at("bytes"), counts.bytes) << row;
    const double seconds = row.at("seconds").get<double>(),
                 rate = of_flop ? counts.flop / seconds * 1e-12 : counts.bytes / seconds * 1e-9;
    EXPECT_GT(row.at("seconds_least"), 0) << row;
    EXPECT_LE(row.at("seconds_least"), seconds) << row;
    EXPECT_GE(row.at("seconds_most"), seconds) << row;
    EXPECT_NEAR(row.at(unit).get<double>(), rate, 1e-6 * rate) << row;
    EXPECT_NEAR(row.at("ratio_to_peak").get<double>(), rate / peak, 1e-6 * rate / peak) << row;
    // No arithmetic beats the limit, unless a neighbour or a sanitizer slows that; small arrays in a cache beat the memory.
    EXPECT_LT(row.at("ratio_to_peak"), of_flop ? 4 : 100) << row;
    EXPECT_GT(row.at("cpu_ratio_to_peak"), 0) << row;
  }
  EXPECT_EQ(seen.size(), forms.size());
  return result;
}

Arguments kernel(const char* name, const char* shape) {
  return {"bench", name, "--threads", "2", "--repeat", "3", "--json", "--shape", shape};
}

TEST_F(CommandBench, AttentionCountsTheCausalHalf) {
  const double pairs = 100 * 101 / 2, query = 6 * 16, all = (6 + 2 * 2) * 16;
  expect_kernel_rows(amxtrain(kernel("attention", "100,6,2,16")), {100, 6, 2, 16},
                     {{"forward", {2 * 2 * pairs * query, 2 * 100 * (all + query)}},
                      {"backward", {5 * 2 * pairs * query, 2 * 100 * (2 * all + 2 * query)}}});
}

TEST_F(CommandBench, OptimizerCountsEachPass) {
  const Json result = expect_kernel_rows(amxtrain(kernel("optimizer", "1000003")), {1000003},
                                         {{"norm, clip, AdamW", {0, 28.0 * 1000003}},
                                          {"norm", {0, 2.0 * 1000003}},
                                          {"AdamW", {0, 26.0 * 1000003}}});
  EXPECT_EQ(result.at("peak").at("name"), "update in place");
  for (const Json& row : result.at("rows")) {
    EXPECT_NEAR(row.at("mparam_per_second").get<double>() * row.at("seconds").get<double>(),
                1.000003, 1e-6)
        << row;
  }
}

TEST_F(CommandBench, HeadTellsItsMemory) {
  const double T = 64, V = 40'000, D = 48;
  const Json result =
      expect_kernel_rows(amxtrain(kernel("head", "64,40000,48")), {64, 40'000, 48},
                         {{"forward", {2 * T * V * D, 2 * (T * D + V * D)}},
                          {"forward and backward", {6 * T * V * D, 2 * (2 * T * D + 3 * V * D)}}});
  const Json& row = result.at("rows").at(1);
  EXPECT_EQ(row.at("implementation").get<std::string>().find("blocked"), std::string::npos)
      << "48 columns are no multiple of 32";
  EXPECT_EQ(row.at("logits_bytes"), 4 * T * V);
  // Logits of a block in fp32 and their gradient in bf16; the gradient of the input in both.
  EXPECT_GE(row.at("extra_bytes"), 6 * T * 4096 + 6 * T * D);
  EXPECT_LT(row.at("extra_to_logits"), 0.25) << "what the head promises";
  EXPECT_NEAR(row.at("extra_to_logits").get<double>() * 4 * T * V, row.at("extra_bytes"), 1);
}

TEST_F(CommandBench, NormsCountTheirBytes) {
  const double narrow = 100 * 64, wide = 100 * 200;
  const Json result =
      expect_kernel_rows(amxtrain(kernel("norms", "100,64,200,16")), {100, 64, 200, 16},
                         {{"rms_norm forward", {0, 4 * narrow}},
                          {"rms_norm backward", {0, 8 * narrow}},
                          {"rope, in place", {0, 4 * narrow}},
                          {"residual addition", {0, 6 * narrow}},
                          {"fp32 to bf16", {0, 6 * narrow}},
                          {"swiglu forward", {0, 6 * wide}},
                          {"swiglu backward", {0, 12 * wide}}});
  EXPECT_EQ(result.at("peak").at("name"), "triad");
}

TEST_F(CommandBench, LayerCountsTheModel) {
  const double T = 65, D = 96, I = 160, Q = 6 * 16, KV = 2 * 16,
               weights = D * (Q + 2 * KV) + D * Q + 3 * D * I,
               forward = 2 * T * weights + 4 * Q * T * (T + 1) / 2;
  const Json result = expect_kernel_rows(
      amxtrain(kernel("layer", "65,96,160,6,2,16")), {65, 96, 160, 6, 2, 16},
      {{"forward", {forward, 2 * weights + 2 * 2 * T * D}},
       {"forward and backward", {3 * forward, 3 * 2 * weights + 2 * 2 * 2 * T * D}}});
  for (const Json& row : result.at("rows")) {
    EXPECT_TRUE(has(row.at("implementation").get<std::string>(), "blocked"))
        << "as the step has it";
  }
}

TEST_F(CommandBench, KernelsAreTablesForPeople) {
  const Finished head = amxtrain({"bench", "head", "--threads", "2", "--shape", "32,5000,64"});
  ASSERT_EQ(head.code, 0) << head;
  EXPECT_TRUE(has(head.out, "T x vocab x hidden")) << head;
  EXPECT_TRUE(has(head.out, "32 x 5000 x 64      forward and backward ")) << head;
  EXPECT_TRUE(has(head.out, "of the logits in fp32")) << head;
  const Finished norms = amxtrain({"bench", "norms", "--threads", "2", "--shape", "32,64,64,32"});
  ASSERT_EQ(norms.code, 0) << norms;
  EXPECT_TRUE(has(norms.out, "peak (triad) ")) << norms;
  EXPECT_TRUE(has(norms.out, " GB/s ")) << norms;
}

}  // namespace
}  // namespace amxt::test
