/*
 * amxtrain.h: the public interface of libamxtrain, whole. What is not in this header is not API.
 *
 * libamxtrain trains Llama-family language models on CPUs. A host opens a runtime, joins a group of
 * ranks, opens a model and a data set, makes a trainer of them, loads the weights and takes steps:
 *
 *     amxt_error err = AMXT_ERROR_INIT;
 *     amxt_trainer_options options = AMXT_TRAINER_OPTIONS_INIT;
 *     amxt_run_options run = AMXT_RUN_OPTIONS_INIT;
 *     options.learning_rate = 2e-5;
 *     run.steps = 50;
 *     if (amxt_runtime_create(NULL, &rt, &err) ||
 *         amxt_group_create_from_env(rt, NULL, &group, &err) ||
 *         amxt_model_open(rt, "llama", &model, &err) ||
 *         amxt_trainer_create(rt, group, model, &options, &trainer, &err) ||
 *         amxt_trainer_load(trainer, "llama", AMXT_FOREVER, &err) ||
 *         amxt_dataset_open(rt, "wiki.safetensors", NULL, &data, &err) ||
 *         amxt_trainer_run(trainer, data, &run, AMXT_FOREVER, &err) ||
 *         amxt_trainer_export(trainer, "out", AMXT_FOREVER, &err))
 *       fprintf(stderr, "%s\n", err.message);
 *
 * Sections, in reading order:
 *
 *     1  conventions               7  operations
 *     2  version and build         8  model
 *     3  status and error          9  plan
 *     4  types                    10  data
 *     5  runtime                  11  trainer
 *     6  group and collectives    12  checkpoint
 *                                 13  preview (AMXT_ENABLE_PREVIEW)
 */
#ifndef AMXTRAIN_H_
#define AMXTRAIN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ============================================================================================
 * 1  Conventions
 *
 * Names. Everything starts with amxt_ or AMXT_; then the handle, then the verb.
 *
 * Errors. A function that can fail returns amxt_status, 0 (AMXT_OK) on success, and takes as its
 * last argument an optional amxt_error that the caller owns; NULL is allowed. On an error every
 * output is untouched and there is nothing to clean up; on success the amxt_error is untouched.
 * Besides the statuses that a function lists, each may return AMXT_E_INVALID_ARGUMENT,
 * AMXT_E_OUT_OF_MEMORY, AMXT_E_FORKED and AMXT_E_INTERNAL.
 *
 * Ownership. `T **out` gives an object to the caller, who ends it with the T's destroy function; a
 * `char **` is ended with amxt_string_destroy(). A returned pointer, and every pointer inside a
 * struct given to a callback, is borrowed; its comment says until when. Strings and arrays passed
 * in are borrowed for the length of the call, unless the comment says otherwise.
 *
 * Destroy. Returns void, accepts NULL, never waits for another rank. Objects keep what they need of
 * their parents alive, so they may be destroyed in any order. A call under way on an object must
 * have returned before it is destroyed.
 *
 * Structs. Each starts with `uint32_t struct_size` and is set up by its AMXT_X_INIT macro or its
 * amxt_x_init() function; one that was not is refused by name. Structs grow at their end only, and
 * the size that one had in an older header stays good: its missing fields are unset. A
 * field left at its "unset" value takes the default that its comment names; what came of it can be
 * read back (amxt_trainer_options_json() and others).
 *
 * Deadlines. `timeout_ns` counts from the entry of the call on CLOCK_MONOTONIC: 0 polls,
 * AMXT_FOREVER waits for ever. AMXT_E_TIMEOUT (the deadline passed) and AMXT_E_CANCELLED (somebody
 * cancelled) are told apart.
 *
 * Threads. "Thread-safety: yes" means that any threads may call at once on one object.
 * "Thread-safety: object" means that calls on one object must not overlap with each other, while
 * calls on different objects may.
 *
 * Ranks. "Collective: yes" means that every rank of the group must make the same call in the same
 * order.
 *
 * Callbacks. `user_data` comes last and is handed back as it was given. A callback must not let an
 * exception or a longjmp out. A callback that returns a non-zero value where zero means "go on"
 * ends the call with AMXT_E_USER.
 *
 * Process. The library never ends the process, prints nothing, installs no signal handlers. After
 * fork() the child must not use handles made before (AMXT_E_FORKED); exec() is fine.
 * ============================================================================================ */

/* Marks what the shared library exports. */
#if defined(_WIN32)
#define AMXT_API
#else
#define AMXT_API __attribute__((visibility("default")))
#endif

/* A timeout that never passes, and one that has passed already. */
#define AMXT_FOREVER ((int64_t)-1)
#define AMXT_POLL ((int64_t)0)

/* "Not given": the default, or the ds_config file, decides. */
#define AMXT_UNSET_I32 ((int32_t)(-2147483647 - 1))
#define AMXT_UNSET_I64 ((int64_t)(-INT64_C(9223372036854775807) - 1))
#define AMXT_UNSET_F64 (-1.7976931348623157e308)

/* Nanoseconds of a number of whole seconds, for timeouts. */
#define AMXT_SECONDS(n) ((int64_t)(n) * INT64_C(1000000000))

/* ============================================================================================
 * 2  Version and build
 * ============================================================================================ */

#define AMXT_VERSION_MAJOR 0
#define AMXT_VERSION_MINOR 1
#define AMXT_VERSION_PATCH 0
#define AMXT_VERSION (AMXT_VERSION_MAJOR * 10000 + AMXT_VERSION_MINOR * 100 + AMXT_VERSION_PATCH)

/**
 * Gives the version of the library that is loaded: major * 10000 + minor * 100 + patch. A host
 * compares it with AMXT_VERSION.
 *
 * @return the number; this function cannot fail.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API int32_t amxt_version(void);

/**
 * Gives the version as text, such as "0.1.0".
 *
 * @return borrowed, valid for the life of the process; never NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API const char* amxt_version_string(void);

/**
 * Describes the build as a JSON object: "version", "commit", "compiler", "build_type", "libraries"
 * (name to version, or null when it was not found), "optional" ("NCCL" and "NVML", which are opened
 * at run time: objects as in amxt_topology()).
 *
 * @return borrowed, valid for the life of the process; never NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API const char* amxt_build_info(void);

/**
 * Describes the CPU and the limits of this process as a JSON object: "model_name", "isa" (the
 * instruction set that kernels use), "isa_detected", "isa_cap" (AMXTRAIN_MAX_ISA or null),
 * "isa_reason" (why not a higher one, or null), "affinity" (CPU numbers), "cgroup_cpus" (or null),
 * "memory_bytes", "memory_available_bytes", "cgroup_memory_bytes" (or null), "threads" (that a
 * single rank would use), "threads_reason". "error" is there only when something could not be found
 * out.
 *
 * The instruction set is decided once per process, at the first call that needs it; so is the
 * permission to use AMX.
 *
 * @return borrowed, valid for the life of the process; never NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API const char* amxt_cpu_info(void);

/* ============================================================================================
 * 3  Status and error
 * ============================================================================================ */

typedef int32_t amxt_status;

enum {
  AMXT_OK = 0,
  AMXT_E_INVALID_ARGUMENT = 1, /* an argument, an option or a configuration value that cannot be */
  AMXT_E_INVALID_STATE = 2,    /* not allowed now: before load, after a failure, in a callback */
  AMXT_E_NOT_FOUND = 3,        /* no such file, tensor, preset, checkpoint */
  AMXT_E_EXISTS = 4,           /* would overwrite something that is there */
  AMXT_E_IO = 5,               /* reading or writing failed; sys_errno says how */
  AMXT_E_NO_SPACE = 6,         /* the disk or the quota is full */
  AMXT_E_FORMAT = 7,           /* a malformed file */
  AMXT_E_CORRUPT = 8,          /* a well-formed file whose contents are not what was written */
  AMXT_E_UNSUPPORTED = 9, /* understood, but not done: another architecture, a ds_config feature */
  AMXT_E_OUT_OF_MEMORY = 10, /* an allocation failed */
  AMXT_E_LIMIT = 11,         /* more memory needed than there is: refused by the plan */
  AMXT_E_TIMEOUT = 12,       /* the deadline passed */
  AMXT_E_CANCELLED = 13,     /* somebody cancelled */
  AMXT_E_NONFINITE = 14,     /* a loss or a gradient is infinite or not a number */
  AMXT_E_MISMATCH = 15,      /* ranks, or a checkpoint and this job, disagree */
  AMXT_E_FORKED = 16,        /* the handle was made before a fork() */
  AMXT_E_USER = 17,          /* a callback asked to end the call */
  AMXT_E_INTERNAL = 18,      /* a fault of the library */

  /* Fatal: the group is dead. Only amxt_group_abort() and the destroy functions are allowed on it,
   * and they return in time. */
  AMXT_E_COMM_PEER_LOST = 100, /* another rank is gone */
  AMXT_E_COMM_TIMEOUT = 101,   /* another rank did not answer */
  AMXT_E_COMM_ABORTED = 102,   /* the group was aborted, here or by another rank */
  AMXT_E_COMM_PROTOCOL = 103   /* another rank said what it may not say */
};

/* What went wrong, in one line. The layout is frozen at 1024 bytes. */
typedef struct amxt_error {
  uint32_t struct_size;
  int32_t code;       /* the amxt_status that was returned */
  int32_t sys_errno;  /* errno of a failed system call, else 0 */
  int32_t rank;       /* the rank that the error is about, else -1 */
  char message[1008]; /* UTF-8, ends with a zero byte; names the file, tensor, key, rank or limit */
} amxt_error;

#define AMXT_ERROR_INIT {sizeof(amxt_error), 0, 0, -1, {0}}

/**
 * Sets an amxt_error up, as AMXT_ERROR_INIT does.
 *
 * @param[out] error what to set up; NULL is ignored.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_error_init(amxt_error* error);

/**
 * Gives the name of a status: "AMXT_OK", "AMXT_E_IO".
 *
 * @param[in] status any number.
 * @return borrowed, valid for the life of the process; "AMXT_E_UNKNOWN" for a number that is no
 *   status; never NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API const char* amxt_status_name(amxt_status status);

/**
 * Tells whether a status belongs to the fatal band: the group that gave it is dead.
 *
 * @param[in] status any number.
 * @return 1 or 0.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API int32_t amxt_status_is_fatal(amxt_status status);

/* ============================================================================================
 * 4  Types
 * ============================================================================================ */

/* Handles. */
typedef struct amxt_runtime amxt_runtime;
typedef struct amxt_group amxt_group;
typedef struct amxt_op amxt_op;
typedef struct amxt_model amxt_model;
typedef struct amxt_plan amxt_plan;
typedef struct amxt_dataset amxt_dataset;
typedef struct amxt_token_writer amxt_token_writer;
typedef struct amxt_trainer amxt_trainer;

/* Element types. */
enum {
  AMXT_DTYPE_FLOAT32 = 0,
  AMXT_DTYPE_BFLOAT16 = 1,
  AMXT_DTYPE_FLOAT16 = 2,
  AMXT_DTYPE_INT32 = 3,
  AMXT_DTYPE_INT64 = 4,
  AMXT_DTYPE_UINT8 = 5,
  AMXT_DTYPE_UINT16 = 6,
  AMXT_DTYPE_UINT32 = 7,
  AMXT_DTYPE_INT8 = 8,
  AMXT_DTYPE_INT16 = 9,
  AMXT_DTYPE_UINT64 = 10,
  AMXT_DTYPE_FLOAT64 = 11,
  AMXT_DTYPE_BOOL = 12
};

/* The most dimensions that a tensor has here. */
#define AMXT_MAX_DIMENSIONS 8

/* One tensor of a model directory. */
typedef struct amxt_tensor_info {
  uint32_t struct_size;
  int32_t dtype;                      /* AMXT_DTYPE_*, as the file has it */
  int32_t dimensions;                 /* how many entries of `shape` count */
  int32_t reserved;                   /* 0 */
  int64_t shape[AMXT_MAX_DIMENSIONS]; /* elements; row-major */
  int64_t bytes;                      /* of the tensor in the file */
  int64_t file_offset;                /* of its first byte in the file */
  const char* name;                   /* borrowed from the model */
  const char* file;                   /* path of the shard, borrowed from the model */
} amxt_tensor_info;

#define AMXT_TENSOR_INFO_INIT {sizeof(amxt_tensor_info), 0, 0, 0, {0}, 0, 0, NULL, NULL}

/**
 * Sets an amxt_tensor_info up, as AMXT_TENSOR_INFO_INIT does.
 *
 * @param[out] info what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_tensor_info) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_tensor_info_init(amxt_tensor_info* info, uint32_t struct_size);

/* Where the elements of an amxt_tensor are. */
enum {
  AMXT_MEMORY_HOST = 0,
  AMXT_MEMORY_CUDA = 1 /* of `device`; what is done to it is put on `stream` */
};

