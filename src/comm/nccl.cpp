#include "comm/nccl.h"

#include <fmt/format.h>

#include <memory>

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
  RequiredFunctions required(&library->file);
  // The version first: an old library is best told by its number, not by what it lacks.
  required.load("ncclGetVersion", &table.GetVersion);
  if (required.check() && table.GetVersion(&table.version_code) == kNcclSuccess &&
      table.version_code < kOldest) {
    return Error(Code::kUnsupported,
                 fmt::format("{} is NCCL {}, and {} or newer is needed", quote(table.path),
                             table.version(), version_text(kOldest)));
  }
  required.load("ncclGetUniqueId", &table.GetUniqueId);
  required.load("ncclCommInitRankConfig", &table.CommInitRankConfig);
  required.load("ncclCommGetAsyncError", &table.CommGetAsyncError);
  required.load("ncclCommFinalize", &table.CommFinalize);
  required.load("ncclCommDestroy", &table.CommDestroy);
  required.load("ncclCommAbort", &table.CommAbort);
  required.load("ncclGetErrorString", &table.GetErrorString);
  required.load("ncclGetLastError", &table.GetLastError);
  required.load("ncclGroupStart", &table.GroupStart);
  required.load("ncclGroupEnd", &table.GroupEnd);
  required.load("ncclAllReduce", &table.AllReduce);
  required.load("ncclBroadcast", &table.Broadcast);
  required.load("ncclReduce", &table.Reduce);
  required.load("ncclAllGather", &table.AllGather);
  required.load("ncclReduceScatter", &table.ReduceScatter);
  required.load("ncclSend", &table.Send);
  required.load("ncclRecv", &table.Recv);
  AMXT_TRY(required.check());
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
  AMXT_ASSIGN(const Library* const library, load_once(name, load));
  return &library->table;
}

std::string nccl_library_name() { return library_name("AMXTRAIN_NCCL_LIBRARY", "libnccl.so.2"); }

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
