// CUDA: the few functions of its driver that NCCL's calls need around them, opened at run time: which context a stream belongs to, and
// whether a stream is through with its work.
//
// Signatures and numbers: CUDA driver API reference (docs.nvidia.com/cuda/cuda-driver-api).
#pragma once

#include <string>

#include "base/result.h"

namespace amxt::comm {

using CudaStream = void*;   // CUstream, which is cudaStream_t; null is the default stream
using CudaContext = void*;  // CUcontext

struct Cuda {
  std::string path;

  int (*Init)(unsigned flags);
  int (*DeviceGet)(int* device, int ordinal);
  int (*DevicePrimaryCtxRetain)(CudaContext*, int device);
  int (*StreamGetCtx)(CudaStream, CudaContext*);
  int (*CtxPushCurrent)(CudaContext);
  int (*CtxPopCurrent)(CudaContext*);
  int (*StreamQuery)(CudaStream);
  int (*GetErrorString)(int result, const char**);

  static constexpr int kSuccess = 0, kNotReady = 600;
  std::string text(int result) const;  // "invalid device context (201)"

  // That of a stream; of the default stream, which has none of its own, the one that the device's runtime uses.
  Result<CudaContext> context_of(CudaStream stream, int device) const;
};

// As open_nccl(): kNotFound, kUnsupported.
Result<const Cuda*> open_cuda(const std::string& library);

// libcuda.so.1, or what AMXTRAIN_CUDA_LIBRARY names.
std::string cuda_library_name();

// The context of a stream is the calling thread's as long as this lives.
class CudaContextScope {
 public:
  CudaContextScope(const Cuda& cuda, CudaContext context)
      : cuda_(cuda), pushed_(cuda.CtxPushCurrent(context) == Cuda::kSuccess) {}
  ~CudaContextScope() {
    CudaContext context = nullptr;
    if (pushed_) cuda_.CtxPopCurrent(&context);
  }
  CudaContextScope(const CudaContextScope&) = delete;
  CudaContextScope& operator=(const CudaContextScope&) = delete;

 private:
  const Cuda& cuda_;
  const bool pushed_;
};

}  // namespace amxt::comm