/* Elements that the caller owns, one after the other. */
typedef struct amxt_tensor {
  uint32_t struct_size;
  int32_t dtype;  /* AMXT_DTYPE_* */
  int64_t count;  /* elements */
  void* data;     /* may be NULL when count is 0; an input is not written to */
  int32_t memory; /* AMXT_MEMORY_* */
  int32_t device; /* number of the device; of host memory 0 */
  void* stream;   /* cudaStream_t, NULL: the device's default stream; of host memory NULL */
} amxt_tensor;

#define AMXT_TENSOR_INIT \
  {sizeof(amxt_tensor), AMXT_DTYPE_FLOAT32, 0, NULL, AMXT_MEMORY_HOST, 0, NULL}

/**
 * Sets an amxt_tensor up, as AMXT_TENSOR_INIT does.
 *
 * @param[out] tensor what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_tensor) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_tensor_init(amxt_tensor* tensor, uint32_t struct_size);

/**
 * Gives the name of an element type as safetensors spells it: "F32", "BF16".
 *
 * @param[in] dtype an AMXT_DTYPE_* value, or any number.
 * @return borrowed, valid for the life of the process; "?" for a number that is no element type;
 *   never NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API const char* amxt_dtype_name(int32_t dtype);

/* What a long call is doing. */
enum {
  AMXT_STAGE_LOAD = 1,    /* weights are read */
  AMXT_STAGE_RESUME = 2,  /* a checkpoint is read */
  AMXT_STAGE_SAVE = 3,    /* a checkpoint is written */
  AMXT_STAGE_EXPORT = 4,  /* a Hugging Face directory is written */
  AMXT_STAGE_VERIFY = 5,  /* files are read back */
  AMXT_STAGE_WRITE = 6,   /* random weights are written */
  AMXT_STAGE_SCAN = 7,    /* values of weights are looked at */
  AMXT_STAGE_TOKENIZE = 8 /* text is read */
};

/* How far a long call is: the item of `item_count` that it is at, and the bytes of this item. */
typedef struct amxt_progress {
  uint32_t struct_size;
  int32_t stage;            /* AMXT_STAGE_* */
  int64_t item;             /* from 0 */
  int64_t item_count;       /* shards or files in all */
  int64_t item_done_bytes;  /* of this item */
  int64_t item_total_bytes; /* of this item; 0 when not known */
  int64_t done_bytes;       /* of all items */
  int64_t total_bytes;      /* of all items; 0 when not known */
  const char* item_name;    /* file name, borrowed for the length of the callback */
} amxt_progress;

#define AMXT_PROGRESS_INIT {sizeof(amxt_progress), 0, 0, 0, 0, 0, 0, 0, NULL}

/**
 * Sets an amxt_progress up, as AMXT_PROGRESS_INIT does.
 *
 * @param[out] progress what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_progress) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_progress_init(amxt_progress* progress, uint32_t struct_size);

/*
 * Receives progress: at least once at the beginning and the end of each item, in between at most
 * every 100 ms or so. Fires on a thread of the library while the caller of the long call waits,
 * never on two threads at once for one call. It may call amxt_runtime_cancel() and
 * amxt_trainer_cancel(), nothing that blocks. Returns 0 to go on; else the call ends with
 * AMXT_E_USER.
 */
typedef int32_t (*amxt_progress_fn)(const amxt_progress* progress, void* user_data);

/**
 * Ends a string that a function gave to the caller through a `char **`.
 *
 * @param[in] string the string, or NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_string_destroy(char* string);

/* ============================================================================================
 * 5  Runtime
 *
 * What all else hangs on: the log, the threads, the cancel. Any number of runtimes may live in one
 * process.
 * ============================================================================================ */

/* Log levels: a line is written when its level is at most the runtime's. */
enum {
  AMXT_LOG_OFF = -1,
  AMXT_LOG_ERROR = 0,
  AMXT_LOG_WARNING = 1,
  AMXT_LOG_INFO = 2,
  AMXT_LOG_DEBUG = 3
};

/*
 * Receives one line of log, without a line end; `line` is borrowed for the length of the callback.
 * Fires on any thread, never on two at once for one runtime. It must not call the library.
 */
typedef void (*amxt_log_fn)(int32_t level, const char* line, void* user_data);

/* Options of a runtime. */
typedef struct amxt_runtime_options {
  uint32_t struct_size;
  int32_t threads;     /* of each rank, 1 to 1024; unset: from affinity, cgroup, ranks */
  int32_t pin_threads; /* 1 or 0; unset: 1 unless there are more ranks than cores */
  int32_t log_level;   /* AMXT_LOG_*; unset: AMXTRAIN_LOG of the environment, else info */
  amxt_log_fn log;     /* NULL: no lines */
  void* log_user_data;
} amxt_runtime_options;

#define AMXT_RUNTIME_OPTIONS_INIT \
  {sizeof(amxt_runtime_options), AMXT_UNSET_I32, AMXT_UNSET_I32, AMXT_UNSET_I32, NULL, NULL}

/**
 * Sets an amxt_runtime_options up, as AMXT_RUNTIME_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_runtime_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_runtime_options_init(amxt_runtime_options* options, uint32_t struct_size);

/**
 * Makes a runtime.
 *
 * @param[in] options NULL for all defaults.
 * @param[out] runtime the new runtime; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for an option that cannot be, or an unknown
 *   AMXTRAIN_MAX_ISA or AMXTRAIN_LOG; AMXT_E_UNSUPPORTED when the CPU is below x86-64-v3.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_runtime_create(const amxt_runtime_options* options,
                                         amxt_runtime** runtime, amxt_error* err);

/**
 * Replaces the log callback and the level.
 *
 * @param[in] runtime the runtime.
 * @param[in] level AMXT_LOG_*.
 * @param[in] log the callback, NULL for no lines. When this function returns, the old one is no
 *   longer running.
 * @param[in] user_data handed to the callback.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a level that does not exist.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_runtime_set_log(amxt_runtime* runtime, int32_t level, amxt_log_fn log,
                                          void* user_data, amxt_error* err);

/**
 * Describes the runtime as a JSON object: "threads" (asked for, or null), "pin_threads",
 * "log_level", "isa", "cpu" (the object of amxt_cpu_info()).
 *
 * @param[in] runtime the runtime.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_runtime_info(const amxt_runtime* runtime, char** json, amxt_error* err);

/**
 * Cancels every call under way on this runtime and on all that was made with it: each returns
 * AMXT_E_CANCELLED as soon as it can, or its result when it was past the point of return. Later
 * calls are not affected. A signal handler must not call it; a thread that waits for signals may.
 *
 * @param[in] runtime the runtime.
 * @param[out] err optional.
 * @return AMXT_OK, also when nothing was under way.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_runtime_cancel(amxt_runtime* runtime, amxt_error* err);

/**
 * Ends a runtime. What was made with it goes on living until it is destroyed itself; the log
 * callback is not called any more once this function has returned.
 *
 * @param[in] runtime the runtime, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_runtime_destroy(amxt_runtime* runtime);

/* ============================================================================================
 * 6  Group and collectives
 *
 * The ranks that train one model. A group of one needs no network and no environment.
 * ============================================================================================ */

/* Who this rank is and where the others are. Every field may stay unset. */
typedef struct amxt_group_options {
  uint32_t struct_size;
  int32_t rank;               /* 0 to world_size - 1 */
  int32_t world_size;         /* ranks in all */
  int32_t local_rank;         /* among the ranks of this node; unset: derived, and logged */
  int32_t local_size;         /* ranks on this node; unset: derived */
  int32_t port;               /* of the rendezvous, 1 to 65535 */
  const char* address;        /* of the rendezvous: host name or IP address; NULL: unset */
  int64_t connect_timeout_ns; /* for all ranks to be there; unset: 300 s */
  /* after which a silent rank of another node is lost, 100 ms or more; unset: 10 s */
  int64_t heartbeat_timeout_ns;
  /* 1: with AMXTRAIN_SECRET_FILE and several nodes, data may go over a transport that cannot
   * authenticate (gloo), with a warning; unset: 0, that is refused. The same on all ranks. */
  int32_t allow_unauthenticated_data;
  int32_t reserved; /* 0 */
} amxt_group_options;

#define AMXT_GROUP_OPTIONS_INIT \
  {sizeof(amxt_group_options),  \
   AMXT_UNSET_I32,              \
   AMXT_UNSET_I32,              \
   AMXT_UNSET_I32,              \
   AMXT_UNSET_I32,              \
   AMXT_UNSET_I32,              \
   NULL,                        \
   AMXT_UNSET_I64,              \
   AMXT_UNSET_I64,              \
   AMXT_UNSET_I32,              \
   0}

/**
 * Sets an amxt_group_options up, as AMXT_GROUP_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_group_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_group_options_init(amxt_group_options* options, uint32_t struct_size);

/**
 * Joins a group by explicit options; of the environment only the variables AMXTRAIN_NODE_ID,
 * AMXTRAIN_SOCKET_IFNAME and AMXTRAIN_SECRET_FILE are looked at, never a launcher's.
 *
 * @param[in] runtime the runtime.
 * @param[in] options NULL: a group of one. With a world of more than one, rank, world_size, address
 *   and port are needed.
 * @param[out] group the new group; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a rank out of range or an incomplete set;
 *   AMXT_E_MISMATCH when a rank is there twice or ranks disagree; AMXT_E_TIMEOUT (after
 *   connect_timeout_ns); AMXT_E_CANCELLED; AMXT_E_IO when the port is taken by something else;
 *   AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes, until connect_timeout_ns. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_create(amxt_runtime* runtime, const amxt_group_options* options,
                                       amxt_group** group, amxt_error* err);

/**
 * Joins the group that the launcher made: explicit options first, else the innermost complete set
 * of variables (RANK and WORLD_SIZE as torchrun sets them, Open MPI, PMI as Hydra sets it, a step
 * of Slurm), else a group of one.
 *
 * @param[in] runtime the runtime.
 * @param[in] options NULL, or fields that override the environment.
 * @param[out] group the new group; the caller owns it.
 * @param[out] err optional.
 * @return as amxt_group_create(); AMXT_E_INVALID_ARGUMENT also for a partial or contradictory set
 *   of variables, with what was seen in the message.
 * Thread-safety: yes. Blocking: yes, until connect_timeout_ns. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_create_from_env(amxt_runtime* runtime,
                                                const amxt_group_options* options,
                                                amxt_group** group, amxt_error* err);

/**
 * Tells what amxt_group_create_from_env() would join, and why, without joining: a JSON object.
 * "launch" is null when "error" is there, else an object: "rank", "world_size", "local_rank",
 * "local_size", "source", "launcher" (whose variables were taken, or null), "reason", "address" and
 * "port" (null when alone), "agent_store" (torchrun's agent serves there), "run_id" and "node_hint"
 * (or null), "notes" (what was derived, and what is there and was not taken). "found" lists the
 * launchers of which variables are there, innermost first: "launcher", "complete", "refusal" (why
 * they do not count, or null), "variables" (name to value, or null).
 *
 * @param[in] options NULL, or fields that override the environment.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK, also when the variables contradict themselves: "error" says how;
 *   AMXT_E_INVALID_ARGUMENT for options out of range.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_launch_info(const amxt_group_options* options, char** json,
                                      amxt_error* err);

/**
 * Describes what ranks find on this machine that talk to each other, as a JSON object:
 *
 * "machine" ("processor", "cores", "processors", "virtual"); "numa_nodes" ("node", "cores",
 * "processors", "memory_bytes", "free_bytes"); "interfaces" ("name", "addresses", "state",
 * "megabits_per_second", "mtu", "driver", "numa_node", "chosen": the one of the rendezvous,
 * "reason"); "rdma_devices" ("name", "driver", "efa", "state", "gigabits_per_second", "numa_node",
 * "usable"); "limits" ("locked_memory_bytes", null for none, "dev_shm_bytes", "dev_shm_free_bytes",
 * "own_ipc_namespace"); "nccl" and "nvml" ("found", "version", "path", "reason" why not; nvml also
 * "driver_version", "missing_functions").
 *
 * "gpus" (as NVML numbers them: "index", "name", "fault", "uuid", "bus_id", "memory_bytes",
 * "compute_capability", "pcie_generation", "pcie_width", "nvlinks", "nvlink_generation", "mig",
 * "virtualization", "cpu_affinity", "numa_affinity"); "pci_gpus" (how many the PCI bus has);
 * "matrix" (rows of "X", "NV#", "PIX", "PXB", "PHB", "NODE", "SYS" or "?"); "pairs" ("a", "b",
 * "path", "transport": "p2p", "shared_memory", "network" or "none", "over": "NVLink" or "PCIe",
 * "gigabytes_per_second": nominal, one way, "reason" why not P2P); "between_hosts" ("transport",
 * "rdma", "devices", "interface", "plugin", "gigabytes_per_second"); "environment" (variables that
 * change the way of data); "warnings" ("code", "message").
 *
 * What is not known is null. A machine without NVIDIA's driver has no "gpus"; that is no error.
 *
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no, but for the time that the driver takes. Collective: no. Since:
 * 0.1
 */
