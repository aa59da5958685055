// NCCL: a table of its C functions, opened at run time, never a link dependency. 2.14 is the oldest that is taken: the first with
// communicators that don't block.
//
// Signatures, numbers and layouts: nccl.h of NCCL 2.14 to 2.30 (github.com/NVIDIA/nccl, Apache-2.0 / BSD).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/dtype.h"
#include "base/result.h"
#include "comm/collectives.h"
#include "comm/cuda.h"

namespace amxt::comm {

using NcclResult = int;
inline constexpr NcclResult kNcclSuccess = 0, kNcclInProgress = 7;
using NcclComm = struct OpaqueNcclComm*;

struct NcclUniqueId {
  char bytes[128];
};

// The part that NCCL 2.14 knew. The library reads `size` bytes of it and takes its defaults for what `version` did not have.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  uint32_t magic = 0xcafebeef;
  uint32_t version = 21400;
  int blocking = 0;
};
static_assert(sizeof(NcclConfig) == 24);

struct Nccl {
  std::string path;
  int version_code = 0;
  std::string version() const;  // "2.30.7"

  NcclResult (*GetVersion)(int*);
  NcclResult (*GetUniqueId)(NcclUniqueId*);
  NcclResult (*CommInitRankConfig)(NcclComm*, int ranks, NcclUniqueId, int rank, NcclConfig*);
  NcclResult (*CommGetAsyncError)(NcclComm, NcclResult*);
  NcclResult (*CommFinalize)(NcclComm);
  NcclResult (*CommDestroy)(NcclComm);
  NcclResult (*CommAbort)(NcclComm);
  const char* (*GetErrorString)(NcclResult);
  const char* (*GetLastError)(NcclComm);
  NcclResult (*GroupStart)();
  NcclResult (*GroupEnd)();
  NcclResult (*AllReduce)(const void*, void*, size_t, int type, int op, NcclComm, CudaStream);
  NcclResult (*Broadcast)(const void*, void*, size_t, int type, int root, NcclComm, CudaStream);
  NcclResult (*Reduce)(const void*, void*, size_t, int type, int op, int root, NcclComm,
                       CudaStream);
  NcclResult (*AllGather)(const void*, void*, size_t, int type, NcclComm, CudaStream);
  NcclResult (*ReduceScatter)(const void*, void*, size_t, int type, int op, NcclComm, CudaStream);
  NcclResult (*Send)(const void*, size_t, int type, int peer, NcclComm, CudaStream);
  NcclResult (*Recv)(void*, size_t, int type, int peer, NcclComm, CudaStream);

  // "unhandled cuda error (1): Cuda failure ..."; `comm` may be null.
  std::string text(NcclResult result, NcclComm comm) const;
};

// Each library is opened once per process and stays. kNotFound when there is none of that name; kUnsupported when it lacks a function, or
// is too old: both are named.
Result<const Nccl*> open_nccl(const std::string& library);

// libnccl.so.2, or what AMXTRAIN_NCCL_LIBRARY names.
std::string nccl_library_name();

// NCCL's numbers.
int nccl_type(DType dtype);  // -1 for what is no collective type
int nccl_op(ReduceOp op);

}  // namespace amxt::comm
