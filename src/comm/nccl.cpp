#include "comm/nccl.h"

#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "base/dynamic_library.h"
#include "base/text.h"

namespace amxt::comm {
namespace {

constexpr int kOldest = 21400;

struct Library {
  DynamicLibrary file;
  Nccl table;
};

std::string version_text(int code) {
  // Until 2.8 the minor number had two digits less.
  if (code < 10000) return fmt::format("{}.{}.{}", code / 1000, code / 100 % 10, code % 100);
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

Result<std::unique_ptr<Library>> load(const std::string& name) {
  auto library = std::make_unique<Library>();
  AMXT_ASSIGN(library->file, DynamicLibrary::open(name));
  Nccl& table = library->table;
  table.path = library->file.path();
  const char* missing = nullptr;
  const auto required = [&](const char* symbol, auto* function) {
    if (!library->file.load(symbol, function) && missing == nullptr) missing = symbol;
  };
  // The version first: an old library is best told by its number, not by what it lacks.
  required("ncclGetVersion", &table.GetVersion);
  if (missing == nullptr && table.GetVersion(&table.version_code) == kNcclSuccess &&
      table.version_code < kOldest) {
    return Error(Code::kUnsupported,
                 fmt::format("{} is NCCL {}, and {} or newer is needed", quote(table.path),
                             table.version(), version_text(kOldest)));
  }
  required("ncclGetUniqueId", &table.GetUniqueId);
  required("ncclCommInitRankConfig", &table.CommInitRankConfig);
  required("ncclCommGetAsyncError", &table.CommGetAsyncError);
  required("ncclCommFinalize", &table.CommFinalize);
  required("ncclCommDestroy", &table.CommDestroy);
  required("ncclCommAbort", &table.CommAbort);
  required("ncclGetErrorString", &table.GetErrorString);
  required("ncclGetLastError", &table.GetLastError);
  required("ncclGroupStart", &table.GroupStart);
  required("ncclGroupEnd", &table.GroupEnd);
  required("ncclAllReduce", &table.AllReduce);
  required("ncclBroadcast", &table.Broadcast);
  required("ncclReduce", &table.Reduce);
  required("ncclAllGather", &table.AllGather);
  required("ncclReduceScatter", &table.ReduceScatter);
  required("ncclSend", &table.Send);
  required("ncclRecv", &table.Recv);
  if (missing != nullptr) {
    return Error(Code::kUnsupported,
                 fmt::format("{} has no function {}", quote(table.path), missing));
  }
  return library;
}

}  // namespace

std::string Nccl::version() const { return version_text(version_code); }

std::string Nccl::text(NcclResult result, NcclComm comm) const {
  const char* words = GetErrorString(result);
  const char* last = GetLastError(comm);
  return fmt::format("{} ({}){}{}", words != nullptr ? words : "unknown result", result,
                     last != nullptr && *last != '\0' ? ": " : "", last != nullptr ? last : "");
}

Result<const Nccl*> open_nccl(const std::string& name) {
  static std::mutex mutex;
  // Never closed: NCCL has threads of its own, and a host may use it too.
  static auto* const opened = new std::map<std::string, std::unique_ptr<Library>>();
  const std::lock_guard lock(mutex);
  std::unique_ptr<Library>& slot = (*opened)[name];
  if (!slot) {
    AMXT_ASSIGN(slot, load(name));
  }
  return &slot->table;
}

std::string nccl_library_name() {
  const char* wished = std::getenv("AMXTRAIN_NCCL_LIBRARY");
  return wished != nullptr && *wished != '\0' ? wished : "libnccl.so.2";
}

int nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kU8:
      return 1;
    case DType::kI32:
      return 2;
    case DType::kI64:
      return 4;
    case DType::kF16:
      return 6;
    case DType::kF32:
      return 7;
    case DType::kBF16:
      return 9;
    default:
      return -1;
  }
}

int nccl_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::kMax:
      return 2;
    case ReduceOp::kMin:
      return 3;
    case ReduceOp::kAvg:
      return 4;
    default:
      return 0;
  }
}

}  // namespace amxt::comm