AMXT_API amxt_status amxt_topology(char** json, amxt_error* err);

/**
 * Gives this process' rank in the group.
 *
 * @param[in] group the group.
 * @return 0 to size - 1; -1 for NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API int32_t amxt_group_rank(const amxt_group* group);

/**
 * Gives the number of ranks in the group.
 *
 * @param[in] group the group.
 * @return 1 or more; -1 for NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API int32_t amxt_group_size(const amxt_group* group);

/**
 * Gives this process' rank among those of its node.
 *
 * @param[in] group the group.
 * @return 0 to local size - 1; -1 for NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API int32_t amxt_group_local_rank(const amxt_group* group);

/**
 * Gives the number of ranks on this node.
 *
 * @param[in] group the group.
 * @return 1 or more; -1 for NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API int32_t amxt_group_local_size(const amxt_group* group);

/**
 * Gives the number of nodes that the group spans.
 *
 * @param[in] group the group.
 * @return 1 or more; -1 for NULL.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API int32_t amxt_group_node_count(const amxt_group* group);

/**
 * Describes the group as a JSON object: "rank", "world_size", "local_rank", "local_size", "nodes"
 * (how many), "node" (this rank's), "ranks" (an array by rank: "node", "local_rank", "host",
 * "address", null on one node), "source" (where the ranks came from: options, torchrun, none),
 * "address", "port", "transport", "threads", "cpus", "collectives" and "device_collectives" (null, or the transport and calls, bytes
 * and seconds of each kind of call).
 *
 * @param[in] group the group.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_group_info(const amxt_group* group, char** json, amxt_error* err);

/**
 * Waits until every rank of the group has come here.
 *
 * @param[in] group the group.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK, on all ranks or on none; else the group ends on all ranks: AMXT_E_COMM_TIMEOUT,
 *   naming who did not come; AMXT_E_CANCELLED, and AMXT_E_COMM_ABORTED elsewhere;
 *   AMXT_E_COMM_PROTOCOL when another rank made another call; other AMXT_E_COMM_*. Of a part as
 *   other collectives.
 * Thread-safety: object. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_barrier(amxt_group* group, int64_t timeout_ns, amxt_error* err);

/*
 * How values are put together. Sums of bfloat16 and float16 are made in float32, but in device memory,
 * where NCCL adds them as they are. A NaN stays a NaN, but for the largest and smallest there.
 */
enum {
  AMXT_REDUCE_SUM = 0, /* of integers: wraps around */
  AMXT_REDUCE_MAX = 1,
  AMXT_REDUCE_MIN = 2,
  AMXT_REDUCE_AVG = 3 /* of integers: rounded towards zero; in device memory their sum may wrap */
};

/*
 * Collectives. All ranks of a group call the same ones in the same order; the calls of one group run
 * one at a time, in the order of submission, on a thread of its own, those of several groups at
 * once. Elements are float32, bfloat16, float16, int32, int64 or uint8. The bits of a result do not
 * depend on who comes first. The first call connects the ranks for data; it must not run beside
 * another call of the group or of its trainer.
 *
 * What an error ends. AMXT_E_INVALID_ARGUMENT, AMXT_E_LIMIT and a missing NCCL: this call alone. A
 * collective that differs from those of other ranks (type, count, operation, root, kind), a deadline
 * and a cancel: the collectives of this group, on all ranks; barrier, finalize and trainers of the
 * group go on, and groups that were split off too, but between nodes, where a deadline and a cancel
 * end the collectives of all groups that came of one. The group as a whole ends, for all calls, where
 * one rank calls a collective and another under the same number of its calls that all ranks make
 * alike the barrier, finalize or a trainer's call; where a rank is lost or aborts; and when the first
 * collective ends early, while the ranks still connect. Whoever calls what is over gets an error that
 * says why: never a wrong result, never a wait.
 *
 * A send or receive that waits, while the other rank is in a collective or in finalize of this group
 * and has not begun the other end, would wait for ever, as they run one after the other: that ends the
 * group, naming both calls. The same where a blocking send or receive meets a barrier or a trainer's
 * call; so while one waits, no other thread may make those calls. In a group that was split off it is
 * the same, its barrier and finalize being collectives: all groups that came of one end, and the
 * message names the ranks as that one counts them.
 *
 * Do all ranks get the same? Where they share memory a call ends well on all ranks or on none.
 * Between nodes a rank may end a call well that fails elsewhere: when another one cancels it or
 * passes its deadline at the last moment, after all bytes were sent, or gives up the next call before
 * all have finished this one. That rank is told at its next call. Those who do not give up themselves
 * get AMXT_E_COMM_ABORTED with the rank that did and its reason.
 *
 * With device memory (AMXT_MEMORY_CUDA, both tensors on one stream, one device for a
 * group) a call has ended when all ranks have made it and it is on the stream; NCCL carries it.
 */

/**
 * Reduces the arrays of all ranks element by element; every rank gets the same bits.
 *
 * @param[in] group the group.
 * @param[in] send this rank's elements; as many on all ranks.
 * @param[out] receive as many elements of the same type; `send` itself for in place.
 * @param[in] reduce AMXT_REDUCE_*.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a type, count, operation or rank
 *   that cannot be, and for buffers that overlap; AMXT_E_NOT_FOUND and AMXT_E_UNSUPPORTED for device
 *   memory where NCCL or CUDA is missing or too old, on all ranks; AMXT_E_CANCELLED; AMXT_E_COMM_PROTOCOL when the ranks disagree about the
 *   call, on all of them, with both calls in the message; AMXT_E_COMM_TIMEOUT; other AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_allreduce(amxt_group* group, const amxt_tensor* send,
                                          const amxt_tensor* receive, int32_t reduce,
                                          int64_t timeout_ns, amxt_error* err);

/**
 * Submits what amxt_group_allreduce() does; the memory of the tensors belongs to the operation until it
 * is done, the structs may go at once.
 *
 * @param[in] group the group.
 * @param[in] send this rank's elements; as many on all ranks.
 * @param[out] receive as many elements of the same type; `send` itself for in place.
 * @param[in] reduce AMXT_REDUCE_*.
 * @param[out] op the operation; the caller ends it with amxt_op_destroy().
 * @param[out] err optional.
 * @return AMXT_OK when submitted; AMXT_E_INVALID_ARGUMENT as amxt_group_allreduce(); what else
 *   can happen is the operation's status.
 * Thread-safety: yes. Blocking: no. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_allreduce_async(amxt_group* group, const amxt_tensor* send,
                                                const amxt_tensor* receive, int32_t reduce,
                                                amxt_op** op, amxt_error* err);

/**
 * Gives every rank the arrays of all, one after the other in the order of ranks.
 *
 * @param[in] group the group.
 * @param[in] send this rank's elements; its place in `receive` for in place.
 * @param[out] receive the elements of all ranks.
 * @param[in] counts elements of each rank, the same list on all; NULL: the same number each.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a type, count, operation or rank
 *   that cannot be, and for buffers that overlap; AMXT_E_NOT_FOUND and AMXT_E_UNSUPPORTED for device
 *   memory where NCCL or CUDA is missing or too old, on all ranks; AMXT_E_CANCELLED; AMXT_E_COMM_PROTOCOL when the ranks disagree about the
 *   call, on all of them, with both calls in the message; AMXT_E_COMM_TIMEOUT; other AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_allgather(amxt_group* group, const amxt_tensor* send,
                                          const amxt_tensor* receive, const int64_t* counts,
                                          int64_t timeout_ns, amxt_error* err);

/**
 * Submits what amxt_group_allgather() does; the memory of the tensors belongs to the operation until it
 * is done, the structs may go at once.
 *
 * @param[in] group the group.
 * @param[in] send this rank's elements; its place in `receive` for in place.
 * @param[out] receive the elements of all ranks.
 * @param[in] counts elements of each rank, the same list on all; NULL: the same number each.
 * @param[out] op the operation; the caller ends it with amxt_op_destroy().
 * @param[out] err optional.
 * @return AMXT_OK when submitted; AMXT_E_INVALID_ARGUMENT as amxt_group_allgather(); what else
 *   can happen is the operation's status.
 * Thread-safety: yes. Blocking: no. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_allgather_async(amxt_group* group, const amxt_tensor* send,
                                                const amxt_tensor* receive, const int64_t* counts,
                                                amxt_op** op, amxt_error* err);

/**
 * Reduces the arrays of all ranks and gives each rank its part.
 *
 * @param[in] group the group.
 * @param[in] send the parts of all ranks in their order; as many elements on all ranks.
 * @param[out] receive this rank's part; its place in `send` for in place.
 * @param[in] counts elements of each part, the same list on all; NULL: the same number each.
 * @param[in] reduce AMXT_REDUCE_*.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a type, count, operation or rank
 *   that cannot be, and for buffers that overlap; AMXT_E_NOT_FOUND and AMXT_E_UNSUPPORTED for device
 *   memory where NCCL or CUDA is missing or too old, on all ranks; AMXT_E_CANCELLED; AMXT_E_COMM_PROTOCOL when the ranks disagree about the
 *   call, on all of them, with both calls in the message; AMXT_E_COMM_TIMEOUT; other AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_reduce_scatter(amxt_group* group, const amxt_tensor* send,
                                               const amxt_tensor* receive, const int64_t* counts,
                                               int32_t reduce, int64_t timeout_ns, amxt_error* err);

/**
 * Submits what amxt_group_reduce_scatter() does; the memory of the tensors belongs to the operation until it
 * is done, the structs may go at once.
 *
 * @param[in] group the group.
 * @param[in] send the parts of all ranks in their order; as many elements on all ranks.
 * @param[out] receive this rank's part; its place in `send` for in place.
 * @param[in] counts elements of each part, the same list on all; NULL: the same number each.
 * @param[in] reduce AMXT_REDUCE_*.
 * @param[out] op the operation; the caller ends it with amxt_op_destroy().
 * @param[out] err optional.
 * @return AMXT_OK when submitted; AMXT_E_INVALID_ARGUMENT as amxt_group_reduce_scatter(); what else
 *   can happen is the operation's status.
 * Thread-safety: yes. Blocking: no. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_reduce_scatter_async(amxt_group* group, const amxt_tensor* send,
                                                     const amxt_tensor* receive,
                                                     const int64_t* counts, int32_t reduce,
                                                     amxt_op** op, amxt_error* err);

/**
 * Gives every rank the array of one.
 *
 * @param[in] group the group.
 * @param[in,out] tensor the root's elements; as many of the same type on all ranks.
 * @param[in] root the rank that gives.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a type, count, operation or rank
 *   that cannot be, and for buffers that overlap; AMXT_E_NOT_FOUND and AMXT_E_UNSUPPORTED for device
 *   memory where NCCL or CUDA is missing or too old, on all ranks; AMXT_E_CANCELLED; AMXT_E_COMM_PROTOCOL when the ranks disagree about the
 *   call, on all of them, with both calls in the message; AMXT_E_COMM_TIMEOUT; other AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_broadcast(amxt_group* group, const amxt_tensor* tensor,
                                          int32_t root, int64_t timeout_ns, amxt_error* err);

/**
 * Submits what amxt_group_broadcast() does; the memory of the tensors belongs to the operation until it
 * is done, the structs may go at once.
 *
 * @param[in] group the group.
 * @param[in,out] tensor the root's elements; as many of the same type on all ranks.
 * @param[in] root the rank that gives.
 * @param[out] op the operation; the caller ends it with amxt_op_destroy().
 * @param[out] err optional.
 * @return AMXT_OK when submitted; AMXT_E_INVALID_ARGUMENT as amxt_group_broadcast(); what else
 *   can happen is the operation's status.
 * Thread-safety: yes. Blocking: no. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_broadcast_async(amxt_group* group, const amxt_tensor* tensor,
                                                int32_t root, amxt_op** op, amxt_error* err);

/**
 * Sends a part to each rank and gets one from each. Never in place.
 *
 * @param[in] group the group.
 * @param[in] send the parts for the ranks, in their order.
 * @param[in] send_counts elements for each rank; NULL: the same number each.
 * @param[out] receive the parts of the ranks, in their order.
 * @param[in] receive_counts elements from each rank; NULL: the same number each.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a type, count, operation or rank
 *   that cannot be, and for buffers that overlap; AMXT_E_NOT_FOUND and AMXT_E_UNSUPPORTED for device
 *   memory where NCCL or CUDA is missing or too old, on all ranks; AMXT_E_CANCELLED; AMXT_E_COMM_PROTOCOL when the ranks disagree about the
 *   call, on all of them, with both calls in the message; AMXT_E_COMM_TIMEOUT; other AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_alltoall(amxt_group* group, const amxt_tensor* send,
                                         const int64_t* send_counts, const amxt_tensor* receive,
                                         const int64_t* receive_counts, int64_t timeout_ns,
                                         amxt_error* err);

/**
 * Submits what amxt_group_alltoall() does; the memory of the tensors belongs to the operation until it
 * is done, the structs may go at once.
 *
 * @param[in] group the group.
 * @param[in] send the parts for the ranks, in their order.
 * @param[in] send_counts elements for each rank; NULL: the same number each.
 * @param[out] receive the parts of the ranks, in their order.
 * @param[in] receive_counts elements from each rank; NULL: the same number each.
 * @param[out] op the operation; the caller ends it with amxt_op_destroy().
 * @param[out] err optional.
 * @return AMXT_OK when submitted; AMXT_E_INVALID_ARGUMENT as amxt_group_alltoall(); what else
 *   can happen is the operation's status.
 * Thread-safety: yes. Blocking: no. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_alltoall_async(amxt_group* group, const amxt_tensor* send,
                                               const int64_t* send_counts,
                                               const amxt_tensor* receive,
                                               const int64_t* receive_counts, amxt_op** op,
                                               amxt_error* err);

/**
 * Sends an array to one rank. The n-th send from one rank to another meets its n-th receive there,
 * of the same type and count. May return before it was received, but need not: two ranks that both
 * send first may wait for each other.
 *
 * @param[in] group the group.
 * @param[in] tensor what to send.
 * @param[in] peer another rank.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a type, count, operation or rank
 *   that cannot be, and for buffers that overlap; AMXT_E_NOT_FOUND and AMXT_E_UNSUPPORTED for device
 *   memory where NCCL or CUDA is missing or too old, on all ranks; AMXT_E_CANCELLED; AMXT_E_COMM_PROTOCOL when the ranks disagree about the
 *   call, on all of them, with both calls in the message; AMXT_E_COMM_TIMEOUT; other AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_group_send(amxt_group* group, const amxt_tensor* tensor, int32_t peer,
                                     int64_t timeout_ns, amxt_error* err);

/**
 * Submits what amxt_group_send() does; the memory of the tensors belongs to the operation until it
 * is done, the structs may go at once.
 *
 * @param[in] group the group.
 * @param[in] tensor what to send.
 * @param[in] peer another rank.
 * @param[out] op the operation; the caller ends it with amxt_op_destroy().
 * @param[out] err optional.
 * @return AMXT_OK when submitted; AMXT_E_INVALID_ARGUMENT as amxt_group_send(); what else
 *   can happen is the operation's status.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_group_send_async(amxt_group* group, const amxt_tensor* tensor,
                                           int32_t peer, amxt_op** op, amxt_error* err);

/**
 * Receives an array from one rank; see amxt_group_send().
 *
 * @param[in] group the group.
 * @param[out] tensor where to; type and count are those of the send.
 * @param[in] peer another rank.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a type, count, operation or rank
 *   that cannot be, and for buffers that overlap; AMXT_E_NOT_FOUND and AMXT_E_UNSUPPORTED for device
 *   memory where NCCL or CUDA is missing or too old, on all ranks; AMXT_E_CANCELLED; AMXT_E_COMM_PROTOCOL when the ranks disagree about the
 *   call, on all of them, with both calls in the message; AMXT_E_COMM_TIMEOUT; other AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_group_recv(amxt_group* group, const amxt_tensor* tensor, int32_t peer,
                                     int64_t timeout_ns, amxt_error* err);

/**
 * Submits what amxt_group_recv() does; the memory of the tensors belongs to the operation until it
 * is done, the structs may go at once.
 *
 * @param[in] group the group.
 * @param[out] tensor where to; type and count are those of the send.
 * @param[in] peer another rank.
 * @param[out] op the operation; the caller ends it with amxt_op_destroy().
 * @param[out] err optional.
 * @return AMXT_OK when submitted; AMXT_E_INVALID_ARGUMENT as amxt_group_recv(); what else
 *   can happen is the operation's status.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_group_recv_async(amxt_group* group, const amxt_tensor* tensor,
                                           int32_t peer, amxt_op** op, amxt_error* err);

/**
 * Waits until the stream of the last call of device memory has done what was put on it; a host may
 * wait by CUDA's own means instead. NCCL's errors that come only now, such as the loss of a peer,
 * are found here; at the deadline the calls under way are aborted.
 *
 * @param[in] group the group.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK, also when there was no such call; AMXT_E_CANCELLED; AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_group_synchronize(amxt_group* group, int64_t timeout_ns, amxt_error* err);

/**
 * Makes groups of parts of a group: of the ranks that give the same colour, in the order of their
 * keys. Such a group has ranks of its own, does collectives and can be split again; it trains no
 * model. It keeps what it needs of `group`, and to abort it is to abort that. At most 16 are
 * open on a node at a time, `group` included; fewer where many ranks share a node, but always 2.
 *
 * @param[in] group the group.
 * @param[in] color 0 or more; negative: this rank will be in none.
 * @param[in] key ranks are in the order of keys, then of their ranks in `group`.
 * @param[in] timeout_ns deadline.
 * @param[out] part the new group, or NULL for a negative colour; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_LIMIT when there are too many groups on a node, on all ranks;
 *   AMXT_E_CANCELLED; AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_split(amxt_group* group, int32_t color, int32_t key,
                                      int64_t timeout_ns, amxt_group** part, amxt_error* err);

/**
 * Takes leave of the other ranks in good order, so that none takes the end of this process for a
 * death. Afterwards the group can only be destroyed. Waits for all ranks to come here; a rank that
 * waits in another call is told of it, and the group ends as for amxt_group_barrier().
 *
 * @param[in] group the group.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK, also when done before; AMXT_E_CANCELLED; AMXT_E_COMM_*.
 * Thread-safety: object. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_group_finalize(amxt_group* group, int64_t timeout_ns, amxt_error* err);

/**
 * Ends the group at once on all ranks: calls under way, here and elsewhere, return
 * AMXT_E_COMM_ABORTED with this reason.
 *
 * @param[in] group the group.
 * @param[in] reason one line that the other ranks get to see; NULL for none.
 * @param[out] err optional.
 * @return AMXT_OK, also when the group was dead before.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_group_abort(amxt_group* group, const char* reason, amxt_error* err);

/**
 * Ends a group handle. Without amxt_group_finalize() before, the other ranks see a lost peer. Never
 * waits for them.
 *
 * @param[in] group the group, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_group_destroy(amxt_group* group);

/* ============================================================================================
 * 7  Operations
 *
 * What an asynchronous call gives. It goes through queued, running and done; it is done exactly
 * once.
 * ============================================================================================ */

