#include "kernels/onednn.h"

#include <fmt/format.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <utility>

#include "base/dynamic_library.h"
#include "base/library_folder.h"
#include "base/text.h"

namespace amxt::kernels {

#if AMXT_HAVE_DNNL
namespace {

std::string library_path() {
  return library_name("AMXTRAIN_DNNL_LIBRARY", library_folder() + "/" + AMXT_DNNL_FILE);
}

struct Library {
  DynamicLibrary file;
  OnednnInfo info;
  Onednn table;
  std::mutex mutex;  // of what follows
  bool isa_fixed = false;
  Isa isa = Isa::kAvx2;
};

void open_library(Library* library) {
  OnednnInfo& info = library->info;
  Onednn& table = library->table;
  info.path = library_path();
  auto opened = DynamicLibrary::open(info.path, DynamicLibrary::Binding::kOwn);
  if (!opened) {
    info.reason =
        fmt::format("{} could not be opened: {}", quote(info.path), opened.error().message());
    return;
  }
  library->file = std::move(opened).value();
  RequiredFunctions required(&library->file);
#define AMXT_DNNL_LOAD(name) required.load("dnnl_" #name, &table.name);
  AMXT_DNNL_FUNCTIONS(AMXT_DNNL_LOAD)
#undef AMXT_DNNL_LOAD
  if (Status whole = required.check(); !whole) {
    info.reason = whole.error().message();
    return;
  }
  // Absent from a build of oneDNN without OpenMP: then it has to be a sequential one, whose
  // products run in the caller.
  library->file.load("omp_set_num_threads", &table.omp_set_num_threads);
  if (!library->file.load("omp_get_max_threads", &table.omp_get_max_threads))
    table.omp_set_num_threads = nullptr;
  const dnnl_version_t* version = table.version();
  info.version = fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
  if (version->major != DNNL_VERSION_MAJOR) {
    info.reason = fmt::format("{} is oneDNN {}, and {}.x is needed", quote(info.path), info.version,
                              DNNL_VERSION_MAJOR);
    return;
  }
  if (table.omp_set_num_threads == nullptr && version->cpu_runtime != DNNL_RUNTIME_SEQ) {
    info.reason =
        fmt::format("{} has neither the OpenMP nor the sequential runtime", quote(info.path));
    return;
  }
  info.loaded = true;
}

Library& library() {
  // Never closed: the OpenMP runtime behind it can't be unloaded.
  static Library* const opened = [] {
    auto fresh = std::make_unique<Library>();
    open_library(fresh.get());
    return fresh.release();
  }();
  return *opened;
}

Error unsupported(std::string reason) { return Error(Code::kUnsupported, std::move(reason)); }

// Caps oneDNN before its first primitive and makes the engine.
Status fix_isa(Library* opened, Isa isa) {
  Onednn& table = opened->table;
  const bool capped = std::getenv("ONEDNN_MAX_CPU_ISA") != nullptr;
  // Without a cap, AMX includes what newer CPUs add to it. A cap from outside is left: one set here would lift it.
  if (isa != Isa::kAmx && !capped) table.set_max_cpu_isa(dnnl_cpu_isa_avx512_core_bf16);
  const int amx = dnnl_cpu_isa_avx512_core_amx,
            needed = isa == Isa::kAmx ? amx : dnnl_cpu_isa_avx512_core_bf16;
  const int effective = table.get_effective_cpu_isa();
  const bool too_wide = isa != Isa::kAmx && (effective & amx) == amx;
  if ((effective & needed) != needed || too_wide) {
    return unsupported(fmt::format("oneDNN {} uses instruction set {:#x} and {:#x} is needed{}",
                                   opened->info.version, effective, needed,
                                   capped ? " (ONEDNN_MAX_CPU_ISA is set)" : ""));
  }
  if (const dnnl_status_t status = table.engine_create(&table.engine, dnnl_cpu, 0);
      status != dnnl_success) {
    return unsupported(fmt::format("oneDNN {}: no CPU engine: {}", opened->info.version,
                                   onednn_status_name(status)));
  }
  return {};
}

}  // namespace

Result<const Onednn*> onednn(Isa isa) {
  if (isa < Isa::kAvx512Bf16) {
    return unsupported(fmt::format("the instruction set is {}", isa_name(isa)));
  }
  Library& opened = library();
  if (!opened.info.loaded) return unsupported(opened.info.reason);
  const std::lock_guard lock(opened.mutex);
  if (!opened.isa_fixed) {
    const SingleThreaded alone(opened.table);
    AMXT_TRY(fix_isa(&opened, isa));
    opened.isa_fixed = true;
    opened.isa = isa;
  }
  if (opened.isa != isa) {
    return unsupported(fmt::format("oneDNN was first used with {} in this process, and {} is asked",
                                   isa_name(opened.isa), isa_name(isa)));
  }
  return &opened.table;
}

const char* onednn_status_name(dnnl_status_t status) {
  switch (status) {
    case dnnl_success:
      return "success";
    case dnnl_out_of_memory:
      return "out of memory";
    case dnnl_invalid_arguments:
      return "invalid arguments";
    case dnnl_unimplemented:
      return "unimplemented";
    case dnnl_last_impl_reached:
      return "last implementation reached";
    case dnnl_runtime_error:
      return "runtime error";
    case dnnl_not_required:
      return "not required";
    default:
      return "unknown status";
  }
}

OnednnInfo onednn_info() { return library().info; }

#else

OnednnInfo onednn_info() {
  OnednnInfo info;
  info.reason = "amxtrain was built without oneDNN";
  return info;
}

#endif

}  // namespace amxt::kernels
