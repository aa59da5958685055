/* Section 5 of the header: the runtime. */
#include <sys/wait.h>

#include "fixture.h"

static void runtime_tells_its_options(void** state) {
  struct fixture* f = fixture_new();
  char* json = NULL;
  (void)state;
  OK(amxt_runtime_info(f->runtime, &json, &err));
  HAS(json, "\"threads\":1");
  HAS(json, "\"log_level\":\"debug\"");
  HAS(json, "\"cpu\":{");
  amxt_string_destroy(json);
  fixture_free(f);
}

static void two_runtimes_live_side_by_side(void** state) {
  struct fixture* f = fixture_new();
  amxt_runtime* second = NULL;
  char* json = NULL;
  (void)state;
  OK(amxt_runtime_create(NULL, &second, &err));
  amxt_runtime_destroy(f->runtime);
  f->runtime = second;
  OK(amxt_runtime_info(second, &json, &err));
  amxt_string_destroy(json);
  fixture_free(f);
}

static void bad_options_are_refused_by_name(void** state) {
  amxt_runtime_options options = AMXT_RUNTIME_OPTIONS_INIT;
  amxt_runtime* runtime = NULL;
  (void)state;
  options.threads = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "threads is 0", amxt_runtime_create(&options, &runtime, &err));
  options.threads = 1025;
  FAILS(AMXT_E_INVALID_ARGUMENT, "threads is 1025", amxt_runtime_create(&options, &runtime, &err));
  options.threads = AMXT_UNSET_I32;
  options.pin_threads = 2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "pin_threads is 2", amxt_runtime_create(&options, &runtime, &err));
  options.pin_threads = 0;
  options.log_level = 9;
  FAILS(AMXT_E_INVALID_ARGUMENT, "log level 9", amxt_runtime_create(&options, &runtime, &err));
  assert_null(runtime);
}

static void options_that_were_not_set_up_are_refused_by_name(void** state) {
  amxt_runtime_options options;
  amxt_runtime* runtime = NULL;
  (void)state;
  memset(&options, 0, sizeof(options));
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_runtime_options: struct_size is 0",
        amxt_runtime_create(&options, &runtime, &err));
  options.struct_size = sizeof(options) - 1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_runtime_options",
        amxt_runtime_create(&options, &runtime, &err));
  options.struct_size = sizeof(options) + 8;
  FAILS(AMXT_E_INVALID_ARGUMENT, "newer header", amxt_runtime_create(&options, &runtime, &err));
  assert_null(runtime);
}

static void an_unknown_level_in_the_environment_is_named(void** state) {
  amxt_runtime* runtime = NULL;
  (void)state;
  setenv("AMXTRAIN_LOG", "loud", 1);
  FAILS(AMXT_E_INVALID_ARGUMENT, "AMXTRAIN_LOG is 'loud'",
        amxt_runtime_create(NULL, &runtime, &err));
  setenv("AMXTRAIN_LOG", "error", 1);
  OK(amxt_runtime_create(NULL, &runtime, &err));
  unsetenv("AMXTRAIN_LOG");
  amxt_runtime_destroy(runtime);
}

static void log_goes_where_it_was_last_set_to(void** state) {
  struct fixture* f = fixture_new();
  struct fixture other;
  int before;
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  assert_true(f->lines > 0);
  before = f->lines;
  memset(&other, 0, sizeof(other));
  OK(amxt_runtime_set_log(f->runtime, AMXT_LOG_DEBUG, fixture_log, &other, &err));
  amxt_group_destroy(f->group);
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  assert_int_equal(f->lines, before);
  assert_true(other.lines > 0);
  before = other.lines;
  OK(amxt_runtime_set_log(f->runtime, AMXT_LOG_OFF, fixture_log, &other, &err));
  amxt_group_destroy(f->group);
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  assert_int_equal(other.lines, before);
  FAILS(AMXT_E_INVALID_ARGUMENT, "log level 4",
        amxt_runtime_set_log(f->runtime, 4, fixture_log, &other, &err));
  fixture_free(f);
}

static void cancel_without_calls_does_nothing(void** state) {
  struct fixture* f = fixture_new();
  char* json = NULL;
  (void)state;
  OK(amxt_runtime_cancel(f->runtime, &err));
  OK(amxt_runtime_info(f->runtime, &json, &err));
  amxt_string_destroy(json);
  fixture_free(f);
}

static int32_t cancel_from_progress(const amxt_progress* progress, void* user_data) {
  (void)progress;
  return amxt_runtime_cancel((amxt_runtime*)user_data, NULL);
}

static void cancel_ends_a_call_under_way_and_no_later_one(void** state) {
  struct fixture* f = fixture_new();
  amxt_write_random_options options = AMXT_WRITE_RANDOM_OPTIONS_INIT;
  char* config = NULL;
  (void)state;
  OK(amxt_model_preset("tiny", &config, &err));
  options.progress = cancel_from_progress;
  options.progress_user_data = f->runtime;
  FAILS(AMXT_E_CANCELLED, "",
        amxt_model_write_random(f->runtime, config, f->model_path, &options, AMXT_FOREVER, &err));
  assert_int_equal(access(f->model_path, F_OK), -1);
  OK(amxt_model_write_random(f->runtime, config, f->model_path, NULL, AMXT_FOREVER, &err));
  amxt_string_destroy(config);
  fixture_free(f);
}

static void null_handles_are_refused(void** state) {
  struct fixture* f = fixture_new();
  char* json = NULL;
  (void)state;
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL", amxt_runtime_create(NULL, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL", amxt_runtime_info(NULL, &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL", amxt_runtime_info(f->runtime, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_runtime_set_log(NULL, 0, NULL, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL", amxt_runtime_cancel(NULL, &err));
  amxt_runtime_destroy(NULL);
  fixture_free(f);
}

static void a_forked_child_is_refused(void** state) {
  struct fixture* f = fixture_new();
  int status = 0;
  pid_t child;
  (void)state;
  child = fork();
  if (child == 0) {
    char* json = NULL;
    _exit(amxt_runtime_info(f->runtime, &json, NULL) == AMXT_E_FORKED && json == NULL ? 0 : 1);
  }
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  fixture_free(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(runtime_tells_its_options),
      cmocka_unit_test(two_runtimes_live_side_by_side),
      cmocka_unit_test(bad_options_are_refused_by_name),
      cmocka_unit_test(options_that_were_not_set_up_are_refused_by_name),
      cmocka_unit_test(an_unknown_level_in_the_environment_is_named),
      cmocka_unit_test(log_goes_where_it_was_last_set_to),
      cmocka_unit_test(cancel_without_calls_does_nothing),
      cmocka_unit_test(cancel_ends_a_call_under_way_and_no_later_one),
      cmocka_unit_test(null_handles_are_refused),
      cmocka_unit_test(a_forked_child_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