/*
 * Receives the end of an operation, exactly once, also when it was cancelled. Fires on the engine
 * thread of the trainer or group, or in amxt_op_on_done() itself when the operation was done by then.
 * `error` is borrowed for the length of the callback. It may call the functions of this section but
 * not wait, destroy the operation, and submit further asynchronous calls.
 */
typedef void (*amxt_op_done_fn)(amxt_status status, const amxt_error* error, void* user_data);

/**
 * Waits for an operation and gives its status. After AMXT_E_TIMEOUT the operation goes on and can
 * be waited for again.
 *
 * @param[in] op the operation.
 * @param[in] timeout_ns deadline of this wait.
 * @param[out] err optional; the error of the operation, or that of the wait.
 * @return the operation's own status; AMXT_E_TIMEOUT when it is not done by the deadline;
 *   AMXT_E_INVALID_STATE on the engine thread (inside a callback).
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_op_wait(amxt_op* op, int64_t timeout_ns, amxt_error* err);

/**
 * Tells whether an operation is done, well or not.
 *
 * @param[in] op the operation.
 * @param[out] done 1 or 0.
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_op_test(const amxt_op* op, int32_t* done, amxt_error* err);

/**
 * Asks an operation to end early. It still has to be waited for: it ends with AMXT_E_CANCELLED, or
 * with its own result when it was past its commit. A running collective ends at once, whether other
 * ranks come or not; one that waits for its turn ends with its turn.
 *
 * @param[in] op the operation.
 * @param[out] err optional.
 * @return AMXT_OK, also when it is done already.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_op_cancel(amxt_op* op, amxt_error* err);

/**
 * Sets the callback for the end of an operation. There is at most one.
 *
 * @param[in] op the operation.
 * @param[in] done the callback.
 * @param[in] user_data handed to the callback.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_STATE when there is one already. On an error the callback never
 *   fires.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_op_on_done(amxt_op* op, amxt_op_done_fn done, void* user_data,
                                     amxt_error* err);

/**
 * Ends an operation handle. The operation itself, if it is not done, goes on, and its callback
 * still fires.
 *
 * @param[in] op the operation, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_op_destroy(amxt_op* op);

/* ============================================================================================
 * 8  Model
 *
 * A Hugging Face directory: config.json, and the weights in model.safetensors or in shards with
 * model.safetensors.index.json.
 * ============================================================================================ */

/**
 * Opens a model directory: reads config.json, and the index and the headers of the weights when
 * they are there; no weights. A good config.json is enough for a plan, whatever is wrong with the
 * weights; amxt_model_check() tells whether they are good for training.
 *
 * @param[in] runtime the runtime.
 * @param[in] directory path of the directory.
 * @param[out] model the model; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND without a directory or a config.json; AMXT_E_FORMAT for a
 *   malformed config.json; AMXT_E_UNSUPPORTED for an architecture or a config key that would change
 *   the model otherwise than known; AMXT_E_IO.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_model_open(amxt_runtime* runtime, const char* directory,
                                     amxt_model** model, amxt_error* err);

/**
 * Checks that the weights are all there, each of the shape and of a type that the configuration
 * asks for. Headers only.
 *
 * @param[in] model the model.
 * @param[out] err optional; the first problem, with its file and its tensor or key.
 * @return AMXT_OK; AMXT_E_NOT_FOUND for missing weights, a missing shard or tensor; AMXT_E_FORMAT;
 *   AMXT_E_UNSUPPORTED for an element type that cannot be loaded; AMXT_E_MISMATCH for a shape that
 *   is not the configuration's, or a tensor too many.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_model_check(const amxt_model* model, amxt_error* err);

/**
 * Describes the model as a JSON object: "directory", "model_type", "parameters" (trainable ones,
 * tied ones once), "tied", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
 * "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
 * "eos_token_id" (or null), "weights" (1 when weights are there), "tensors", "bytes", "config" (the
 * file as it is).
 *
 * @param[in] model the model.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_model_info(const amxt_model* model, char** json, amxt_error* err);

/**
 * Gives the number of tensors that training takes from the weight files; 0 when amxt_model_check()
 * would fail.
 *
 * @param[in] model the model.
 * @param[out] count the number.
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_model_tensor_count(const amxt_model* model, int64_t* count,
                                             amxt_error* err);

/**
 * Describes a tensor of the weight files.
 *
 * @param[in] model the model.
 * @param[in] index 0 to the count of tensors - 1, from the embedding to the head.
 * @param[in,out] info set up by the caller; its strings are borrowed until the model is destroyed.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for an index out of range.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_model_tensor_info(const amxt_model* model, int64_t index,
                                            amxt_tensor_info* info, amxt_error* err);

/**
 * Gives the config.json text of a preset.
 *
 * @param[in] name "tiny" (a vocabulary of 256, for bytes), "60m", "300m", "1b" or "8b".
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND for another name, with the names that there are.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_model_preset(const char* name, char** json, amxt_error* err);

/* Options of random weights. */
typedef struct amxt_write_random_options {
  uint32_t struct_size;
  int32_t reserved;          /* 0 */
  int64_t seed;              /* unset: 42 */
  int64_t shard_bytes;       /* most bytes of a file, tensors unsplit; unset: 5,000,000,000 */
  const char* config_name;   /* what messages call the configuration; NULL: "config" */
  amxt_progress_fn progress; /* or NULL */
  void* progress_user_data;
} amxt_write_random_options;

#define AMXT_WRITE_RANDOM_OPTIONS_INIT \
  {sizeof(amxt_write_random_options), 0, AMXT_UNSET_I64, AMXT_UNSET_I64, NULL, NULL, NULL}

