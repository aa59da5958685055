#include "comm/cuda.h"

#include <fmt/format.h>

#include <memory>

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
  RequiredFunctions required(&library->file);
  required.load("cuInit", &table.Init);
  required.load("cuDeviceGet", &table.DeviceGet);
  required.load("cuDevicePrimaryCtxRetain", &table.DevicePrimaryCtxRetain);
  required.load("cuStreamGetCtx", &table.StreamGetCtx);
  required.load("cuCtxPushCurrent_v2", &table.CtxPushCurrent);
  required.load("cuCtxPopCurrent_v2", &table.CtxPopCurrent);
  required.load("cuStreamQuery", &table.StreamQuery);
  required.load("cuGetErrorString", &table.GetErrorString);
  AMXT_TRY(required.check());
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
  AMXT_ASSIGN(const Library* const library, load_once(name, load));
  return &library->table;
}

std::string cuda_library_name() { return library_name("AMXTRAIN_CUDA_LIBRARY", "libcuda.so.1"); }

}  // namespace amxt::comm
