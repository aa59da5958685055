/* Section 6 of the header: the group. Several ranks are tested with real processes in tests/ranks. */
#include "fixture.h"

static const char* const kVariables[] = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", NULL};

static void clear_environment(void) {
  int i;
  for (i = 0; kVariables[i] != NULL; ++i) unsetenv(kVariables[i]);
}

static void a_group_of_one_needs_nothing(void** state) {
  struct fixture* f = fixture_new();
  char* json = NULL;
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  assert_int_equal(amxt_group_rank(f->group), 0);
  assert_int_equal(amxt_group_size(f->group), 1);
  assert_int_equal(amxt_group_local_rank(f->group), 0);
  assert_int_equal(amxt_group_local_size(f->group), 1);
  assert_int_equal(amxt_group_node_count(f->group), 1);
  OK(amxt_group_info(f->group, &json, &err));
  HAS(json, "\"world_size\":1");
  HAS(json, "\"transport\":\"none\"");
  HAS(json, "\"threads\":1");
  amxt_string_destroy(json);
  OK(amxt_group_barrier(f->group, AMXT_SECONDS(5), &err));
  fixture_free(f);
}

static void an_empty_environment_is_a_group_of_one(void** state) {
  struct fixture* f = fixture_new();
  (void)state;
  clear_environment();
  OK(amxt_group_create_from_env(f->runtime, NULL, &f->group, &err));
  assert_int_equal(amxt_group_size(f->group), 1);
  fixture_free(f);
}

static void a_partial_environment_is_named(void** state) {
  struct fixture* f = fixture_new();
  (void)state;
  clear_environment();
  setenv("RANK", "0", 1);
  FAILS(AMXT_E_INVALID_ARGUMENT, "WORLD_SIZE",
        amxt_group_create_from_env(f->runtime, NULL, &f->group, &err));
  setenv("WORLD_SIZE", "1", 1);
  setenv("RANK", "1", 1);
  FAILS(AMXT_E_INVALID_ARGUMENT, "1",
        amxt_group_create_from_env(f->runtime, NULL, &f->group, &err));
  clear_environment();
  assert_null(f->group);
  fixture_free(f);
}

static void create_does_not_look_at_the_environment(void** state) {
  struct fixture* f = fixture_new();
  (void)state;
  setenv("RANK", "3", 1);
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  assert_int_equal(amxt_group_rank(f->group), 0);
  clear_environment();
  fixture_free(f);
}

static void a_launch_is_told_without_joining(void** state) {
  amxt_group_options options = AMXT_GROUP_OPTIONS_INIT;
  char* json = NULL;
  (void)state;
  clear_environment();
  OK(amxt_launch_info(NULL, &json, &err));
  HAS(json, "\"source\":\"alone\"");
  amxt_string_destroy(json);
  setenv("RANK", "1", 1);
  OK(amxt_launch_info(NULL, &json, &err));
  HAS(json, "\"launch\":null");
  HAS(json, "WORLD_SIZE is unset");
  amxt_string_destroy(json);
  options.rank = 1;
  options.world_size = 2;
  options.port = 4000;
  OK(amxt_launch_info(&options, &json, &err));
  HAS(json, "\"source\":\"options\"");
  HAS(json, "\"port\":4000");
  amxt_string_destroy(json);
  clear_environment();
  options.port = 70000;
  FAILS(AMXT_E_INVALID_ARGUMENT, "port", amxt_launch_info(&options, &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL", amxt_launch_info(NULL, NULL, &err));
}

static void a_machine_is_described(void** state) {
  char* json = NULL;
  (void)state;
  setenv("AMXTRAIN_NVML_LIBRARY", "libno_driver.so.1", 1);
  OK(amxt_topology(&json, &err));
  HAS(json, "\"numa_nodes\":[{\"node\":");
  HAS(json, "\"gpus\":[]");
  HAS(json, "no NVIDIA driver: libno_driver.so.1");
  amxt_string_destroy(json);
  unsetenv("AMXTRAIN_NVML_LIBRARY");
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL", amxt_topology(NULL, &err));
}

static void bad_options_are_refused_by_name(void** state) {
  struct fixture* f = fixture_new();
  amxt_group_options options = AMXT_GROUP_OPTIONS_INIT;
  amxt_group** out = &f->group;
  (void)state;
  options.port = 70000;
  FAILS(AMXT_E_INVALID_ARGUMENT, "port is 70000",
        amxt_group_create(f->runtime, &options, out, &err));
  amxt_group_options_init(&options, sizeof(options));
  options.world_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "world_size is 0",
        amxt_group_create(f->runtime, &options, out, &err));
  amxt_group_options_init(&options, sizeof(options));
  options.rank = 2;
  options.world_size = 2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "2", amxt_group_create(f->runtime, &options, out, &err));
  amxt_group_options_init(&options, sizeof(options));
  options.heartbeat_timeout_ns = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "heartbeat_timeout_ns is 0",
        amxt_group_create(f->runtime, &options, out, &err));
  options.heartbeat_timeout_ns = 1; /* every other rank would be lost at once */
  FAILS(AMXT_E_INVALID_ARGUMENT, "heartbeat_timeout_ns is 1, not 100000000 or more",
        amxt_group_create(f->runtime, &options, out, &err));
  amxt_group_options_init(&options, sizeof(options));
  options.allow_unauthenticated_data = 2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "allow_unauthenticated_data is 2",
        amxt_group_create(f->runtime, &options, out, &err));
  options.struct_size = 12;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_group_options",
        amxt_group_create(f->runtime, &options, out, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_group_options",
        amxt_group_create_from_env(f->runtime, &options, out, &err));
  assert_null(f->group);
  fixture_free(f);
}