/**
 * Sets an amxt_write_random_options up, as AMXT_WRITE_RANDOM_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_write_random_options) of the caller; no byte beyond it is
 *   written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_write_random_options_init(amxt_write_random_options* options,
                                             uint32_t struct_size);

/**
 * Writes a model directory with random weights in bfloat16: matrices normal with the
 * configuration's initializer_range, norms 1, biases 0. The same seed gives the same bytes on any
 * machine. Streams: needs memory for a part of a tensor only. The directory appears under its name
 * when it is complete.
 *
 * @param[in] runtime the runtime.
 * @param[in] config_json the text of config.json.
 * @param[in] directory path of the new directory; it must not exist or be empty.
 * @param[in] options NULL for all defaults.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_FORMAT or AMXT_E_UNSUPPORTED for the configuration; AMXT_E_EXISTS;
 *   AMXT_E_IO; AMXT_E_NO_SPACE; AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_USER. On an error nothing
 *   is left behind.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_model_write_random(amxt_runtime* runtime, const char* config_json,
                                             const char* directory,
                                             const amxt_write_random_options* options,
                                             int64_t timeout_ns, amxt_error* err);

/* Options of an inspection. */
typedef struct amxt_inspect_options {
  uint32_t struct_size;
  int32_t scan;              /* 1: read all values too, report NaN and Inf; unset: 0 */
  amxt_progress_fn progress; /* of the scan, or NULL */
  void* progress_user_data;
} amxt_inspect_options;

#define AMXT_INSPECT_OPTIONS_INIT {sizeof(amxt_inspect_options), AMXT_UNSET_I32, NULL, NULL}

/**
 * Sets an amxt_inspect_options up, as AMXT_INSPECT_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_inspect_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_inspect_options_init(amxt_inspect_options* options, uint32_t struct_size);

/**
 * Looks at a safetensors file, an index, or a model directory and describes it as a JSON object:
 * "path", "kind" ("directory", "index", "safetensors"), "config" (model type and sizes, or null),
 * "parameters" and "bytes" of the stored tensors, "file_bytes", "dtypes" (type to number of
 * tensors), "files" (each "name", "bytes", "tensors"), "tensors" (each "name", "dtype", "shape",
 * "bytes", "file", "offset"; with scan also "nan", "inf" and "max_abs"), "problems" (lines: what a
 * loader would refuse), "warnings" (lines) and "complete" (false when a file that should be there
 * could not be read: the rest is about the others). A malformed file is a problem in the result, not
 * an error; a path that is no regular file is never opened for reading, so that a pipe cannot block.
 *
 * @param[in] runtime the runtime.
 * @param[in] path a file or a directory.
 * @param[in] options NULL for all defaults.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND; AMXT_E_UNSUPPORTED for what is neither a regular file nor a
 *   directory; AMXT_E_IO; AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_USER.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_inspect(amxt_runtime* runtime, const char* path,
                                  const amxt_inspect_options* options, char** json,
                                  int64_t timeout_ns, amxt_error* err);

/**
 * Ends a model handle.
 *
 * @param[in] model the model, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_model_destroy(amxt_model* model);

/* ============================================================================================
 * 9  Plan
 *
 * What training a model would need, before anything is allocated. Declared here, takes the options
 * of section 11.
 * ============================================================================================ */

struct amxt_trainer_options;

/* The machines that a plan is for. */
typedef struct amxt_plan_options {
  uint32_t struct_size;
  int32_t ranks;             /* in all; unset: 1 */
  int32_t nodes;             /* unset: 1 */
  int32_t threads;           /* of each rank; unset: as a runtime would decide */
  int64_t node_memory_bytes; /* what a node may use; unset: what this one has */
} amxt_plan_options;

#define AMXT_PLAN_OPTIONS_INIT \
  {sizeof(amxt_plan_options), AMXT_UNSET_I32, AMXT_UNSET_I32, AMXT_UNSET_I32, AMXT_UNSET_I64}

/**
 * Sets an amxt_plan_options up, as AMXT_PLAN_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_plan_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_plan_options_init(amxt_plan_options* options, uint32_t struct_size);

/* Bytes count the proportional set: what ranks of a node share is divided among them. */
typedef struct amxt_plan_totals {
  uint32_t struct_size;
  int32_t fits;                /* 1 or 0 */
  int32_t ranks;               /* in all */
  int32_t reserved;            /* 0 */
  int64_t parameters;          /* trainable ones */
  int64_t waves;               /* that a step's micro-batches are cut into */
  int64_t weight_bytes;        /* of a node, shared by its ranks */
  int64_t optimizer_bytes;     /* of a node: low bits of the master weights, moments */
  int64_t gradient_bytes;      /* of a node */
  int64_t activation_bytes;    /* of a node */
  int64_t other_bytes;         /* of a node: buffers, code, the data set's window */
  int64_t peak_bytes_per_rank; /* the largest rank */
  int64_t peak_bytes_per_node; /* the largest node */
  int64_t limit_bytes;         /* what a node may use */
} amxt_plan_totals;

#define AMXT_PLAN_TOTALS_INIT {sizeof(amxt_plan_totals), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/**
 * Sets an amxt_plan_totals up, as AMXT_PLAN_TOTALS_INIT does.
 *
 * @param[out] totals what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_plan_totals) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_plan_totals_init(amxt_plan_totals* totals, uint32_t struct_size);

/**
 * Plans the training of a model; needs its configuration only.
 *
 * @param[in] runtime the runtime.
 * @param[in] model the model.
 * @param[in] trainer_options as for amxt_trainer_create(), the ds_config included; NULL for all
 *   defaults.
 * @param[in] options NULL for all defaults.
 * @param[out] plan the plan; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK, also when it does not fit; AMXT_E_INVALID_ARGUMENT, AMXT_E_FORMAT or
 *   AMXT_E_UNSUPPORTED for options or a ds_config that cannot be.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_plan_create(amxt_runtime* runtime, const amxt_model* model,
                                      const struct amxt_trainer_options* trainer_options,
                                      const amxt_plan_options* options, amxt_plan** plan,
                                      amxt_error* err);

/**
 * Gives the sums of a plan.
 *
 * @param[in] plan the plan.
 * @param[in,out] totals set up by the caller.
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_plan_summary(const amxt_plan* plan, amxt_plan_totals* totals,
                                       amxt_error* err);

/**
 * Gives a plan as a JSON object: "parameters", "ranks", "threads", what was chosen ("wave",
 * "waves", "keep", "gradient_dtype", "compute_dtype", "sequence_length", "micro_batch",
 * "accumulate", "global_batch"), "parts" (each "name", "shared" (true: of the node, once; false: of
 * each rank), "bytes"), "private_bytes_per_rank", "shared_bytes_per_node", "peak_bytes_per_rank"
 * (proportional), "peak_bytes_per_node", "limit_bytes", "limit" (what sets it), "fits" and "notes"
 * (what of the ds_config means nothing here, or may surprise; one line each).
 *
 * @param[in] plan the plan.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_plan_json(const amxt_plan* plan, char** json, amxt_error* err);

/**
 * Tells whether a plan fits, and if not, why.
 *
 * @param[in] plan the plan.
 * @param[out] err optional; what is needed, what there is, and what sets the limit.
 * @return AMXT_OK when it fits; AMXT_E_LIMIT when it does not.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_plan_fits(const amxt_plan* plan, amxt_error* err);

/**
 * Ends a plan.
 *
 * @param[in] plan the plan, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_plan_destroy(amxt_plan* plan);

/* ============================================================================================
 * 10  Data
 *
 * Tokens in files: *.safetensors (tokens, document_offsets, optional loss_weight), *.npy (integers;
 * one dimension is a stream, two are one document a row), *.bin (little-endian integers). A stream
 * is cut into documents at the separator.
 * ============================================================================================ */

/* How documents become samples of T positions. */
enum {
  AMXT_MODE_PACK = 0, /* documents back to back; attention and positions stay inside a document */
  AMXT_MODE_PAD = 1   /* one document a sample, cut at T, the rest dropped; padded */
};

/* Options of a data set. */
typedef struct amxt_dataset_options {
  uint32_t struct_size;
  int32_t mode;            /* AMXT_MODE_*; unset: pack */
  int32_t bin_dtype;       /* of *.bin: AMXT_DTYPE_UINT16 or _UINT32; unset: by vocab_size */
  int32_t reserved;        /* 0 */
  int64_t separator;       /* ends a document of a stream; -1: none; unset: the model's eos */
  int64_t vocab_size;      /* tokens are below it; unset: the model's, else unchecked */
  int64_t sequence_length; /* T of samples, 1 or more; unset: that of the trainer */
  const amxt_model* model; /* where unset values come from, or NULL */
  const char* const* extra_paths; /* more files, behind the first; or NULL */
  int64_t extra_path_count;
} amxt_dataset_options;

#define AMXT_DATASET_OPTIONS_INIT \
  {sizeof(amxt_dataset_options),  \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   0,                             \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   NULL,                          \
   NULL,                          \
   0}

/**
 * Sets an amxt_dataset_options up, as AMXT_DATASET_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_dataset_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_dataset_options_init(amxt_dataset_options* options, uint32_t struct_size);

/**
 * Opens token files. Tokens are checked against the vocabulary.
 *
 * @param[in] runtime the runtime.
 * @param[in] path the first file.
 * @param[in] options NULL for all defaults.
 * @param[out] dataset the data set; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND; AMXT_E_FORMAT for a malformed file, one without a document, or
 *   a token beyond the vocabulary (file, document and position are named); AMXT_E_UNSUPPORTED;
 *   AMXT_E_IO; AMXT_E_CANCELLED.
 * Thread-safety: yes. Blocking: yes, while the files are read. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_dataset_open(amxt_runtime* runtime, const char* path,
                                       const amxt_dataset_options* options, amxt_dataset** dataset,
                                       amxt_error* err);

/**
 * Gives the number of samples of one epoch.
 *
 * @param[in] dataset the data set.
 * @param[in] sequence_length T; AMXT_UNSET_I64 for the data set's own.
 * @param[out] samples the number.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a T below 1, or when there is none; AMXT_E_FORMAT
 *   when the data gives no sample of that length.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_dataset_count(const amxt_dataset* dataset, int64_t sequence_length,
                                        int64_t* samples, amxt_error* err);

/**
 * Describes a data set as a JSON object: "paths", "mode", "documents", "tokens", "largest_token",
 * "separator" (or null), "sequence_length" (or null), "vocab_size" (or null), "loss_weight" (true
 * when there is one), "fingerprint" (of tokens, documents and weights).
 *
 * @param[in] dataset the data set.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_dataset_info(const amxt_dataset* dataset, char** json, amxt_error* err);

/**
 * Ends a data set handle.
 *
 * @param[in] dataset the data set, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_dataset_destroy(amxt_dataset* dataset);

/* Options of a token file. */
typedef struct amxt_token_writer_options {
  uint32_t struct_size;
  int32_t dtype;             /* AMXT_DTYPE_UINT16 or _UINT32; unset: _UINT32 */
  int32_t loss_weight_dtype; /* AMXT_DTYPE_UINT8 (0 or 1) or _FLOAT32; unset: no loss weights */
  int32_t overwrite;         /* 1: replace a file that is there; unset: 0 */
  int64_t vocab_size;        /* tokens are below it; unset: whatever the type holds */
} amxt_token_writer_options;

#define AMXT_TOKEN_WRITER_OPTIONS_INIT                                                \
  {sizeof(amxt_token_writer_options), AMXT_UNSET_I32, AMXT_UNSET_I32, AMXT_UNSET_I32, \
   AMXT_UNSET_I64}

/**
 * Sets an amxt_token_writer_options up, as AMXT_TOKEN_WRITER_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_token_writer_options) of the caller; no byte beyond it is
 *   written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_token_writer_options_init(amxt_token_writer_options* options,
                                             uint32_t struct_size);

/**
 * Begins a safetensors token file. It appears under its name when it is finished.
 *
 * @param[in] runtime the runtime.
 * @param[in] path of the file.
 * @param[in] options NULL for all defaults.
 * @param[out] writer the writer; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_EXISTS; AMXT_E_NOT_FOUND for a missing directory; AMXT_E_IO;
 *   AMXT_E_NO_SPACE.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_token_writer_open(amxt_runtime* runtime, const char* path,
                                            const amxt_token_writer_options* options,
                                            amxt_token_writer** writer, amxt_error* err);

/**
 * Adds a document.
 *
 * @param[in] writer the writer.
 * @param[in] tokens `count` token ids; may be NULL when count is 0.
 * @param[in] loss_weights `count` weights of the tokens as targets; NULL: all 1. Refused when the
 *   file has none.
 * @param[in] count tokens of the document; 0 gives an empty one.
 * @param[out] err optional; document and position.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a token that the type or the vocabulary cannot hold,
 *   or a weight that is negative or not finite, or not 0 or 1 where the type is UINT8;
 *   AMXT_E_INVALID_STATE after finish; AMXT_E_IO; AMXT_E_NO_SPACE.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_token_writer_add(amxt_token_writer* writer, const int32_t* tokens,
                                           const float* loss_weights, int64_t count,
                                           amxt_error* err);

/**
 * Completes the file and puts it under its name.
 *
 * @param[in] writer the writer.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_STATE when finished before, or without a document or a token;
 *   AMXT_E_EXISTS; AMXT_E_IO; AMXT_E_NO_SPACE.
 * Thread-safety: object. Blocking: yes, until the file is on disk. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_token_writer_finish(amxt_token_writer* writer, amxt_error* err);

/**
 * Ends a writer. A file that was not finished leaves nothing behind.
 *
 * @param[in] writer the writer, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_token_writer_destroy(amxt_token_writer* writer);

/* Options of tokenizing. */
typedef struct amxt_tokenize_options {
  uint32_t struct_size;
  int32_t overwrite;         /* 1: replace a file that is there; unset: 0 */
  amxt_progress_fn progress; /* or NULL */
  void* progress_user_data;
} amxt_tokenize_options;

