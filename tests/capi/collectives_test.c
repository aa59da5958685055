/* Section 6 of the header: collectives, between ranks that are threads here. */
#include <dlfcn.h>
#include <pthread.h>

#include "fixture.h"

enum { kRanks = 3 };

struct rank {
  int rank, ranks;
  int32_t port;
  void (*body)(amxt_group* group, int rank);
  int failed;
  int ended; /* the group has, as it should */
  char message[1100];
};

/* cmocka's asserts are for the main thread: a rank says what went wrong. */
static __thread struct rank* self;
#define EXPECT(condition)                                                                  \
  do {                                                                                     \
    if (!(condition) && !self->failed) {                                                   \
      self->failed = 1;                                                                    \
      snprintf(self->message, sizeof(self->message), "line %d: %s", __LINE__, #condition); \
    }                                                                                      \
  } while (0)
#define DONE(call)                                                                           \
  do {                                                                                       \
    amxt_error err = AMXT_ERROR_INIT;                                                        \
    if ((call) != AMXT_OK && !self->failed) {                                                \
      self->failed = 1;                                                                      \
      snprintf(self->message, sizeof(self->message), "line %d: %s: %.900s", __LINE__, #call, \
               err.message);                                                                 \
    }                                                                                        \
  } while (0)
#define REFUSED(expected, part, call)                                                           \
  do {                                                                                          \
    amxt_error err = AMXT_ERROR_INIT;                                                           \
    if (((call) != (expected) || strstr(err.message, (part)) == NULL) && !self->failed) {       \
      self->failed = 1;                                                                         \
      snprintf(self->message, sizeof(self->message), "line %d: %s: %d %.900s", __LINE__, #call, \
               err.code, err.message);                                                          \
    }                                                                                           \
  } while (0)

static void* play(void* argument) {
  struct rank* r = argument;
  amxt_runtime_options runtime_options = AMXT_RUNTIME_OPTIONS_INIT;
  amxt_group_options options = AMXT_GROUP_OPTIONS_INIT;
  amxt_runtime* runtime = NULL;
  amxt_group* group = NULL;
  self = r;
  runtime_options.threads = 1;
  options.rank = r->rank;
  options.world_size = r->ranks;
  options.local_rank = r->rank;
  options.local_size = r->ranks;
  options.address = "127.0.0.1";
  options.port = r->port;
  options.connect_timeout_ns = AMXT_SECONDS(60);
  DONE(amxt_runtime_create(&runtime_options, &runtime, &err));
  if (!r->failed) DONE(amxt_group_create(runtime, &options, &group, &err));
  if (!r->failed) r->body(group, r->rank);
  if (!r->failed && !r->ended) DONE(amxt_group_finalize(group, AMXT_SECONDS(60), &err));
  amxt_group_destroy(group);
  amxt_runtime_destroy(runtime);
  return NULL;
}

static void on_ranks(int ranks, int32_t port, void (*body)(amxt_group*, int)) {
  struct rank all[kRanks];
  pthread_t threads[kRanks];
  int i;
  memset(all, 0, sizeof(all));
  for (i = 0; i < ranks; ++i) {
    all[i].rank = i;
    all[i].ranks = ranks;
    all[i].port = port;
    all[i].body = body;
    assert_int_equal(pthread_create(&threads[i], NULL, play, &all[i]), 0);
  }
  for (i = 0; i < ranks; ++i) pthread_join(threads[i], NULL);
  for (i = 0; i < ranks; ++i) {
    if (all[i].failed) print_error("rank %d: %s\n", i, all[i].message);
  }
  for (i = 0; i < ranks; ++i) {
    if (all[i].failed) fail_msg("rank %d failed", i);
  }
}

static amxt_tensor floats(float* data, int64_t count) {
  amxt_tensor tensor = AMXT_TENSOR_INIT;
  tensor.data = data;
  tensor.count = count;
  return tensor;
}

static const int64_t kWait = AMXT_SECONDS(60);

static void call_each(amxt_group* group, int rank) {
  float data[6], got[6], whole[18];
  int64_t counts[kRanks] = {1, 2, 3}, out[kRanks], in[kRanks];
  amxt_tensor send = floats(data, 6), receive = floats(got, 6);
  int i;
  for (i = 0; i < 6; ++i) data[i] = (float)(rank + 1) * (float)(i + 1);
  DONE(amxt_group_allreduce(group, &send, &receive, AMXT_REDUCE_SUM, kWait, &err));
  for (i = 0; i < 6; ++i) EXPECT(got[i] == 6.f * (float)(i + 1));
  DONE(amxt_group_allreduce(group, &send, &receive, AMXT_REDUCE_AVG, kWait, &err));
  EXPECT(got[5] == 12.f);

  receive = floats(whole, 18);
  DONE(amxt_group_allgather(group, &send, &receive, NULL, kWait, &err));
  for (i = 0; i < 18; ++i) EXPECT(whole[i] == (float)(i / 6 + 1) * (float)(i % 6 + 1));
  send = floats(data, counts[rank]);
  receive = floats(whole, 6);
  DONE(amxt_group_allgather(group, &send, &receive, counts, kWait, &err));
  EXPECT(whole[0] == 1.f && whole[2] == 4.f && whole[5] == 9.f);

  send = floats(data, 6);
  receive = floats(got, counts[rank]);
  DONE(amxt_group_reduce_scatter(group, &send, &receive, counts, AMXT_REDUCE_MAX, kWait, &err));
  EXPECT(got[0] == 3.f * (float)(rank == 0 ? 1 : rank == 1 ? 2 : 4));
  receive = floats(got, 2);
  DONE(amxt_group_reduce_scatter(group, &send, &receive, NULL, AMXT_REDUCE_SUM, kWait, &err));
  EXPECT(got[1] == 6.f * (float)(2 * rank + 2));

  send = floats(got, 2);
  DONE(amxt_group_broadcast(group, &send, 2, kWait, &err));
  EXPECT(got[1] == 36.f);

  send = floats(data, 6);
  receive = floats(whole, 6);
  DONE(amxt_group_alltoall(group, &send, NULL, &receive, NULL, kWait, &err));
  EXPECT(whole[4] == 3.f * (float)(2 * rank + 1));
  for (i = 0; i < kRanks; ++i) {
    out[i] = i;
    in[i] = rank;
  }
  send = floats(data, 3);
  receive = floats(whole, 3 * rank);
  DONE(amxt_group_alltoall(group, &send, out, &receive, in, kWait, &err));
  if (rank == 2) EXPECT(whole[2] == 4.f && whole[3] == 6.f);

  send = floats(data, 1);
  receive = floats(got, 1);
  if (rank > 0) DONE(amxt_group_send(group, &send, 0, kWait, &err));
  for (i = 1; rank == 0 && i < kRanks; ++i) {
    DONE(amxt_group_recv(group, &receive, i, kWait, &err));
    EXPECT(got[0] == (float)(i + 1));
  }
  {
    char* json = NULL;
    DONE(amxt_group_info(group, &json, &err));
    EXPECT(json != NULL && strstr(json, "\"transport\":\"shm\"") != NULL);
    EXPECT(json != NULL &&
           strstr(json, "{\"name\":\"all_reduce\",\"calls\":2,\"bytes\":48,") != NULL);
    amxt_string_destroy(json);
  }
}

static void every_collective_does_what_it_says(void** state) {
  (void)state;
  on_ranks(kRanks, 29641, call_each);
}

static void count_done(amxt_status status, const amxt_error* error, void* user_data) {
  (void)error;
  if (status == AMXT_OK) __atomic_add_fetch((int*)user_data, 1, __ATOMIC_SEQ_CST);
}

static void call_async(amxt_group* group, int rank) {
  enum { kCalls = 20, kCount = 5000 };
  static float data[kRanks][kCalls][kCount];
  amxt_op* ops[kCalls] = {NULL};
  int done = 0, i;
  for (i = 0; i < kCalls; ++i) {
    amxt_tensor tensor = floats(data[rank][i], kCount);
    data[rank][i][kCount - 1] = (float)(i + rank);
    DONE(amxt_group_allreduce_async(group, &tensor, &tensor, AMXT_REDUCE_SUM, &ops[i], &err));
    DONE(amxt_op_on_done(ops[i], count_done, &done, &err));
  }
  for (i = 0; i < kCalls; ++i) {
    DONE(amxt_op_wait(ops[i], kWait, &err));
    EXPECT(data[rank][i][kCount - 1] == (float)(3 * i + 3));
    amxt_op_destroy(ops[i]);
  }
  { /* behind the callbacks on the same thread */
    amxt_tensor tensor = floats(data[rank][0], 1);
    DONE(amxt_group_broadcast(group, &tensor, 0, kWait, &err));
  }
  EXPECT(done == kCalls);
}

static void asynchronous_calls_run_in_the_order_of_submission(void** state) {
  (void)state;
  on_ranks(kRanks, 29642, call_async);
}

static void call_split(amxt_group* group, int rank) {
  amxt_group* part = NULL;
  amxt_trainer* trainer = NULL;
  int32_t value = rank;
  amxt_tensor tensor = AMXT_TENSOR_INIT;
  tensor.dtype = AMXT_DTYPE_INT32;
  tensor.data = &value;
  tensor.count = 1;
  DONE(amxt_group_split(group, rank == 1 ? -1 : 0, -rank, kWait, &part, &err));
  EXPECT((part == NULL) == (rank == 1));
  if (part == NULL) return;
  EXPECT(amxt_group_size(part) == 2);
  EXPECT(amxt_group_rank(part) == (rank == 2 ? 0 : 1));
  DONE(amxt_group_allreduce(part, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  EXPECT(value == 2);
  DONE(amxt_group_barrier(part, kWait, &err));
  DONE(amxt_group_finalize(part, kWait, &err));
  REFUSED(AMXT_E_INVALID_STATE, "finalized",
          amxt_group_allreduce(part, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  EXPECT(trainer == NULL);
  amxt_group_destroy(part);
}

static void groups_are_split(void** state) {
  (void)state;
  on_ranks(kRanks, 29643, call_split);
}

static void disagree(amxt_group* group, int rank) {
  float data[8] = {0};
  amxt_tensor tensor = floats(data, rank == 1 ? 8 : 4);
  REFUSED(AMXT_E_COMM_PROTOCOL, "rank 1 calls all_reduce of 8 F32, sum",
          amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  DONE(amxt_group_barrier(group, kWait, &err)); /* the group itself lives on */
}

static void a_mismatch_is_named_on_all_ranks(void** state) {
  (void)state;
  on_ranks(kRanks, 29644, disagree);
}

/* Where ranks that are threads wait for each other without the library. */
static pthread_barrier_t all_here;

static void miss_one(amxt_group* group, int rank) {
  float data[4] = {0};
  amxt_tensor tensor = floats(data, 4);
  amxt_op* op = NULL;
  DONE(amxt_group_broadcast(group, &tensor, 0, kWait, &err));
  if (rank == 0) {
    REFUSED(AMXT_E_COMM_TIMEOUT, "rank 2",
            amxt_group_broadcast(group, &tensor, 0, AMXT_SECONDS(1) / 5, &err));
  } else if (rank == 1) {
    DONE(amxt_group_broadcast_async(group, &tensor, 0, &op, &err));
    REFUSED(AMXT_E_COMM_ABORTED, "rank 0 gave up", amxt_op_wait(op, kWait, &err));
    amxt_op_destroy(op);
  }
  pthread_barrier_wait(&all_here); /* rank 2 was elsewhere, and comes late */
  if (rank == 2) {
    REFUSED(AMXT_E_COMM_ABORTED, "rank 0 gave up",
            amxt_group_broadcast(group, &tensor, 0, kWait, &err));
  }
  DONE(amxt_group_barrier(group, kWait, &err)); /* the group itself lives on */
}

static void a_deadline_ends_the_collectives_of_all_ranks(void** state) {
  (void)state;
  pthread_barrier_init(&all_here, NULL, kRanks);
  on_ranks(kRanks, 29645, miss_one);
  pthread_barrier_destroy(&all_here);
}

static void cancel_one(amxt_group* group, int rank) {
  float data[4] = {0};
  amxt_tensor tensor = floats(data, 4);
  amxt_op* op = NULL;
  DONE(amxt_group_broadcast(group, &tensor, 0, kWait, &err));
  if (rank == 0) {
    DONE(amxt_group_recv_async(group, &tensor, 1, &op, &err));
    usleep(50000); /* so that it most likely runs; queued, it ends alike */
    DONE(amxt_op_cancel(op, &err));
    REFUSED(AMXT_E_CANCELLED, "cancelled", amxt_op_wait(op, kWait, &err));
    amxt_op_destroy(op);
  }
  DONE(amxt_group_barrier(group, kWait, &err));
}

/* The stub of NCCL and CUDA, whose GPUs are this memory. */
#define STUB AMXT_TEST_STUBS_DIR "/libnccl.so.2"

static void load(void* library, const char* name, void* function) {
  void* const symbol = dlsym(library, name);
  EXPECT(symbol != NULL);
  memcpy(function, &symbol, sizeof(symbol));
}

static void call_device(amxt_group* group, int rank) {
  void* library = dlopen(STUB, RTLD_NOW);
  int (*cuInit)(unsigned) = NULL;
  int (*cuDeviceGet)(int*, int) = NULL;
  int (*cuDevicePrimaryCtxRetain)(void**, int) = NULL;
  int (*cuCtxPushCurrent_v2)(void*) = NULL;
  int (*cuStreamCreate)(void**, unsigned) = NULL;
  int (*cuStreamQuery)(void*) = NULL;
  float data[6];
  int i, device = 0;
  char* json = NULL;
  void *context = NULL, *stream = NULL;
  amxt_tensor tensor = floats(data, 6);
  EXPECT(library != NULL);
  if (library == NULL) return;
  load(library, "cuInit", &cuInit);
  load(library, "cuDeviceGet", &cuDeviceGet);
  load(library, "cuDevicePrimaryCtxRetain", &cuDevicePrimaryCtxRetain);
  load(library, "cuCtxPushCurrent_v2", &cuCtxPushCurrent_v2);
  load(library, "cuStreamCreate", &cuStreamCreate);
  load(library, "cuStreamQuery", &cuStreamQuery);
  EXPECT(cuInit(0) == 0);
  EXPECT(cuDeviceGet(&device, 0) == 0);
  EXPECT(cuDevicePrimaryCtxRetain(&context, device) == 0);
  EXPECT(cuCtxPushCurrent_v2(context) == 0);
  EXPECT(cuStreamCreate(&stream, 1) == 0);
  tensor.memory = AMXT_MEMORY_CUDA;
  tensor.stream = stream;
  for (i = 0; i < 6; ++i) data[i] = (float)((rank + 1) * (i + 1));
  DONE(amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  DONE(amxt_group_broadcast(group, &tensor, 1, kWait, &err));
  for (i = 0; i < 10000 && cuStreamQuery(stream) != 0; ++i) usleep(1000); /* until it is done */
  EXPECT(cuStreamQuery(stream) == 0);
  for (i = 0; i < 6; ++i) EXPECT(data[i] == (float)(3 * (i + 1)));
  tensor = floats(data, 6); /* and of the host, in between */
  DONE(amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  EXPECT(data[0] == 6.f);
  for (i = 0; i < 6; ++i) data[i] = (float)rank;
  tensor.memory = AMXT_MEMORY_CUDA; /* on the default stream, with a wait of the library's */
  DONE(amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_MAX, kWait, &err));
  DONE(amxt_group_synchronize(group, kWait, &err));
  for (i = 0; i < 6; ++i) EXPECT(data[i] == 1.f);
  tensor.device = 1;
  REFUSED(AMXT_E_INVALID_ARGUMENT, "the memory is of device 1, and the group uses device 0",
          amxt_group_broadcast(group, &tensor, 0, kWait, &err));
  DONE(amxt_group_info(group, &json, &err));
  EXPECT(json != NULL && strstr(json, "\"device_collectives\":{\"transport\":\"nccl\"") != NULL);
  amxt_string_destroy(json);
}

/* The engine of the group has no context of CUDA of its own. */
static void call_default_stream(amxt_group* group, int rank) {
  float data[2] = {1.f, 2.f};
  amxt_tensor tensor = floats(data, 2);
  amxt_group* part = NULL;
  DONE(amxt_group_synchronize(group, kWait, &err)); /* nothing was put anywhere */
  tensor.memory = AMXT_MEMORY_CUDA;
  tensor.device = 3;
  DONE(amxt_group_split(group, 0, -rank, kWait, &part, &err));
  DONE(amxt_group_allreduce(part, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  DONE(amxt_group_synchronize(part, kWait, &err));
  EXPECT(data[0] == 2.f && data[1] == 4.f);
  DONE(amxt_group_finalize(part, kWait, &err));
  amxt_group_destroy(part);
  tensor.device = 9;
  REFUSED(AMXT_E_INVALID_ARGUMENT, "NCCL on rank 0: CUDA device 9: invalid device ordinal",
          amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
}

static void device_memory_goes_by_nccl(void** state) {
  (void)state;
  setenv("AMXTRAIN_NCCL_LIBRARY", STUB, 1);
  setenv("AMXTRAIN_CUDA_LIBRARY", STUB, 1);
  on_ranks(2, 29647, call_device);
  on_ranks(2, 29648, call_default_stream);
  unsetenv("AMXTRAIN_NCCL_LIBRARY");
  unsetenv("AMXTRAIN_CUDA_LIBRARY");
}

static void a_receive_can_be_cancelled(void** state) {
  (void)state;
  on_ranks(2, 29646, cancel_one);
}

static void cancel_queued(amxt_group* group, int rank) {
  float data[4] = {0};
  amxt_tensor tensor = floats(data, 4);
  amxt_op *running = NULL, *queued = NULL;
  DONE(amxt_group_broadcast(group, &tensor, 0, kWait, &err));
  if (rank == 0) {
    DONE(amxt_group_recv_async(group, &tensor, 1, &running, &err));
    DONE(amxt_group_broadcast_async(group, &tensor, 0, &queued, &err));
    DONE(amxt_op_cancel(queued, &err));
    pthread_barrier_wait(&all_here);
    DONE(amxt_op_wait(running, kWait, &err));
    REFUSED(AMXT_E_CANCELLED, "cancelled", amxt_op_wait(queued, kWait, &err));
    amxt_op_destroy(running);
    amxt_op_destroy(queued);
  } else {
    amxt_error refusal = AMXT_ERROR_INIT;
    pthread_barrier_wait(&all_here);
    DONE(amxt_group_send(group, &tensor, 0, kWait, &err));
    EXPECT(amxt_group_broadcast(group, &tensor, 0, kWait, &refusal) == AMXT_E_COMM_ABORTED);
    EXPECT(strstr(refusal.message, "rank 0 gave up: broadcast of 4 F32, root 0 was cancelled"));
  }
  DONE(amxt_group_barrier(group, kWait, &err));
}

static void a_call_cancelled_before_its_turn_is_told_to_the_others(void** state) {
  (void)state;
  pthread_barrier_init(&all_here, NULL, 2);
  on_ranks(2, 29648, cancel_queued);
  pthread_barrier_destroy(&all_here);
}

static const char* const kBeside[] = {"rank 1 calls barrier", "rank 1 calls finalize",
                                      "rank 1 calls all_reduce of 4 F32, sum",
                                      "rank 1 calls split with colour 0, key 1"};

/* Rank 0 receives from `peer`, rank 1 calls kBeside[which]. */
static amxt_status call_beside(amxt_group* group, int rank, int peer, int which, amxt_error* told) {
  float data[4] = {0};
  amxt_tensor tensor = floats(data, 4);
  amxt_group* part = NULL;
  if (rank == 0) return amxt_group_recv(group, &tensor, peer, AMXT_FOREVER, told);
  if (which == 0) return amxt_group_barrier(group, AMXT_FOREVER, told);
  if (which == 1) return amxt_group_finalize(group, AMXT_FOREVER, told);
  if (which == 2)
    return amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, AMXT_FOREVER, told);
  return amxt_group_split(group, 0, 1, AMXT_FOREVER, &part, told);
}

/* Rank 0 waits for what rank 1 cannot send before rank 0 comes to its call. */
static void wait_for_nothing(amxt_group* group, int rank, int which) {
  float data[4] = {0};
  amxt_tensor tensor = floats(data, 4);
  amxt_error told = AMXT_ERROR_INIT;
  DONE(amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  EXPECT(call_beside(group, rank, 1, which, &told) == AMXT_E_COMM_PROTOCOL);
  EXPECT(strstr(told.message, "rank 0 calls receive of 4 F32 from rank 1") != NULL);
  EXPECT(strstr(told.message, kBeside[which]) != NULL);
  self->ended = 1;
}

static void wait_beside_barrier(amxt_group* group, int rank) { wait_for_nothing(group, rank, 0); }
static void wait_beside_finalize(amxt_group* group, int rank) { wait_for_nothing(group, rank, 1); }
static void wait_beside_reduce(amxt_group* group, int rank) { wait_for_nothing(group, rank, 2); }
static void wait_beside_split(amxt_group* group, int rank) { wait_for_nothing(group, rank, 3); }

/* The same in a group that was split off, whose order of ranks is another; rank 2 of the group is not in it. */
static void wait_in_part(amxt_group* group, int rank, int which) {
  amxt_error told = AMXT_ERROR_INIT;
  amxt_group* part = NULL;
  DONE(amxt_group_split(group, rank == 2 ? -1 : 0, -rank, kWait, &part, &err));
  EXPECT((rank == 2 ? amxt_group_barrier(group, AMXT_FOREVER, &told)
                    : call_beside(part, rank, 0, which, &told)) == AMXT_E_COMM_PROTOCOL);
  EXPECT(told.rank == 1);
  EXPECT(strstr(told.message,
                "in the part of ranks 1, 0: rank 0 calls receive of 4 F32 from rank 1") != NULL);
  EXPECT(strstr(told.message, kBeside[which]) != NULL);
  amxt_group_destroy(part);
  self->ended = 1;
}

static void wait_in_part_beside_barrier(amxt_group* group, int rank) {
  wait_in_part(group, rank, 0);
}
static void wait_in_part_beside_finalize(amxt_group* group, int rank) {
  wait_in_part(group, rank, 1);
}
static void wait_in_part_beside_reduce(amxt_group* group, int rank) {
  wait_in_part(group, rank, 2);
}
static void wait_in_part_beside_split(amxt_group* group, int rank) { wait_in_part(group, rank, 3); }

static void a_receive_in_a_part_that_nothing_can_come_to_is_named(void** state) {
  (void)state;
  on_ranks(kRanks, 29665, wait_in_part_beside_barrier);
  on_ranks(kRanks, 29666, wait_in_part_beside_finalize);
  on_ranks(kRanks, 29667, wait_in_part_beside_reduce);
  on_ranks(kRanks, 29668, wait_in_part_beside_split);
}

static void a_receive_that_nothing_can_come_to_is_named(void** state) {
  (void)state;
  on_ranks(2, 29651, wait_beside_barrier);
  on_ranks(2, 29652, wait_beside_finalize);
  on_ranks(2, 29653, wait_beside_reduce);
  on_ranks(2, 29654, wait_beside_split);
}

/* After its barrier has met the others' collective, rank 1 may not come to that collective all the same. */
static void go_on_after_the_end(amxt_group* group, int rank) {
  float data[4] = {1, 1, 1, 1};
  amxt_tensor tensor = floats(data, 4);
  amxt_error told = AMXT_ERROR_INIT;
  DONE(amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  if (rank == 1) {
    EXPECT(amxt_group_barrier(group, AMXT_FOREVER, &told) == AMXT_E_COMM_PROTOCOL);
  }
  EXPECT(amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, AMXT_FOREVER, &told) ==
         AMXT_E_COMM_PROTOCOL);
  EXPECT(strstr(told.message, "rank 1 calls barrier") != NULL);
  self->ended = 1;
}

static void a_group_that_has_ended_begins_nothing(void** state) {
  int i;
  (void)state;
  for (i = 0; i < 10; ++i) on_ranks(2, 29655 + i, go_on_after_the_end);
}

/* Rank 1 calls something else than rank 0: both are told of both calls, and the group ends. */
static void play_two_calls(amxt_group* group, int rank, int warm, int finalizes) {
  float data[16] = {0};
  amxt_tensor tensor = floats(data, 16);
  amxt_error refusal = AMXT_ERROR_INIT;
  if (warm) DONE(amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
  if (rank == 0) {
    amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, AMXT_FOREVER, &refusal);
  } else if (finalizes) {
    amxt_group_finalize(group, AMXT_FOREVER, &refusal);
  } else {
    amxt_group_barrier(group, AMXT_FOREVER, &refusal);
  }
  EXPECT(refusal.code == AMXT_E_COMM_PROTOCOL);
  EXPECT(strstr(refusal.message, "rank 0 calls all_reduce of 16 F32, sum") != NULL);
  EXPECT(strstr(refusal.message, finalizes ? "rank 1 calls finalize" : "rank 1 calls barrier") !=
         NULL);
  REFUSED(AMXT_E_COMM_PROTOCOL, "the ranks disagree",
          amxt_group_barrier(group, AMXT_FOREVER, &err));
  self->ended = 1;
}

static void barrier_cold(amxt_group* group, int rank) { play_two_calls(group, rank, 0, 0); }
static void barrier_warm(amxt_group* group, int rank) { play_two_calls(group, rank, 1, 0); }
static void finalize_cold(amxt_group* group, int rank) { play_two_calls(group, rank, 0, 1); }
static void finalize_warm(amxt_group* group, int rank) { play_two_calls(group, rank, 1, 1); }

static void a_barrier_or_finalize_against_a_collective_is_named(void** state) {
  (void)state;
  on_ranks(2, 29649, barrier_cold);
  on_ranks(2, 29650, barrier_warm);
  on_ranks(2, 29651, finalize_cold);
  on_ranks(2, 29652, finalize_warm);
}

/* The first collective, which opens the others, of a peer that never comes. */
static void cancel_first(amxt_group* group, int rank) {
  float data[4] = {0};
  amxt_tensor tensor = floats(data, 4);
  amxt_op* op = NULL;
  if (rank == 0) {
    DONE(amxt_group_broadcast_async(group, &tensor, 0, &op, &err));
    usleep(20000); /* so that it most likely runs; queued, it ends alike */
    DONE(amxt_op_cancel(op, &err));
    REFUSED(AMXT_E_CANCELLED, "cancelled", amxt_op_wait(op, AMXT_SECONDS(5), &err));
    amxt_op_destroy(op);
    pthread_barrier_wait(&all_here);
  } else {
    pthread_barrier_wait(&all_here);
    REFUSED(AMXT_E_COMM_ABORTED, "cancelled its wait",
            amxt_group_broadcast(group, &tensor, 0, AMXT_FOREVER, &err));
  }
  self->ended = 1;
}

static void the_first_collective_can_be_cancelled(void** state) {
  (void)state;
  pthread_barrier_init(&all_here, NULL, 2);
  on_ranks(2, 29653, cancel_first);
  pthread_barrier_destroy(&all_here);
}

static void memory_of_two_kinds(amxt_group* group, int rank) {
  float data[4] = {0};
  amxt_tensor tensor = floats(data, 4);
  if (rank == 1) tensor.memory = AMXT_MEMORY_CUDA;
  REFUSED(AMXT_E_COMM_PROTOCOL, "rank 1 calls the first call in device memory",
          amxt_group_allreduce(group, &tensor, &tensor, AMXT_REDUCE_SUM, kWait, &err));
}

static void memory_of_two_kinds_is_named(void** state) {
  (void)state;
  setenv("AMXTRAIN_NCCL_LIBRARY", STUB, 1);
  setenv("AMXTRAIN_CUDA_LIBRARY", STUB, 1);
  on_ranks(2, 29654, memory_of_two_kinds);
  unsetenv("AMXTRAIN_NCCL_LIBRARY");
  unsetenv("AMXTRAIN_CUDA_LIBRARY");
}

static void bad_arguments_are_refused_by_name(void** state) {
  struct fixture* f = fixture_new();
  float data[4] = {1, 2, 3, 4};
  amxt_tensor a = floats(data, 2), b = floats(data + 2, 2), c = floats(data + 1, 2);
  int64_t two[1] = {2}, three[1] = {3};
  amxt_op* op = NULL;
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  OK(amxt_group_allreduce(f->group, &a, &b, AMXT_REDUCE_SUM, kWait, &err));
  assert_true(data[2] == 1.f && data[3] == 2.f);
  OK(amxt_group_allgather(f->group, &a, &b, two, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "send and receive overlap",
        amxt_group_allreduce(f->group, &a, &c, AMXT_REDUCE_SUM, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "reduce is 4",
        amxt_group_allreduce(f->group, &a, &b, 4, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "send is NULL",
        amxt_group_allreduce(f->group, NULL, &b, AMXT_REDUCE_SUM, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "sum to 3",
        amxt_group_allgather(f->group, &a, &b, three, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "root is 1", amxt_group_broadcast(f->group, &a, 1, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "this rank itself", amxt_group_send(f->group, &a, 0, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "peer is -1", amxt_group_recv(f->group, &a, -1, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "op is NULL",
        amxt_group_broadcast_async(f->group, &a, 0, NULL, &err));
  b.count = 1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "send has 2 elements and receive 1",
        amxt_group_allreduce(f->group, &a, &b, AMXT_REDUCE_SUM, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "sum to 2",
        amxt_group_allgather(f->group, &a, &b, NULL, kWait, &err));
  b.count = 2;
  b.dtype = AMXT_DTYPE_INT32;
  FAILS(AMXT_E_INVALID_ARGUMENT, "send is F32 and receive is I32",
        amxt_group_allreduce(f->group, &a, &b, AMXT_REDUCE_SUM, kWait, &err));
  a.dtype = AMXT_DTYPE_FLOAT64;
  FAILS(AMXT_E_INVALID_ARGUMENT, "tensor.dtype is 11 (F64)",
        amxt_group_broadcast(f->group, &a, 0, kWait, &err));
  a.dtype = AMXT_DTYPE_FLOAT32;
  a.count = INT64_MAX / 2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "tensor.count",
        amxt_group_broadcast(f->group, &a, 0, kWait, &err));
  a.count = 2;
  a.data = NULL;
  FAILS(AMXT_E_INVALID_ARGUMENT, "tensor.data is NULL",
        amxt_group_broadcast(f->group, &a, 0, kWait, &err));
  a.data = data;
  a.memory = AMXT_MEMORY_CUDA;
  setenv("AMXTRAIN_NCCL_LIBRARY", "libno_nccl.so.2", 1);
  FAILS(AMXT_E_NOT_FOUND, "libno_nccl.so.2", amxt_group_broadcast(f->group, &a, 0, kWait, &err));
  unsetenv("AMXTRAIN_NCCL_LIBRARY");
  b.dtype = AMXT_DTYPE_FLOAT32;
  FAILS(AMXT_E_INVALID_ARGUMENT, "in different memory",
        amxt_group_allreduce(f->group, &a, &b, AMXT_REDUCE_SUM, kWait, &err));
  a.memory = 7;
  FAILS(AMXT_E_INVALID_ARGUMENT, "tensor.memory is 7",
        amxt_group_broadcast(f->group, &a, 0, kWait, &err));
  amxt_tensor_init(&a, sizeof(a));
  a.struct_size = 3;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_tensor", amxt_group_broadcast(f->group, &a, 0, kWait, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "group is NULL",
        amxt_group_broadcast_async(NULL, &a, 0, &op, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "part is NULL",
        amxt_group_split(f->group, 0, 0, kWait, NULL, &err));
  fixture_free(f);
}

static void a_part_trains_no_model(void** state) {
  struct fixture* f = fixture_new();
  amxt_group* part = NULL;
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  OK(amxt_group_split(f->group, 3, 0, kWait, &part, &err));
  FAILS(AMXT_E_UNSUPPORTED, "trains no model",
        amxt_trainer_create(f->runtime, part, NULL, NULL, &f->trainer, &err));
  amxt_group_destroy(f->group); /* the part keeps what it needs */
  f->group = NULL;
  OK(amxt_group_barrier(part, kWait, &err));
  amxt_group_destroy(part);
  fixture_free(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_collective_does_what_it_says),
      cmocka_unit_test(asynchronous_calls_run_in_the_order_of_submission),
      cmocka_unit_test(groups_are_split),
      cmocka_unit_test(a_mismatch_is_named_on_all_ranks),
      cmocka_unit_test(a_receive_that_nothing_can_come_to_is_named),
      cmocka_unit_test(a_receive_in_a_part_that_nothing_can_come_to_is_named),
      cmocka_unit_test(a_group_that_has_ended_begins_nothing),
      cmocka_unit_test(a_deadline_ends_the_collectives_of_all_ranks),
      cmocka_unit_test(device_memory_goes_by_nccl),
      cmocka_unit_test(a_receive_can_be_cancelled),
      cmocka_unit_test(a_call_cancelled_before_its_turn_is_told_to_the_others),
      cmocka_unit_test(a_barrier_or_finalize_against_a_collective_is_named),
      cmocka_unit_test(the_first_collective_can_be_cancelled),
      cmocka_unit_test(memory_of_two_kinds_is_named),
      cmocka_unit_test(bad_arguments_are_refused_by_name),
      cmocka_unit_test(a_part_trains_no_model),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
