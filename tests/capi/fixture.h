/* What the tests of the C ABI share: a runtime whose log is kept, a folder, a tiny model, a data set, a trainer. */
#ifndef AMXT_TESTS_CAPI_FIXTURE_H_
#define AMXT_TESTS_CAPI_FIXTURE_H_

#define AMXT_ENABLE_PREVIEW
#include <amxtrain.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Last: it needs four of those above. */
/* clang-format off */
#include <cmocka.h>
/* clang-format on */

#define SECONDS_OF_A_TEST AMXT_SECONDS(120)

/* The call succeeds; `err` stays as it was. */
#define OK(call)                                                             \
  do {                                                                       \
    amxt_error err = AMXT_ERROR_INIT;                                        \
    const amxt_status status_ = (call);                                      \
    if (status_ != AMXT_OK) {                                                \
      fail_msg("%s: %s: %s", #call, amxt_status_name(status_), err.message); \
    }                                                                        \
    assert_int_equal(err.code, AMXT_OK);                                     \
    assert_string_equal(err.message, "");                                    \
  } while (0)

/* The call fails with this status, also in `err`, and a one-line message that has `part` in it. */
#define FAILS(expected, part, call)                                                                \
  do {                                                                                             \
    amxt_error err = AMXT_ERROR_INIT;                                                              \
    const amxt_status status_ = (call);                                                            \
    if (status_ != (expected) || err.code != (expected)) {                                         \
      fail_msg("%s: %s, not %s: %s", #call, amxt_status_name(status_), amxt_status_name(expected), \
               err.message);                                                                       \
    }                                                                                              \
    if (strstr(err.message, (part)) == NULL || strchr(err.message, '\n')) {                        \
      fail_msg("%s: no '%s' in the one line '%s'", #call, (part), err.message);                    \
    }                                                                                              \
  } while (0)

#define HAS(text, part)                                                               \
  do {                                                                                \
    if (strstr((text), (part)) == NULL) fail_msg("no %s in %.2000s", (part), (text)); \
  } while (0)

enum { kPositions = 16, kSamples = 2, kVocabulary = 256, kHidden = 128 };

struct fixture {
  char folder[64];
  char model_path[96];
  char data_path[96];
  char output[96];
  int32_t tokens[kSamples * kPositions];
  int lines; /* of log */
  amxt_runtime* runtime;
  amxt_group* group;
  amxt_model* model;
  amxt_dataset* dataset;
  amxt_trainer* trainer;
  amxt_batch batch;
};

static inline void fixture_log(int32_t level, const char* line, void* user_data) {
  (void)level;
  if (line != NULL) ++((struct fixture*)user_data)->lines;
}

/* A runtime and a folder. */
static inline struct fixture* fixture_new(void) {
  struct fixture* f = calloc(1, sizeof(*f));
  amxt_runtime_options options = AMXT_RUNTIME_OPTIONS_INIT;
  const amxt_batch batch = AMXT_BATCH_INIT;
  int i;
  assert_non_null(f);
  strcpy(f->folder, "/tmp/amxtrain-capi-XXXXXX");
  assert_non_null(mkdtemp(f->folder));
  snprintf(f->model_path, sizeof(f->model_path), "%s/model", f->folder);
  snprintf(f->data_path, sizeof(f->data_path), "%s/data.safetensors", f->folder);
  snprintf(f->output, sizeof(f->output), "%s/output", f->folder);
  for (i = 0; i < kSamples * kPositions; ++i) f->tokens[i] = (i * 7 + 3) % kVocabulary;
  f->batch = batch;
  f->batch.samples = kSamples;
  f->batch.sequence_length = kPositions;
  f->batch.tokens = f->tokens;
  options.threads = 1;
  options.pin_threads = 0;
  options.log_level = AMXT_LOG_DEBUG;
  options.log = fixture_log;
  options.log_user_data = f;
  OK(amxt_runtime_create(&options, &f->runtime, &err));
  return f;
}

/* And a tiny model on disk, opened. */
static inline struct fixture* fixture_with_model(void) {
  struct fixture* f = fixture_new();
  char* config = NULL;
  OK(amxt_model_preset("tiny", &config, &err));
  OK(amxt_model_write_random(f->runtime, config, f->model_path, NULL, SECONDS_OF_A_TEST, &err));
  amxt_string_destroy(config);
  OK(amxt_model_open(f->runtime, f->model_path, &f->model, &err));
  return f;
}

/* Ten documents of twenty tokens. */
static inline void fixture_write_data(struct fixture* f) {
  amxt_token_writer* writer = NULL;
  int document;
  OK(amxt_token_writer_open(f->runtime, f->data_path, NULL, &writer, &err));
  for (document = 0; document < 10; ++document) {
    OK(amxt_token_writer_add(writer, f->tokens, NULL, 20, &err));
  }
  OK(amxt_token_writer_finish(writer, &err));
  amxt_token_writer_destroy(writer);
}

static inline amxt_trainer_options fixture_trainer_options(void) {
  amxt_trainer_options options = AMXT_TRAINER_OPTIONS_INIT;
  options.sequence_length = kPositions;
  options.accumulate = kSamples;
  options.learning_rate = 1e-3;
  options.schedule = AMXT_SCHEDULE_CONSTANT;
  options.compute_dtype = AMXT_COMPUTE_FLOAT32;
  options.timeout_ns = SECONDS_OF_A_TEST;
  return options;
}

/* And a group of one, a data set, and a trainer that has no weights yet. */
static inline struct fixture* fixture_with_trainer(void) {
  struct fixture* f = fixture_with_model();
  const amxt_trainer_options options = fixture_trainer_options();
  fixture_write_data(f);
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  OK(amxt_dataset_open(f->runtime, f->data_path, NULL, &f->dataset, &err));
  OK(amxt_trainer_create(f->runtime, f->group, f->model, &options, &f->trainer, &err));
  return f;
}

static inline struct fixture* fixture_loaded(void) {
  struct fixture* f = fixture_with_trainer();
  OK(amxt_trainer_load(f->trainer, f->model_path, SECONDS_OF_A_TEST, &err));
  return f;
}

static inline void fixture_free(struct fixture* f) {
  char command[128];
  amxt_trainer_destroy(f->trainer);
  amxt_dataset_destroy(f->dataset);
  amxt_model_destroy(f->model);
  amxt_group_destroy(f->group);
  amxt_runtime_destroy(f->runtime);
  snprintf(command, sizeof(command), "rm -rf '%s'", f->folder);
  assert_int_equal(system(command), 0);
  free(f);
}

static inline int64_t state_step(const amxt_trainer* trainer) {
  amxt_trainer_state state = AMXT_TRAINER_STATE_INIT;
  OK(amxt_trainer_get_state(trainer, &state, &err));
  return state.step;
}

#endif /* AMXT_TESTS_CAPI_FIXTURE_H_ */