#define AMXT_TOKENIZE_OPTIONS_INIT {sizeof(amxt_tokenize_options), AMXT_UNSET_I32, NULL, NULL}

/**
 * Sets an amxt_tokenize_options up, as AMXT_TOKENIZE_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_tokenize_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_tokenize_options_init(amxt_tokenize_options* options, uint32_t struct_size);

/**
 * Makes a safetensors token file of text, a byte a token. A text file is one document; each line of
 * a *.jsonl file is one: {"text": ...}, or {"prompt": ..., "completion": ...}, whose prompt has
 * loss weight 0.
 *
 * @param[in] runtime the runtime.
 * @param[in] path of the token file; it appears when it is complete.
 * @param[in] texts paths of text files and *.jsonl files.
 * @param[in] text_count 1 or more.
 * @param[in] options NULL for all defaults.
 * @param[out] json an object of "path", "documents", "tokens", "masked_tokens", "vocab_size"; the
 *   caller ends it with amxt_string_destroy(); or NULL.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional; the file, and the line of a *.jsonl file.
 * @return AMXT_OK; AMXT_E_NOT_FOUND; AMXT_E_EXISTS; AMXT_E_FORMAT, also for texts without a token;
 *   AMXT_E_IO; AMXT_E_NO_SPACE; AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_USER.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_tokenize(amxt_runtime* runtime, const char* path,
                                   const char* const* texts, int64_t text_count,
                                   const amxt_tokenize_options* options, char** json,
                                   int64_t timeout_ns, amxt_error* err);

/* ============================================================================================
 * 11  Trainer
 *
 * One copy of the weights per node, shared by its ranks; gradients, master weights and moments
 * divided by rows. Compute runs on the trainer's own engine thread and its pool, one call after the
 * other in order of submission; a host may call from any thread. A step commits on all ranks or
 * leaves the state as it was.
 * ============================================================================================ */

/* What matrix products take in, and the type of the weights that are shared. */
enum { AMXT_COMPUTE_BFLOAT16 = 0, AMXT_COMPUTE_FLOAT32 = 1 };

/* Which parameters weight decay acts on. */
enum {
  AMXT_DECAY_ALL = 0,     /* all, as torch.optim.AdamW(model.parameters()) */
  AMXT_DECAY_MATRICES = 1 /* no norms, no biases, as the transformers Trainer */
};

/* How the learning rate goes on after the warm-up. */
enum { AMXT_SCHEDULE_CONSTANT = 0, AMXT_SCHEDULE_LINEAR = 1, AMXT_SCHEDULE_COSINE = 2 };

/* What the loss of a step is the mean of. */
enum {
  AMXT_LOSS_AVERAGE_TOKENS = 0,     /* all counted tokens of the global batch */
  AMXT_LOSS_AVERAGE_MICRO_BATCH = 1 /* the means of all micro-batches */
};

/* What a loss or gradient that is not finite does. */
enum {
  AMXT_NONFINITE_STOP = 0, /* the step fails with AMXT_E_NONFINITE and changes nothing */
  AMXT_NONFINITE_SKIP = 1  /* the step counts, is reported as skipped, and changes no weight */
};

/* What forward keeps for backward; the rest is computed again. Never changes a result. */
enum {
  AMXT_KEEP_AUTO = 0,      /* by the plan */
  AMXT_KEEP_INPUTS = 1,    /* the input of each layer */
  AMXT_KEEP_ATTENTION = 2, /* and the attention's output and log-sum-exp */
  AMXT_KEEP_ALL = 3        /* and all that the backward pass reads */
};

/*
 * Options of a trainer. With a ds_config, a value comes from the field here when it is set, else
 * from the file; a field that is set and contradicts the file is an error that lists both. Unset
 * values take the default that is named.
 */
typedef struct amxt_trainer_options {
  uint32_t struct_size;
  int32_t compute_dtype;      /* AMXT_COMPUTE_*; unset: bfloat16 */
  int32_t gradient_dtype;     /* AMXT_DTYPE_BFLOAT16 or _FLOAT32; unset: by the plan */
  int32_t decay;              /* AMXT_DECAY_*; unset: all */
  int32_t schedule;           /* AMXT_SCHEDULE_*; unset: linear */
  int32_t loss_average;       /* AMXT_LOSS_AVERAGE_*; unset: tokens */
  int32_t nonfinite;          /* AMXT_NONFINITE_*; unset: stop */
  int32_t keep;               /* AMXT_KEEP_*; unset: auto */
  int32_t forward_only;       /* 1: no optimizer state; forward and evaluate only; unset: 0 */
  int32_t reschedule;         /* 1: on resume the horizon of the schedule may change; unset: 0 */
  int64_t sequence_length;    /* positions of a sample, 1 or more; unset: 512 */
  int64_t micro_batch;        /* samples of a micro-batch on a rank; unset: 1 */
  int64_t accumulate;         /* micro-batches of a step on a rank; unset: 4, 1 with a ds_config */
  int64_t wave;               /* micro-batches that pass a layer together; unset: by the plan */
  int64_t warmup_steps;       /* 0 or more; unset: 0 */
  int64_t total_steps;        /* horizon of the schedule; unset: the steps of amxt_run_options;
                                 steps by hand need it unless the schedule is constant */
  int64_t log_steps;          /* how often an event asks to be shown, 1 or more; unset: 1 */
  int64_t seed;               /* of the order of samples; unset: 42 */
  int64_t memory_limit_bytes; /* of all ranks of this node; unset: what there is */
  int64_t timeout_ns;         /* for amxt_trainer_create() itself; unset: for ever */
  double learning_rate;       /* 0 to 1000; unset: 2e-5 */
  double beta1;               /* 0 to below 1; unset: 0.9 */
  double beta2;               /* 0 to below 1; unset: 0.999 */
  double epsilon;             /* above 0; unset: 1e-8 */
  double weight_decay;        /* 0 or more; unset: 0.01 */
  double clip;                /* largest norm of the gradient; 0: no clipping; unset: 1.0 */
  const char* ds_config; /* text of a DeepSpeed configuration, or NULL; borrowed for the call */
  const char* ds_config_name; /* what messages call it; NULL: "ds_config" */
  amxt_progress_fn progress;  /* of load, resume, save and export; or NULL */
  void* progress_user_data;
  int64_t prefetch_parameters; /* several nodes: fetched ahead of use; 0: none; unset: 50000000 */
  int64_t live_parameters;     /* several nodes: most of others' that a node holds, in whole
                                  layers and at least one; unset: 1000000000 */
  int32_t wire_dtype;          /* of gradients between nodes: AMXT_DTYPE_BFLOAT16 or _FLOAT32;
                                  unset: as they are kept */
  int32_t reserved;            /* 0 */
} amxt_trainer_options;

#define AMXT_TRAINER_OPTIONS_INIT \
  {sizeof(amxt_trainer_options),  \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I32,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_F64,                \
   AMXT_UNSET_F64,                \
   AMXT_UNSET_F64,                \
   AMXT_UNSET_F64,                \
   AMXT_UNSET_F64,                \
   AMXT_UNSET_F64,                \
   NULL,                          \
   NULL,                          \
   NULL,                          \
   NULL,                          \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I64,                \
   AMXT_UNSET_I32,                \
   0}

/**
 * Sets an amxt_trainer_options up, as AMXT_TRAINER_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_trainer_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_trainer_options_init(amxt_trainer_options* options, uint32_t struct_size);

/*
 * This rank's part of a global batch: `samples` rows of `sequence_length` positions, row-major. A
 * step takes micro_batch x accumulate samples, the first micro-batch first. Borrowed for the length
 * of the call, also of an asynchronous one. Labels are not shifted. All arrays have the shape of
 * `tokens`, but `lengths`.
 */
typedef struct amxt_batch {
  uint32_t struct_size;
  int32_t reserved;        /* 0 */
  int64_t samples;         /* rows */
  int64_t sequence_length; /* positions of a row, at most the trainer's */
  const int32_t* tokens;   /* [samples, sequence_length] */
  const int32_t* labels;   /* labels[s, t] is the target of t - 1; -100: none; NULL: tokens */
  const float* weights;    /* of labels[s, t] in the loss, 0 or more; NULL: 1 */
  const uint8_t* document_starts; /* 1 where a document begins; NULL: one a row */
  const int32_t* lengths;         /* [samples] the rest of a row is padding; NULL: none is */
} amxt_batch;

#define AMXT_BATCH_INIT {sizeof(amxt_batch), 0, 0, 0, NULL, NULL, NULL, NULL, NULL}

/**
 * Sets an amxt_batch up, as AMXT_BATCH_INIT does.
 *
 * @param[out] batch what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_batch) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_batch_init(amxt_batch* batch, uint32_t struct_size);

/* What a step was like; the same on all ranks. */
typedef struct amxt_step_metrics {
  uint32_t struct_size;
  int32_t world_size;       /* ranks */
  int32_t skipped;          /* 1 when a value was not finite and the step changed nothing */
  int32_t reserved;         /* 0 */
  int64_t step;             /* from 1, over resumed jobs */
  double epoch;             /* samples taken / samples of an epoch; 0 for a host's own batches */
  double loss;              /* mean over the counted tokens; may be not finite when skipped */
  double grad_norm;         /* before clipping; may be not finite when skipped */
  double learning_rate;     /* that was used */
  int64_t tokens;           /* positions that are not padding, of all ranks */
  double seconds;           /* wall clock of the step */
  double tokens_per_second; /* of all ranks */
  double model_tflops;      /* 6 x matmul weights + causal attention, of all ranks */
  int64_t peak_rss_bytes;   /* of the largest rank */
  int64_t peak_pss_bytes_all_ranks; /* sum of proportional set sizes */
  int64_t wire_bytes;               /* that were sent between nodes, of all ranks */
  double wire_wait_seconds;         /* that computing waited for the wire, of the largest rank */
} amxt_step_metrics;

