#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "checkpoint/agreement.h"
#include "train/ds_config.h"
#include "train/trainer_core.h"

namespace amxt::train {
namespace {

// CPUs of this rank's threads: its share of the affinity mask, in order; the whole mask when a launcher has cut it for this rank already.
std::vector<int> choose_cpus(const comm::Group& group, int threads) {
  const std::vector<int> all = cpu_limits().affinity;
  const auto have = static_cast<int>(all.size());
  // Cut for this rank already: by our launcher, or so small that there is nothing to share out.
  if (have >= threads && (cpus_are_own() || have == threads)) {
    return {all.begin(), all.begin() + threads};
  }
  const int first = group.local_rank() * threads;
  if (threads * group.local_size() <= have) {
    return {all.begin() + first, all.begin() + first + threads};
  }
  return {};
}

// One line for each rank, so that a mixed job is seen before anything is loaded.
Status agree_on(const TrainerParts& parts, const CallLimits& limits) {
  Json mine;
  mine["model"] = parts.setup.model->config().text;
  mine["options"] = parse_json(options_json(parts.options)).value();
  mine["isa"] = isa_name(parts.isa->chosen);
  AMXT_ASSIGN(
      const std::vector<std::string> all,
      checkpoint::agree(*parts.setup.group, Result<std::string>(mine.dump()), limits.deadline));
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    AMXT_ASSIGN(const Json first, parse_json(all[0]));
    AMXT_ASSIGN(const Json other, parse_json(all[rank]));
    const auto differ = [&](const std::string& name, const Json& a, const Json& b) {
      return Error(Code::kMismatch,
                   fmt::format("ranks disagree on {}: rank 0 has {}, rank {} has {}", name,
                               a.dump(), rank, b.dump()))
          .with_rank(static_cast<int32_t>(rank));
    };
    if (first["model"] != other["model"]) {
      return Error(Code::kMismatch, fmt::format("ranks 0 and {} see different config.json in {}",
                                                rank, quote(parts.setup.model->path())))
          .with_rank(static_cast<int32_t>(rank));
    }
    if (first["isa"] != other["isa"])
      return differ("the instruction set", first["isa"], other["isa"]);
    for (const auto& [name, value] : first["options"].items()) {
      if (other["options"].contains(name) && other["options"][name] != value)
        return differ(name, value, other["options"][name]);
    }
    return Error(Code::kMismatch, fmt::format("ranks 0 and {} disagree on their options", rank))
        .with_rank(static_cast<int32_t>(rank));
  }
  return {};
}

Result<TrainerParts> settle(TrainerSetup setup) {
  TrainerParts parts;
  std::optional<DsConfig> ds;
  if (setup.ds_config) {
    AMXT_ASSIGN(ds, parse_ds_config(*setup.ds_config, setup.ds_config_name));
    for (const DsNote& note : ds->notes) parts.notes.push_back(note.text);
  }
  AMXT_ASSIGN(parts.options,
              resolve(setup.given, ds ? &*ds : nullptr, setup.group->size(), &parts.notes));
  AMXT_ASSIGN(parts.isa, cpu_isa());
  parts.threads = setup.threads > 0
                      ? setup.threads
                      : default_threads(setup.group->local_size(), &parts.threads_reason);
  if (setup.threads > 0) parts.threads_reason = "given";
  if (setup.pin.value_or(true)) parts.cpus = choose_cpus(*setup.group, parts.threads);
  AMXT_ASSIGN(parts.plan,
              make_plan(setup.model->config(), parts.options, setup.group->nodes(), parts.threads));
  parts.setup = std::move(setup);
  return parts;
}

}  // namespace

Result<std::unique_ptr<Trainer>> Trainer::create(TrainerSetup setup, const CallLimits& limits) {
  const std::shared_ptr<comm::Group> group = setup.group;
  Result<TrainerParts> parts = settle(std::move(setup));
  // A rank that can't go on tells the others, who would wait for it.
  AMXT_TRY(
      checkpoint::agree(*group, parts ? Status() : Status(Error(parts.error())), limits.deadline));
  AMXT_TRY(agree_on(*parts, limits));
  AMXT_ASSIGN(parts->plan, agree_on_plan(parts->plan, parts->setup.model->config(), parts->options,
                                         *group, limits.deadline));
  AMXT_TRY(checkpoint::agree(*group, fits(parts->plan), limits.deadline));
  if (parts->setup.group->rank() == 0) {  // all ranks have the same file
    for (const std::string& note : parts->notes) parts->setup.log->info(note);
  }
  parts->setup.log->info(
      fmt::format("rank {} of {}: {} thread{} ({}), cores {}, {}", group->rank(), group->size(),
                  parts->threads, parts->threads == 1 ? "" : "s", parts->threads_reason,
                  parts->cpus.empty() ? std::string("unpinned")
                                      : fmt::format("{}", fmt::join(parts->cpus, ",")),
                  isa_name(parts->isa->chosen)));
  if (parts->options.compute_type == ComputeType::kBFloat16)
    return make_bfloat16_trainer(*std::move(parts), limits);
  return make_float32_trainer(*std::move(parts), limits);
}

}  // namespace amxt::train
