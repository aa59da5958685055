// What the rank processes of tests play: an executable of tests/ranks, started as `<test> rank <what>`, is one rank and reports by lines
// on its standard output.
#pragma once

#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "base/log.h"
#include "comm/group.h"

namespace amxt::comm::test {

inline void say(const std::string& line) {
  const std::string text = line + "\n";
  if (write(STDOUT_FILENO, text.data(), text.size()) < 0) _exit(3);
}

[[noreturn]] inline void report(const Error& error) {
  say(fmt::format("error {} {} {}", static_cast<int>(error.code()), error.rank(), error.message()));
  _exit(1);
}

inline void report_unless(const Status& status) {
  if (!status) report(status.error());
}

[[noreturn]] inline void sleep_for_ever() {
  for (;;) pause();
}

inline int number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atoi(text) : otherwise;
}

inline std::unique_ptr<Group> join(const LaunchInfo& launch, int timeout_ms) {
  GroupOptions options;
  options.peer_timeout_ns = number("PEER_MS", 10'000) * int64_t{1'000'000};
  if (const char* configuration = std::getenv("CONFIGURATION"))
    options.configuration = configuration;
  static Log log;
  log.set([](LogLevel, const char* line) { say(std::string("log ") + line); }, LogLevel::kDebug);
  auto group =
      Group::create(launch, options, &log, Deadline::after(timeout_ms * int64_t{1'000'000}));
  if (!group) report(group.error());
  say(fmt::format("joined {} of {} on node {} of {}", (*group)->local_rank(),
                  (*group)->local_size(), (*group)->node(), (*group)->node_count()));
  return std::move(*group);
}

// Leaves a child that has all sockets of this process open.
inline void leave_a_child() {
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, 0);
    alarm(60);
    sleep_for_ever();
  }
  say(fmt::format("child {}", child));
}

inline int play(const std::string& what) {
  auto launch = find_launch({}, process_environment());
  if (!launch) report(launch.error());
  if (const char* agent = std::getenv("AGENT")) launch->agent_store = std::string(agent) == "1";
  const bool victim = launch->rank == number("VICTIM", -1);
  const int64_t timeout_ns = number("WAIT_MS", 60'000) * int64_t{1'000'000};
  auto group = join(*launch, number("JOIN_MS", 30'000));
  const auto wait = [&] { return Deadline::after(timeout_ns); };

  if (what == "leave") {
    report_unless(group->finalize(wait()));
  } else if (what == "barrier") {
    if (victim) sleep_for_ever();
    report_unless(group->barrier(wait()));
  } else if (what == "barriers") {
    for (;;) {
      report_unless(group->barrier(wait()));
      say("passed");
    }
  } else if (what == "share") {
    if (victim) sleep_for_ever();
    auto memory = group->share("weights", 1 << 20, wait());
    if (!memory) report(memory.error());
    report_unless(group->barrier(wait()));  // other nodes have their own memory
  } else if (what == "exchange") {
    if (victim) sleep_for_ever();
    auto all = group->exchange("payload", wait());
    if (!all) report(all.error());
  } else if (what == "exchanges") {
    for (int round = 0;; ++round) {
      const std::string own = fmt::format("{}:{}", group->rank(), round);
      auto all = group->exchange(own, wait());
      if (!all) report(all.error());
      for (int other = 0; other < group->size(); ++other) {
        if ((*all)[static_cast<size_t>(other)] != fmt::format("{}:{}", other, round)) say("wrong");
      }
      auto memory = group->share("part", 4096, wait());
      if (!memory) report(memory.error());
      report_unless(group->barrier(wait()));
      if (round % 10 == 0) say("passed");
    }
  } else if (what == "barrier, late rank exchanges") {
    report_unless(group->barrier(wait()));  // who hears of the mistake has joined
    if (victim) {
      auto all = group->exchange("payload", wait());
      report(all.error());
    }
    report_unless(group->barrier(wait()));
  } else if (what == "fork") {
    if (victim) {
      leave_a_child();
      sleep_for_ever();
    }
    report_unless(group->barrier(wait()));
  } else if (what == "abort") {
    report_unless(group->barrier(wait()));
    if (victim) {
      group->abort("the disk is full");
      _exit(1);
    }
    report_unless(group->barrier(wait()));
  } else if (what == "again") {
    for (int i = 0; i < 3; ++i) {
      report_unless(group->barrier(wait()));
      report_unless(group->finalize(wait()));
      group.reset();
      group = join(*launch, 30'000);
    }
    report_unless(group->finalize(wait()));
  }
  say("done");
  return 0;
}

}  // namespace amxt::comm::test
