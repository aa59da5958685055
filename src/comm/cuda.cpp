#include "comm/cuda.h"

#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "base/dynamic_library.h"
#include "base/text.h"

namespace amxt::comm {
namespace {

struct Library {
  DynamicLibrary file;
  Cuda table;
};

Result<std::unique_ptr<Library>> load(const std::string& name) {
  auto library = std::make_unique<Library>();
  AMXT_ASSIGN(library->file, DynamicLibrary::open(name));
  Cuda& table = library->table;
  table.path = library->file.path();
  const char* missing = nullptr;
  const auto required = [&](const char* symbol, auto* function) {
    if (!library->file.load(symbol, function) && missing == nullptr) missing = symbol;
  };
  required("cuInit", &table.Init);
  required("cuDeviceGet", &table.DeviceGet);
  required("cuDevicePrimaryCtxRetain", &table.DevicePrimaryCtxRetain);
  required("cuStreamGetCtx", &table.StreamGetCtx);
  required("cuCtxPushCurrent_v2", &table.CtxPushCurrent);
  required("cuCtxPopCurrent_v2", &table.CtxPopCurrent);
  required("cuStreamQuery", &table.StreamQuery);
  required("cuGetErrorString", &table.GetErrorString);
  if (missing != nullptr) {
    return Error(Code::kUnsupported,
                 fmt::format("{} has no function {}", quote(table.path), missing));
  }
  if (const int result = table.Init(0); result != Cuda::kSuccess) {
    return Error(Code::kUnsupported,
                 fmt::format("{}: cuInit: {}", quote(table.path), table.text(result)));
  }
  return library;
}

}  // namespace

std::string Cuda::text(int result) const {
  const char* words = nullptr;
  if (GetErrorString(result, &words) != kSuccess || words == nullptr) words = "unknown result";
  return fmt::format("{} ({})", words, result);
}

Result<CudaContext> Cuda::context_of(CudaStream stream, int device) const {
  CudaContext context = nullptr;
  if (stream != nullptr) {
    const int result = StreamGetCtx(stream, &context);
    if (result == kSuccess) return context;
    return Error(Code::kInvalidArgument,
                 fmt::format("the stream has no CUDA context: {}", text(result)));
  }
  // Kept for good: it is the device's, which the process uses anyway.
  int handle = 0;
  int result = DeviceGet(&handle, device);
  if (result == kSuccess) result = DevicePrimaryCtxRetain(&context, handle);
  if (result == kSuccess) return context;
  return Error(Code::kInvalidArgument, fmt::format("CUDA device {}: {}", device, text(result)));
}

Result<const Cuda*> open_cuda(const std::string& name) {
  static std::mutex mutex;
  static auto* const opened = new std::map<std::string, std::unique_ptr<Library>>();
  const std::lock_guard lock(mutex);
  std::unique_ptr<Library>& slot = (*opened)[name];
  if (!slot) {
    AMXT_ASSIGN(slot, load(name));
  }
  return &slot->table;
}

std::string cuda_library_name() {
  const char* wished = std::getenv("AMXTRAIN_CUDA_LIBRARY");
  return wished != nullptr && *wished != '\0' ? wished : "libcuda.so.1";
}

}  // namespace amxt::comm
