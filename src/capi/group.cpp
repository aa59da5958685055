// Section 6 of the header: the group.
#include <fmt/format.h>

#include "base/cpu.h"
#include "base/json.h"
#include "capi/handles.h"
#include "comm/launch.h"

using namespace amxt;
using namespace amxt::capi;

namespace {

constexpr int64_t kConnectTimeoutNs = AMXT_SECONDS(300);
// A rank that is only not scheduled for a moment must not be lost.
constexpr int64_t kLeastHeartbeatNs = 100'000'000;

Status check_field(int32_t value, int32_t least, int32_t most, std::string_view name) {
  if (value == AMXT_UNSET_I32 || (value >= least && value <= most)) return {};
  return Error(Code::kInvalidArgument,
               fmt::format("amxt_group_options.{} is {}, not {} to {}", name, value, least, most));
}

Result<comm::GroupOptions> convert(const amxt_group_options& options) {
  AMXT_TRY(check_field(options.world_size, 1, INT32_MAX, "world_size"));
  AMXT_TRY(check_field(options.rank, 0, INT32_MAX, "rank"));
  AMXT_TRY(check_field(options.local_rank, 0, INT32_MAX, "local_rank"));
  AMXT_TRY(check_field(options.local_size, 1, INT32_MAX, "local_size"));
  AMXT_TRY(check_field(options.port, 1, 65535, "port"));
  AMXT_TRY(given_count(options.heartbeat_timeout_ns, kLeastHeartbeatNs,
                       "amxt_group_options.heartbeat_timeout_ns"));
  AMXT_ASSIGN(const std::optional<bool> unauthenticated,
              given_flag(options.allow_unauthenticated_data,
                         "amxt_group_options.allow_unauthenticated_data"));
  comm::GroupOptions result;
  result.allow_unauthenticated_data = unauthenticated.value_or(false);
  result.rank = given(options.rank).value_or(-1);
  result.world_size = given(options.world_size).value_or(-1);
  result.local_rank = given(options.local_rank).value_or(-1);
  result.local_world_size = given(options.local_size).value_or(-1);
  result.master_address = text_or(options.address, "");
  result.master_port = given(options.port).value_or(-1);
  result.peer_timeout_ns = given(options.heartbeat_timeout_ns).value_or(result.peer_timeout_ns);
  return result;
}

Status create(amxt_runtime* runtime, const amxt_group_options* given_options, amxt_group** out,
              const comm::Environment& environment) {
  AMXT_TRY(usable(runtime, "runtime"));
  AMXT_TRY(require(out, "group"));
  AMXT_ASSIGN(const amxt_group_options options,
              read_struct<amxt_group_options>(given_options, AMXT_GROUP_OPTIONS_INIT,
                                              "amxt_group_options"));
  AMXT_ASSIGN(comm::GroupOptions converted, convert(options));
  AMXT_ASSIGN(const comm::LaunchInfo launch, comm::find_launch(converted, environment));
  auto group = std::make_unique<amxt_group>();
  group->runtime = runtime->state;
  group->threads_reason = "given";
  group->threads = runtime->state->threads
                       ? *runtime->state->threads
                       : default_threads(launch.local_world_size, &group->threads_reason);
  converted.threads = group->threads;
  if (const auto warning = comm::crowding_warning(launch, physical_cores())) {
    runtime->state->log->warning(*warning);
  }
  const Deadline deadline =
      Deadline::after(given(options.connect_timeout_ns).value_or(kConnectTimeoutNs));
  AMXT_ASSIGN(group->group,
              comm::Group::create(launch, converted, runtime->state->log.get(), deadline));
  group->rank = group->group->rank();
  group->size = group->group->size();
  *out = group.release();
  return {};
}

Json collectives_done(const comm::Collectives* collectives) {
  if (collectives == nullptr) return {};
  Json calls = Json::array();
  for (const comm::Collectives::Counter& counter : collectives->counters()) {
    calls.push_back({{"name", counter.name},
                     {"calls", counter.calls},
                     {"bytes", counter.bytes},
                     {"seconds", static_cast<double>(counter.ns) / 1e9}});
  }
  return {{"transport", collectives->transport()}, {"calls", calls}};
}

// Where each rank is; addresses only where there are several nodes.
Json places(const comm::Nodes& nodes) {
  Json ranks = Json::array();
  for (const comm::Nodes::Rank& rank : nodes.ranks) {
    ranks.push_back({{"node", rank.node},
                     {"local_rank", rank.local_rank},
                     {"host", rank.host},
                     {"address", rank.address.empty() ? Json() : Json(rank.address)}});
  }
  return ranks;
}

Status info(const amxt_group* group, char** json) {
  AMXT_TRY(usable(group, "group"));
  AMXT_TRY(require(json, "json"));
  const comm::LaunchInfo& launch = group->group->launch();
  const bool alone = launch.world_size == 1;
  Json object;
  object["rank"] = group->rank;
  object["world_size"] = group->size;
  object["local_rank"] = group->group->local_rank();
  object["local_size"] = group->group->local_size();
  object["nodes"] = group->group->node_count();
  object["node"] = group->group->node();
  object["ranks"] = places(group->group->nodes());
  object["source"] = launch.source;
  object["address"] = alone ? Json() : Json(launch.master_address);
  object["port"] = alone ? Json() : Json(launch.master_port);
  const bool several = group->group->node_count() > 1;
  object["transport"] = alone ? "none" : several ? "shared memory and TCP" : "shared memory";
  object["threads"] = group->threads;
  object["threads_reason"] = group->threads_reason;
  object["cpus"] = cpu_limits().affinity;
  {
    const std::lock_guard lock(group->collectives_mutex);
    object["collectives"] = collectives_done(group->collectives.get());
    object["device_collectives"] = collectives_done(group->device_collectives.get());
  }
  AMXT_ASSIGN(*json, copy_text(object.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return {};
}

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

Json describe(const comm::LauncherSet& set) {
  Json variables = Json::object();
  for (const comm::Variable& variable : set.variables()) {
    variables[variable.name] = variable.value ? Json(*variable.value) : Json();
  }
  return {{"launcher", set.launcher->name},
          {"complete", set.is_complete()},
          {"refusal", text_or_null(set.refusal)},
          {"variables", variables}};
}

Json describe(const comm::LaunchInfo& launch) {
  const bool alone = launch.world_size == 1;
  return {{"rank", launch.rank},
          {"world_size", launch.world_size},
          {"local_rank", launch.local_rank},
          {"local_size", launch.local_world_size},
          {"source", launch.source},
          {"launcher", text_or_null(launch.launcher)},
          {"reason", launch.reason},
          {"address", alone ? Json() : Json(launch.master_address)},
          {"port", alone ? Json() : Json(launch.master_port)},
          {"agent_store", launch.agent_store},
          {"run_id", text_or_null(launch.run_id)},
          {"node_hint", text_or_null(launch.node_hint)},
          {"notes", launch.notes}};
}

Status launch_info(const amxt_group_options* given_options, char** json) {
  AMXT_TRY(require(json, "json"));
  AMXT_ASSIGN(const amxt_group_options options,
              read_struct<amxt_group_options>(given_options, AMXT_GROUP_OPTIONS_INIT,
                                              "amxt_group_options"));
  AMXT_ASSIGN(const comm::GroupOptions converted, convert(options));
  const comm::Environment environment = comm::process_environment();
  Json object;
  const auto launch = comm::find_launch(converted, environment);
  object["launch"] = launch ? describe(*launch) : Json();
  if (!launch) object["error"] = launch.error().message();
  object["found"] = Json::array();
  for (const comm::LauncherSet& set : comm::launcher_sets(environment)) {
    object["found"].push_back(describe(set));
  }
  AMXT_ASSIGN(*json, copy_text(object.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return {};
}

int32_t number(const amxt_group* group, int (comm::Group::*get)() const) {
  return group == nullptr ? -1 : (group->group.get()->*get)();
}

}  // namespace

extern "C" {

amxt_status amxt_group_create(amxt_runtime* runtime, const amxt_group_options* options,
                              amxt_group** group, amxt_error* err) {
  const comm::Environment own = [](const std::string& name) {
    return name.starts_with("AMXTRAIN_") ? comm::process_environment()(name) : std::nullopt;
  };
  return guarded(err, [&] { return create(runtime, options, group, own); });
}

amxt_status amxt_group_create_from_env(amxt_runtime* runtime, const amxt_group_options* options,
                                       amxt_group** group, amxt_error* err) {
  return guarded(err, [&] { return create(runtime, options, group, comm::process_environment()); });
}

amxt_status amxt_launch_info(const amxt_group_options* options, char** json, amxt_error* err) {
  return guarded(err, [&] { return launch_info(options, json); });
}

int32_t amxt_group_rank(const amxt_group* group) { return group == nullptr ? -1 : group->rank; }

int32_t amxt_group_size(const amxt_group* group) { return group == nullptr ? -1 : group->size; }

int32_t amxt_group_local_rank(const amxt_group* group) {
  return number(group, &comm::Group::local_rank);
}

int32_t amxt_group_local_size(const amxt_group* group) {
  return number(group, &comm::Group::local_size);
}

int32_t amxt_group_node_count(const amxt_group* group) {
  if (group == nullptr) return -1;
  return group->group->node_count();
}

amxt_status amxt_group_info(const amxt_group* group, char** json, amxt_error* err) {
  return guarded(err, [&] { return info(group, json); });
}

amxt_status amxt_group_barrier(amxt_group* group, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(group, "group"));
    if (group->finalized) return Error(Code::kInvalidState, "the group is finalized");
    if (group->is_part) return meet_in_part(group, comm::CollectiveCall::barrier(), timeout_ns);
    AMXT_ASSIGN(const auto alike, AlikeCall::begin(group->group, comm::CollectiveCall::barrier()));
    const Call call(*group->runtime, timeout_ns);
    return during("barrier", group->group->barrier({call.deadline(), call.cancel_flag()}));
  });
}

amxt_status amxt_group_finalize(amxt_group* group, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(group, "group"));
    if (group->finalized) return {};
    if (group->is_part) {
      AMXT_TRY(leave_devices(group, timeout_ns));
      AMXT_TRY(meet_in_part(group, {"finalize"}, timeout_ns));
      group->finalized = true;
      return {};
    }
    AMXT_ASSIGN(const auto alike, AlikeCall::begin(group->group, comm::CollectiveCall{"finalize"}));
    AMXT_TRY(leave_devices(group, timeout_ns));
    const Call call(*group->runtime, timeout_ns);
    AMXT_TRY(during("finalize", group->group->finalize({call.deadline(), call.cancel_flag()})));
    group->finalized = true;
    return {};
  });
}

amxt_status amxt_group_abort(amxt_group* group, const char* reason, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(usable(group, "group"));
    group->group->abort(text_or(reason, "no reason given"));
    return {};
  });
}

void amxt_group_destroy(amxt_group* group) { delete group; }

}  // extern "C"