#define AMXT_STEP_METRICS_INIT \
  {sizeof(amxt_step_metrics), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/**
 * Sets an amxt_step_metrics up, as AMXT_STEP_METRICS_INIT does.
 *
 * @param[out] metrics what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_step_metrics) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_step_metrics_init(amxt_step_metrics* metrics, uint32_t struct_size);

/* The loss on a data set. */
typedef struct amxt_evaluation {
  uint32_t struct_size;
  int32_t reserved;  /* 0 */
  double loss;       /* mean over the counted tokens */
  double perplexity; /* exp(loss) */
  int64_t tokens;    /* targets that were counted */
  int64_t samples;   /* that were taken */
  double seconds;    /* wall clock */
} amxt_evaluation;

#define AMXT_EVALUATION_INIT {sizeof(amxt_evaluation), 0, 0, 0, 0, 0, 0}

/**
 * Sets an amxt_evaluation up, as AMXT_EVALUATION_INIT does.
 *
 * @param[out] evaluation what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_evaluation) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_evaluation_init(amxt_evaluation* evaluation, uint32_t struct_size);

/* Where a trainer is. */
enum {
  AMXT_TRAINER_CREATED = 0, /* no weights yet */
  AMXT_TRAINER_READY = 1,   /* may step */
  AMXT_TRAINER_FAILED = 2   /* a commit failed half-way: resume from a checkpoint */
};

/* How far a trainer has come. */
typedef struct amxt_trainer_state {
  uint32_t struct_size;
  int32_t status;       /* AMXT_TRAINER_* */
  int64_t step;         /* that are done, over resumed jobs */
  int64_t total_steps;  /* horizon of the schedule; 0 when not known yet */
  int64_t position;     /* samples taken of the data set, over epochs */
  double epoch;         /* position / samples of an epoch; 0 without a data set */
  double learning_rate; /* of the next step */
} amxt_trainer_state;

#define AMXT_TRAINER_STATE_INIT {sizeof(amxt_trainer_state), 0, 0, 0, 0, 0, 0}

/**
 * Sets an amxt_trainer_state up, as AMXT_TRAINER_STATE_INIT does.
 *
 * @param[out] state what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_trainer_state) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_trainer_state_init(amxt_trainer_state* state, uint32_t struct_size);

/* What happened in a run. */
enum {
  AMXT_EVENT_STEP = 1,     /* `metrics` */
  AMXT_EVENT_SAVE = 2,     /* `path`: a checkpoint is complete */
  AMXT_EVENT_EVALUATE = 3, /* `evaluation` */
  AMXT_EVENT_DONE = 4 /* the last step is done and all is saved; `path`: the final model or NULL */
};

/* What a run does next. */
enum {
  AMXT_RUN_CONTINUE = 0,
  AMXT_RUN_PAUSE = 1, /* amxt_trainer_run() returns AMXT_OK; called again, it goes on */
  AMXT_RUN_STOP = 2   /* as if this step were the last: saves and returns AMXT_OK */
};

/* Something that happened in a run. */
typedef struct amxt_event {
  uint32_t struct_size;
  int32_t kind;                      /* AMXT_EVENT_* */
  int32_t show;                      /* 1 when log_steps asks for a line */
  int32_t reserved;                  /* 0 */
  int64_t step;                      /* that are done */
  int64_t total_steps;               /* of the run */
  const amxt_step_metrics* metrics;  /* or NULL */
  const amxt_evaluation* evaluation; /* or NULL */
  const char* path;                  /* or NULL */
} amxt_event;

#define AMXT_EVENT_INIT {sizeof(amxt_event), 0, 0, 0, 0, 0, NULL, NULL, NULL}

/**
 * Sets an amxt_event up, as AMXT_EVENT_INIT does.
 *
 * @param[out] event what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_event) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_event_init(amxt_event* event, uint32_t struct_size);

/*
 * Receives the events of a run on every rank, in order, on the engine thread while the caller of
 * amxt_trainer_run() waits. The event and all it points to are borrowed for the length of the
 * callback. It may call amxt_trainer_get_state(), _set_lr(), _options_json(), _memory_report() and
 * _cancel(). Returns AMXT_RUN_*; all ranks must return the same; a negative value ends the run with
 * AMXT_E_USER.
 */
typedef int32_t (*amxt_event_fn)(const amxt_event* event, void* user_data);

/* Options of a run. */
typedef struct amxt_run_options {
  uint32_t struct_size;
  int32_t save;       /* 0: no checkpoints, no final model; unset: 1 */
  int64_t steps;      /* counted from the job's first step; unset: by epochs */
  double epochs;      /* up to 1e6; steps unset too: a given horizon's steps, else 1; not both */
  int64_t save_steps; /* checkpoint every so many, and after the last; 0: only that; unset: 100 */
  int64_t keep;       /* newest checkpoints that stay, 1 or more; unset: 2 */
  int64_t eval_steps; /* evaluate every so many steps; unset: after the last only */
  amxt_dataset* eval_data;  /* or NULL; borrowed for the call */
  const char* output;       /* directory of step-NNNNNN, latest and final; NULL: nothing is saved */
  const char* resume;       /* NULL: afresh; "latest" of `output`; or a checkpoint's path */
  const char* metrics_path; /* JSON lines, one a step, by rank 0; NULL: none */
  const char* model_directory; /* of the final model's tokenizer files; NULL: the trainer's */
  amxt_event_fn event;         /* or NULL */
  void* event_user_data;
  const char* profile_path; /* Chrome trace of rank 0's operations in the third step; NULL: none */
} amxt_run_options;

#define AMXT_RUN_OPTIONS_INIT \
  {sizeof(amxt_run_options),  \
   AMXT_UNSET_I32,            \
   AMXT_UNSET_I64,            \
   AMXT_UNSET_F64,            \
   AMXT_UNSET_I64,            \
   AMXT_UNSET_I64,            \
   AMXT_UNSET_I64,            \
   NULL,                      \
   NULL,                      \
   NULL,                      \
   NULL,                      \
   NULL,                      \
   NULL,                      \
   NULL,                      \
   NULL}

/**
 * Sets an amxt_run_options up, as AMXT_RUN_OPTIONS_INIT does.
 *
 * @param[out] options what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_run_options) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_run_options_init(amxt_run_options* options, uint32_t struct_size);

/**
 * Makes a trainer: settles its options, agrees on them with the other ranks, plans the memory and
 * refuses what does not fit. The weights come with amxt_trainer_load() or amxt_trainer_resume();
 * memory of the model's size is taken then.
 *
 * @param[in] runtime the runtime.
 * @param[in] group the group; one trainer at a time.
 * @param[in] model the model; all ranks must see the same directory.
 * @param[in] options NULL for all defaults.
 * @param[out] trainer the trainer; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for an option that cannot be, or one that contradicts
 *   the ds_config; AMXT_E_FORMAT for a malformed ds_config; AMXT_E_UNSUPPORTED for what a ds_config
 *   asks and this version does not do; AMXT_E_LIMIT with the numbers; AMXT_E_MISMATCH when ranks
 *   disagree or one does not see the model; AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes, until options.timeout_ns. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_create(amxt_runtime* runtime, amxt_group* group,
                                         amxt_model* model, const amxt_trainer_options* options,
                                         amxt_trainer** trainer, amxt_error* err);

/**
 * Checks what amxt_trainer_run() will need, before anything large is loaded: that the output
 * directory can be made, is seen by all ranks, holds no checkpoints of another job and is not
 * written by one (it is locked as long as the trainer lives); that the metrics file can be
 * written; which checkpoint to resume from and that it is of this model; that the data has
 * samples. Fixes the horizon of the schedule. Calling it is optional.
 *
 * @param[in] trainer the trainer, before load or resume.
 * @param[in] dataset what to train on.
 * @param[in] options as for amxt_trainer_run().
 * @param[out] resume_from path of the checkpoint for amxt_trainer_resume(), or NULL to load afresh
 *   (no resume asked for, or "latest" and nothing there); the caller ends it with
 *   amxt_string_destroy().
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_EXISTS when the output holds checkpoints and no resume was asked for,
 *   when another job writes there, or when its `latest` or `final`, or the metrics file, is
 *   something else than a job leaves; AMXT_E_NOT_FOUND for a path to resume from that is not
 *   there; AMXT_E_MISMATCH; AMXT_E_FORMAT;
 *   AMXT_E_IO; AMXT_E_NO_SPACE; AMXT_E_INVALID_STATE after load; AMXT_E_TIMEOUT; AMXT_E_CANCELLED;
 *   AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_prepare(amxt_trainer* trainer, amxt_dataset* dataset,
                                          const amxt_run_options* options, char** resume_from,
                                          int64_t timeout_ns, amxt_error* err);

/**
 * Loads weights and sets the optimizer to its beginning. All ranks together read each byte once.
 *
 * @param[in] trainer the trainer.
 * @param[in] directory a model directory, or a checkpoint of the same model (of which the weights
 *   are taken).
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND; AMXT_E_FORMAT; AMXT_E_CORRUPT; AMXT_E_MISMATCH when it is
 *   another model; AMXT_E_UNSUPPORTED; AMXT_E_IO; AMXT_E_OUT_OF_MEMORY; AMXT_E_INVALID_STATE after
 *   a first step; AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_USER; AMXT_E_COMM_*. On an error the
 *   trainer is as created.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_load(amxt_trainer* trainer, const char* directory,
                                       int64_t timeout_ns, amxt_error* err);

/**
 * Takes one optimizer step on a global batch. A step that times out or is cancelled before its
 * commit changes nothing; past its commit it returns AMXT_OK.
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] batch this rank's part: micro_batch x accumulate samples.
 * @param[in,out] metrics set up by the caller, or NULL.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a batch of another shape or a token beyond the
 *   vocabulary; AMXT_E_NONFINITE with step, rank, layer and tensor; AMXT_E_MISMATCH when ranks
 *   disagree on the learning rate; AMXT_E_INVALID_STATE before load, after a failure, or when the
 *   schedule falls to a horizon that is not known; AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_step(amxt_trainer* trainer, const amxt_batch* batch,
                                       amxt_step_metrics* metrics, int64_t timeout_ns,
                                       amxt_error* err);

/**
 * Submits a step; see amxt_trainer_step(). The batch is copied; cancel with amxt_op_cancel().
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] batch this rank's part.
 * @param[in,out] metrics set up by the caller, or NULL; must stay valid until the operation is
 *   done, and is written before that.
 * @param[out] op the operation; the caller owns it.
 * @param[out] err optional.
 * @return AMXT_OK when it was submitted; AMXT_E_INVALID_ARGUMENT. The operation ends with the
 *   statuses of amxt_trainer_step().
 * Thread-safety: yes. Blocking: no. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_step_async(amxt_trainer* trainer, const amxt_batch* batch,
                                             amxt_step_metrics* metrics, amxt_op** op,
                                             amxt_error* err);

/**
 * Gives the log-probability of each label, without a gradient: logprobs[s, t] is that of labels[s,
 * t] after the tokens before it in its document; 0 where there is no such label (the first position
 * of a document, -100, padding).
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] batch any number of samples.
 * @param[out] logprobs [samples, sequence_length], natural logarithm.
 * @param[in] count elements of logprobs; must be samples x sequence_length.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT; AMXT_E_INVALID_STATE before load; AMXT_E_TIMEOUT;
 *   AMXT_E_CANCELLED; AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes, batches of one shape. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_forward(amxt_trainer* trainer, const amxt_batch* batch,
                                          float* logprobs, int64_t count, int64_t timeout_ns,
                                          amxt_error* err);

/**
 * Gives the loss on a whole data set, divided among the ranks.
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] dataset the data set, the same on all ranks.
 * @param[in,out] evaluation set up by the caller; the same on all ranks.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a data set of another sequence length; AMXT_E_FORMAT
 *   for a token beyond the vocabulary; AMXT_E_INVALID_STATE before load; AMXT_E_TIMEOUT;
 *   AMXT_E_CANCELLED; AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_evaluate(amxt_trainer* trainer, amxt_dataset* dataset,
                                           amxt_evaluation* evaluation, int64_t timeout_ns,
                                           amxt_error* err);

/**
 * Trains to the end: takes samples in the seeded order, steps, saves, evaluates, writes metrics,
 * and in the end a last checkpoint and the final model. Goes on from where the trainer is (0, or a
 * resumed step). A run that is cancelled or fails leaves the last checkpoint valid and the trainer
 * at its last complete step.
 *
 * @param[in] trainer the trainer, loaded or resumed.
 * @param[in] dataset what to train on, the same on all ranks.
 * @param[in] options NULL for all defaults: the horizon that was given or one epoch, nothing saved.
 * @param[in] timeout_ns deadline of the whole run.
 * @param[out] err optional.
 * @return AMXT_OK, also when a callback paused or stopped it; the statuses of
 *   amxt_trainer_prepare(), _step(), _save(), _evaluate() and _export(); AMXT_E_MISMATCH for
 *   another horizon than the one that was resumed; AMXT_E_USER.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_run(amxt_trainer* trainer, amxt_dataset* dataset,
                                      const amxt_run_options* options, int64_t timeout_ns,
                                      amxt_error* err);

/**
 * Cancels the calls under way and queued on this trainer: each returns AMXT_E_CANCELLED, or its
 * result when it was past the point of return. On several ranks one cancel ends the step on all.
 * Later calls are not affected. A signal handler must not call it; a thread that waits for signals
 * may, and so may callbacks.
 *
 * @param[in] trainer the trainer.
 * @param[out] err optional.
 * @return AMXT_OK, also when nothing was under way.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_cancel(amxt_trainer* trainer, amxt_error* err);

/**
 * Tells where the trainer is, as of its last complete step.
 *
 * @param[in] trainer the trainer.
 * @param[in,out] state set up by the caller.
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_get_state(const amxt_trainer* trainer, amxt_trainer_state* state,
                                            amxt_error* err);

/**
 * Sets the learning rate of all steps from the next one on, in place of the schedule.
 *
 * @param[in] trainer the trainer.
 * @param[in] learning_rate 0 or more; AMXT_UNSET_F64 gives the schedule its place back.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT for a rate that is negative or not finite.
 * Thread-safety: yes. Blocking: no. Collective: yes, before the same step. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_set_lr(amxt_trainer* trainer, double learning_rate,
                                         amxt_error* err);

/**
 * Gives the effective options as a JSON object: every field of amxt_trainer_options by its name,
 * after the ds_config, the defaults and the plan; besides them "world_size", "global_batch"
 * (samples of a step), "waves", "trainable_parameters", "threads", "cpus", "isa", "transport",
 * "notes" (what of the ds_config means nothing here, one line each).
 *
 * @param[in] trainer the trainer.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_options_json(const amxt_trainer* trainer, char** json,
                                               amxt_error* err);

/* Memory that was in use when a stage was over. */
typedef struct amxt_memory_usage {
  uint32_t struct_size;
  int32_t stage_count;         /* stages that have been recorded */
  int64_t rank_private_bytes;  /* of this rank alone, at the last stage */
  int64_t rank_shared_bytes;   /* this rank's proportion of what its node shares */
  int64_t all_private_bytes;   /* of all ranks */
  int64_t all_shared_bytes;    /* of all nodes, each shared byte once */
  int64_t rank_peak_rss_bytes; /* of this rank since the process began */
  int64_t all_peak_pss_bytes;  /* largest sum over all ranks that a stage has seen */
} amxt_memory_usage;

#define AMXT_MEMORY_USAGE_INIT {sizeof(amxt_memory_usage), 0, 0, 0, 0, 0, 0, 0}

/**
 * Sets an amxt_memory_usage up, as AMXT_MEMORY_USAGE_INIT does.
 *
 * @param[out] usage what to set up; NULL is ignored.
 * @param[in] struct_size sizeof(amxt_memory_usage) of the caller; no byte beyond it is written.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_memory_usage_init(amxt_memory_usage* usage, uint32_t struct_size);

/**
 * Reports the memory of each stage that is over: "after load", "master weights", "moments", "first
 * step", "step". The JSON object has "stages": an array of objects with "stage" and the byte fields
 * of amxt_memory_usage by their names. The figures of other ranks are those that were exchanged
 * when the stage ended.
 *
 * @param[in] trainer the trainer.
 * @param[in,out] usage set up by the caller: the last stage; or NULL.
 * @param[out] json the text; the caller ends it with amxt_string_destroy(); or NULL.
 * @param[out] err optional.
 * @return AMXT_OK.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_memory_report(const amxt_trainer* trainer,
                                                amxt_memory_usage* usage, char** json,
                                                amxt_error* err);

/* What of a parameter is read or written. */
enum {
  AMXT_ROWS_WEIGHT = 0,        /* the master weight */
  AMXT_ROWS_GRADIENT = 1,      /* of the last amxt_preview_trainer_gradients(); read only */
  AMXT_ROWS_FIRST_MOMENT = 2,  /* Adam's m */
  AMXT_ROWS_SECOND_MOMENT = 3, /* Adam's v */
  AMXT_ROWS_COMPUTE_WEIGHT = 4 /* the weight as products read it; read only */
};

/**
 * Reads rows of a parameter as float32, row-major; every rank gets them, whoever owns them. A
 * vector counts as rows of one element.
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] tensor name as in the Hugging Face directory.
 * @param[in] kind AMXT_ROWS_*.
 * @param[in] first_row from 0.
 * @param[in] rows 1 or more.
 * @param[out] values [rows, columns]; NULL on ranks that only take part.
 * @param[in] count elements of values; must be rows x columns; 0 with NULL.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND for a tensor that there is not; AMXT_E_INVALID_ARGUMENT for
 *   rows out of range or another count; AMXT_E_INVALID_STATE before load, or without gradients;
 *   AMXT_E_MISMATCH when ranks ask for different rows; AMXT_E_TIMEOUT; AMXT_E_CANCELLED;
 *   AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_read_rows(amxt_trainer* trainer, const char* tensor, int32_t kind,
                                            int64_t first_row, int64_t rows, float* values,
                                            int64_t count, int64_t timeout_ns, amxt_error* err);

/**
 * Writes rows of a parameter from float32, row-major; all ranks give the same values.
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] tensor name as in the Hugging Face directory.
 * @param[in] kind AMXT_ROWS_WEIGHT (the compute weight follows) or one of the moments.
 * @param[in] first_row from 0.
 * @param[in] rows 1 or more.
 * @param[in] values [rows, columns].
 * @param[in] count elements of values; must be rows x columns.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return as amxt_trainer_read_rows().
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_write_rows(amxt_trainer* trainer, const char* tensor,
                                             int32_t kind, int64_t first_row, int64_t rows,
                                             const float* values, int64_t count, int64_t timeout_ns,
                                             amxt_error* err);

/**
 * Ends a trainer. Operations that are under way are cancelled and waited for on this rank only.
 *
 * @param[in] trainer the trainer, or NULL.
 * Thread-safety: object. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API void amxt_trainer_destroy(amxt_trainer* trainer);

/* ============================================================================================
 * 12  Checkpoint
 *
 * A checkpoint is a directory step-NNNNNN with safetensors files and manifest.json. It appears
 * under its name when it is complete and on disk. Any number of ranks may resume what any number
 * has saved.
 * ============================================================================================ */

/**
 * Saves a checkpoint: output/step-NNNNNN, and makes output/latest point to it. The state of
 * training stays as it is, also when saving fails.
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] output the directory of checkpoints; made when it is missing; seen by all ranks.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_EXISTS when that step is there already; AMXT_E_IO; AMXT_E_NO_SPACE;
 *   AMXT_E_MISMATCH when ranks do not see the same directory; AMXT_E_INVALID_STATE before load or
 *   after a failure; AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_USER; AMXT_E_COMM_*. On an error
 *   nothing half-written has a checkpoint's name.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_save(amxt_trainer* trainer, const char* output,
                                       int64_t timeout_ns, amxt_error* err);

/**
 * Takes the whole state from a checkpoint, bit-equal: weights, moments, step, position in the data,
 * schedule.
 *
 * @param[in] trainer the trainer.
 * @param[in] path a checkpoint, or a directory of checkpoints, of which the latest is taken whose
 *   checksums are right; a line of the log says which were passed over and why.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND when there is none; AMXT_E_FORMAT; AMXT_E_CORRUPT;
 *   AMXT_E_MISMATCH for another model, or another horizon without options.reschedule; AMXT_E_IO;
 *   AMXT_E_TIMEOUT; AMXT_E_CANCELLED; AMXT_E_USER; AMXT_E_COMM_*. On an error the trainer is as
 *   created.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_resume(amxt_trainer* trainer, const char* path,
                                         int64_t timeout_ns, amxt_error* err);

/**
 * Writes the weights as a Hugging Face directory: model-*.safetensors in bfloat16 (float32 when
 * that is the compute type) with index, config.json, and the generation and tokenizer files of the
 * model. It replaces a directory of that name in one rename.
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] directory path of the directory.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_EXISTS when the name is taken by something that is no exported model;
 *   AMXT_E_IO; AMXT_E_NO_SPACE; AMXT_E_MISMATCH; AMXT_E_INVALID_STATE before load; AMXT_E_TIMEOUT;
 *   AMXT_E_CANCELLED; AMXT_E_USER; AMXT_E_COMM_*.
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_trainer_export(amxt_trainer* trainer, const char* directory,
                                         int64_t timeout_ns, amxt_error* err);

/**
 * Describes a checkpoint by its manifest as a JSON object: "path", "version", "step",
 * "total_steps", "world_size", "position", "bytes", "parameters", "config_hash", "files" (each
 * "path", "bytes").
 *
 * @param[in] runtime the runtime.
 * @param[in] path a checkpoint, or a directory of checkpoints, of which the latest is taken.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_NOT_FOUND; AMXT_E_FORMAT; AMXT_E_IO.
 * Thread-safety: yes. Blocking: no. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_checkpoint_info(amxt_runtime* runtime, const char* path, char** json,
                                          amxt_error* err);

/**
 * Reads a checkpoint back whole and compares every byte with its checksums.
 *
 * @param[in] runtime the runtime.
 * @param[in] path a checkpoint, or a directory of checkpoints, of which the latest is taken.
 * @param[in] progress a callback, or NULL.
 * @param[in] progress_user_data handed to the callback.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional; the file and the row range that is not what was written.
 * @return AMXT_OK; AMXT_E_NOT_FOUND; AMXT_E_FORMAT; AMXT_E_CORRUPT; AMXT_E_IO; AMXT_E_TIMEOUT;
 *   AMXT_E_CANCELLED; AMXT_E_USER.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_checkpoint_verify(amxt_runtime* runtime, const char* path,
                                            amxt_progress_fn progress, void* progress_user_data,
                                            int64_t timeout_ns, amxt_error* err);

/* ============================================================================================
 * 13  Preview
 *
 * May change or go away in any version. Define AMXT_ENABLE_PREVIEW before the include to see it.
 * ============================================================================================ */

#ifdef AMXT_ENABLE_PREVIEW

/**
 * Runs forward and backward of a step and stops before its commit: nothing changes, and the
 * gradients (of the loss, summed over the global batch, before clipping) can be read with
 * amxt_trainer_read_rows() until the next step.
 *
 * @param[in] trainer the trainer, loaded.
 * @param[in] batch as for amxt_trainer_step().
 * @param[in,out] metrics set up by the caller: loss, grad_norm and tokens are filled; or NULL.
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return as amxt_trainer_step().
 * Thread-safety: yes. Blocking: yes. Collective: yes. Since: 0.1
 */
AMXT_API amxt_status amxt_preview_trainer_gradients(amxt_trainer* trainer, const amxt_batch* batch,
                                                    amxt_step_metrics* metrics, int64_t timeout_ns,
                                                    amxt_error* err);

/**
 * Measures what the machine gives, with random data larger than its caches: "threads", "isa",
 * "memory_read_gb_per_second", and "products", an array of "name", "m", "n", "k", "dtype",
 * "kernel", "tflops".
 *
 * @param[in] runtime the runtime.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_TIMEOUT; AMXT_E_CANCELLED.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_preview_bench_peak(amxt_runtime* runtime, char** json, int64_t timeout_ns,
                                             amxt_error* err);

/**
 * Runs a benchmark on random data. "peak" is amxt_preview_bench_peak(), without options; the others
 * measure the operations of a step in bf16, each in turn with the limit of the same run.
 *
 *     name        what                                        "shapes"
 *     gemm        Y[T,N] = X[T,K] W[N,K]^T and both gradients [T, N, K]
 *                 by each implementation that there is
 *     attention   causal attention, forward and backward      [T, heads, kv_heads, head_dim]
 *     optimizer   norm of gradients, clipping, AdamW          [parameters]
 *     head        head and loss, forward; and all gradients   [T, vocab, hidden]
 *     norms       RMSNorm, RoPE, SwiGLU, additions of rows    [T, hidden, intermediate, head_dim]
 *     layer       a decoder layer, forward; and all gradients [T, hidden, intermediate, heads,
 *                                                              kv_heads, head_dim]
 *
 * Options: "shapes", an array of such arrays, and "repeat", rounds of each. The limit is products fed
 * from registers and the first-level cache; of optimizer a stream that updates the same memory in
 * place, of norms the memory's triad over arrays beyond the caches (rows that a cache holds exceed it).
 *
 * The result has "isa", "threads", "data", "repeat", "sides" (names of a shape's), "peak" ("name",
 * "tflops" or "gb_per_second") and "rows": an array of "form", the sides, "flop" (where they say
 * something), "bytes" (of operands and results), "seconds" (median), "seconds_least", "seconds_most",
 * "cpu_seconds", "tflops" or "gb_per_second" as the limit has it, "ratio_to_peak" and
 * "cpu_ratio_to_peak". The ratios called cpu are of processor time: those of a busy machine. FLOP are
 * those of the model: attention's causal half, no product counted twice, but for attention's own
 * backward, which counts five. Rows of gemm have "implementation", those of optimizer
 * "mparam_per_second", and the head's with gradients "extra_bytes" (memory besides operands and
 * results), "logits_bytes" (of logits in fp32) and "extra_to_logits". gemm adds "skipped"
 * (implementations, and why) and "means", the geometric means of each implementation over all shapes
 * of forward, grad_input and grad_weight.
 *
 * @param[in] runtime the runtime.
 * @param[in] name one of the above, or "peak".
 * @param[in] options a JSON object, or NULL for the defaults.
 * @param[out] json the text; the caller ends it with amxt_string_destroy().
 * @param[in] timeout_ns deadline.
 * @param[out] err optional.
 * @return AMXT_OK; AMXT_E_INVALID_ARGUMENT; AMXT_E_FORMAT for options that are no JSON;
 *         AMXT_E_OUT_OF_MEMORY; AMXT_E_TIMEOUT; AMXT_E_CANCELLED.
 * Thread-safety: yes. Blocking: yes. Collective: no. Since: 0.1
 */
AMXT_API amxt_status amxt_preview_bench(amxt_runtime* runtime, const char* name,
                                        const char* options, char** json, int64_t timeout_ns,
                                        amxt_error* err);

#endif /* AMXT_ENABLE_PREVIEW */

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* AMXTRAIN_H_ */