static void a_missing_peer_ends_in_time(void** state) {
  struct fixture* f = fixture_new();
  amxt_group_options options = AMXT_GROUP_OPTIONS_INIT;
  amxt_error err = AMXT_ERROR_INIT;
  amxt_status status;
  (void)state;
  options.rank = 1;
  options.world_size = 2;
  options.local_rank = 1;
  options.local_size = 2;
  options.address = "127.0.0.1";
  options.port = 1; /* nobody listens */
  options.connect_timeout_ns = AMXT_SECONDS(1);
  status = amxt_group_create(f->runtime, &options, &f->group, &err);
  assert_int_not_equal(status, AMXT_OK);
  assert_int_equal(err.code, status);
  assert_null(f->group);
  fixture_free(f);
}

static void after_finalize_there_is_nothing_but_destroy(void** state) {
  struct fixture* f = fixture_new();
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  OK(amxt_group_finalize(f->group, AMXT_SECONDS(5), &err));
  OK(amxt_group_finalize(f->group, AMXT_SECONDS(5), &err));
  FAILS(AMXT_E_INVALID_STATE, "finalized", amxt_group_barrier(f->group, AMXT_SECONDS(5), &err));
  fixture_free(f);
}

static void after_abort_calls_tell_the_reason(void** state) {
  struct fixture* f = fixture_new();
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  OK(amxt_group_abort(f->group, "the test says so", &err));
  OK(amxt_group_abort(f->group, NULL, &err));
  FAILS(AMXT_E_COMM_ABORTED, "the test says so",
        amxt_group_barrier(f->group, AMXT_SECONDS(5), &err));
  fixture_free(f);
}

/* Three bytes a character: at two of three lengths the end of the message falls within one. */
static void a_long_message_ends_with_a_whole_character(void** state) {
  (void)state;
  for (size_t shift = 0; shift < 3; ++shift) {
    struct fixture* f = fixture_new();
    char reason[4096] = "";
    amxt_error error = AMXT_ERROR_INIT;
    for (size_t i = 0; i < shift; ++i) strcat(reason, "x");
    while (strlen(reason) < 3000) strcat(reason, "\xe2\x82\xac");
    OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
    OK(amxt_group_abort(f->group, reason, &err));
    assert_int_equal(amxt_group_barrier(f->group, AMXT_SECONDS(5), &error), AMXT_E_COMM_ABORTED);
    const size_t length = strlen(error.message);
    assert_true(length > sizeof(error.message) - 4);
    assert_string_equal(error.message + length - 3, "\xe2\x82\xac");
    fixture_free(f);
  }
}

static void a_group_outlives_its_runtime(void** state) {
  struct fixture* f = fixture_new();
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  amxt_runtime_destroy(f->runtime);
  f->runtime = NULL;
  OK(amxt_group_barrier(f->group, AMXT_SECONDS(5), &err));
  fixture_free(f);
}

static void null_arguments_are_refused(void** state) {
  struct fixture* f = fixture_new();
  char* json = NULL;
  (void)state;
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL", amxt_group_create(NULL, NULL, &f->group, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "group is NULL", amxt_group_create(f->runtime, NULL, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_group_create_from_env(NULL, NULL, &f->group, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "group is NULL", amxt_group_info(NULL, &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "group is NULL", amxt_group_barrier(NULL, 0, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "group is NULL", amxt_group_finalize(NULL, 0, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "group is NULL", amxt_group_abort(NULL, "", &err));
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL", amxt_group_info(f->group, NULL, &err));
  assert_int_equal(amxt_group_rank(NULL), -1);
  assert_int_equal(amxt_group_size(NULL), -1);
  assert_int_equal(amxt_group_local_rank(NULL), -1);
  assert_int_equal(amxt_group_local_size(NULL), -1);
  assert_int_equal(amxt_group_node_count(NULL), -1);
  amxt_group_destroy(NULL);
  fixture_free(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_group_of_one_needs_nothing),
      cmocka_unit_test(an_empty_environment_is_a_group_of_one),
      cmocka_unit_test(a_partial_environment_is_named),
      cmocka_unit_test(create_does_not_look_at_the_environment),
      cmocka_unit_test(a_launch_is_told_without_joining),
      cmocka_unit_test(a_machine_is_described),
      cmocka_unit_test(bad_options_are_refused_by_name),
      cmocka_unit_test(a_missing_peer_ends_in_time),
      cmocka_unit_test(after_finalize_there_is_nothing_but_destroy),
      cmocka_unit_test(after_abort_calls_tell_the_reason),
      cmocka_unit_test(a_long_message_ends_with_a_whole_character),
      cmocka_unit_test(a_group_outlives_its_runtime),
      cmocka_unit_test(null_arguments_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
