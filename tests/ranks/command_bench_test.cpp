// amxtrain bench collectives: rows for people and for programs, over each transport.
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

}  // namespace
}  // namespace amxt::test
