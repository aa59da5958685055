// oneDNN, opened at run time: a table of its C functions, never a link dependency, so that a host's
// oneDNN is not taken for ours nor ours for the host's. One copy, one engine and one instruction
// set cap per process.
#pragma once

#include <string>

#include "base/cpu.h"
#include "base/result.h"
#include "kernels/gemm.h"

#if AMXT_HAVE_DNNL
#include <oneapi/dnnl/dnnl.h>

namespace amxt::kernels {

#define AMXT_DNNL_FUNCTIONS(X)          \
  X(version)                            \
  X(set_max_cpu_isa)                    \
  X(get_effective_cpu_isa)              \
  X(engine_create)                      \
  X(stream_create)                      \
  X(stream_destroy)                     \
  X(memory_desc_create_with_strides)    \
  X(memory_desc_destroy)                \
  X(memory_desc_get_size)               \
  X(memory_create)                      \
  X(memory_destroy)                     \
  X(memory_set_data_handle)             \
  X(post_ops_create)                    \
  X(post_ops_destroy)                   \
  X(post_ops_append_sum)                \
  X(primitive_attr_create)              \
  X(primitive_attr_destroy)             \
  X(primitive_attr_set_scratchpad_mode) \
  X(primitive_attr_set_post_ops)        \
  X(matmul_primitive_desc_create)       \
  X(primitive_desc_query)               \
  X(primitive_desc_query_md)            \
  X(primitive_desc_destroy)             \
  X(primitive_create)                   \
  X(primitive_destroy)                  \
  X(primitive_execute)

struct Onednn {
#define AMXT_DNNL_MEMBER(name) decltype(&::dnnl_##name) name = nullptr;
  AMXT_DNNL_FUNCTIONS(AMXT_DNNL_MEMBER)
#undef AMXT_DNNL_MEMBER
  // Null in a sequential build of oneDNN.
  int (*omp_get_max_threads)() = nullptr;
  void (*omp_set_num_threads)(int) = nullptr;
  dnnl_engine_t engine = nullptr;
};

// While it lives, what the calling thread asks of oneDNN is prepared for and run on that thread
// alone. The number is the calling thread's own in the OpenMP runtime, which may be the host's: it
// gets its value back.
class SingleThreaded {
 public:
  explicit SingleThreaded(const Onednn& api) : api_(api) {
    if (api_.omp_set_num_threads == nullptr) return;
    before_ = api_.omp_get_max_threads();
    api_.omp_set_num_threads(1);
  }
  ~SingleThreaded() {
    if (api_.omp_set_num_threads != nullptr) api_.omp_set_num_threads(before_);
  }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  const Onednn& api_;
  int before_ = 1;
};

// The open library. Its first caller fixes the instruction set for the process; kUnsupported, with
// the reason for the list of candidates, when oneDNN can't be opened or has another instruction
// set.
Result<const Onednn*> onednn(Isa isa);

// "success", "unimplemented", ...
const char* onednn_status_name(dnnl_status_t status);

}  // namespace amxt::kernels
#endif
