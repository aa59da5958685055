/* Sections 1 to 4 of the header: version, build, status, error, types, and the init functions of all structs. */
#include "fixture.h"

static void version_is_that_of_the_header(void** state) {
  char text[32];
  (void)state;
  assert_int_equal(amxt_version(), AMXT_VERSION);
  snprintf(text, sizeof(text), "%d.%d.%d", AMXT_VERSION_MAJOR, AMXT_VERSION_MINOR,
           AMXT_VERSION_PATCH);
  assert_string_equal(amxt_version_string(), text);
}

static void build_and_cpu_are_told_as_json(void** state) {
  (void)state;
  HAS(amxt_build_info(), "\"commit\"");
  HAS(amxt_build_info(), "\"oneDNN\"");
  HAS(amxt_build_info(), "\"optional\":{\"NCCL\":{\"found\":");
  HAS(amxt_cpu_info(), "\"isa\"");
  HAS(amxt_cpu_info(), "\"threads_reason\"");
  assert_ptr_equal(amxt_cpu_info(), amxt_cpu_info());
}

static void statuses_have_names_and_a_fatal_band(void** state) {
  (void)state;
  assert_string_equal(amxt_status_name(AMXT_OK), "AMXT_OK");
  assert_string_equal(amxt_status_name(AMXT_E_NO_SPACE), "AMXT_E_NO_SPACE");
  assert_string_equal(amxt_status_name(AMXT_E_COMM_PEER_LOST), "AMXT_E_COMM_PEER_LOST");
  assert_string_equal(amxt_status_name(-7), "AMXT_E_UNKNOWN");
  assert_int_equal(amxt_status_is_fatal(AMXT_E_COMM_PEER_LOST), 1);
  assert_int_equal(amxt_status_is_fatal(AMXT_E_COMM_PROTOCOL), 1);
  assert_int_equal(amxt_status_is_fatal(AMXT_E_INTERNAL), 0);
  assert_int_equal(amxt_status_is_fatal(AMXT_OK), 0);
  assert_int_equal(amxt_status_is_fatal(5000), 0);
}

static void types_have_the_names_of_safetensors(void** state) {
  (void)state;
  assert_string_equal(amxt_dtype_name(AMXT_DTYPE_BFLOAT16), "BF16");
  assert_string_equal(amxt_dtype_name(AMXT_DTYPE_UINT32), "U32");
  assert_string_equal(amxt_dtype_name(-1), "?");
  assert_string_equal(amxt_dtype_name(99), "?");
}

static void error_is_a_kibibyte_and_may_be_null(void** state) {
  amxt_error error;
  (void)state;
  assert_int_equal(sizeof(error), 1024);
  amxt_error_init(NULL);
  memset(&error, 0xAB, sizeof(error));
  amxt_error_init(&error);
  assert_int_equal(error.struct_size, 1024);
  assert_int_equal(error.rank, -1);
  assert_string_equal(error.message, "");
  assert_int_equal(amxt_model_preset("no such", NULL, NULL), AMXT_E_INVALID_ARGUMENT);
}

static void error_that_was_not_set_up_is_refused_and_not_written(void** state) {
  amxt_error error, before;
  char* json = NULL;
  (void)state;
  memset(&error, 0, sizeof(error));
  before = error;
  assert_int_equal(amxt_model_preset("tiny", &json, &error), AMXT_E_INVALID_ARGUMENT);
  assert_memory_equal(&error, &before, sizeof(error));
  assert_null(json);
}

static void long_messages_are_cut_and_kept_on_one_line(void** state) {
  amxt_error error = AMXT_ERROR_INIT;
  char name[4096], *json = NULL;
  (void)state;
  memset(name, 'x', sizeof(name) - 1);
  name[7] = '\n';
  name[sizeof(name) - 1] = '\0';
  assert_int_equal(amxt_model_preset(name, &json, &error), AMXT_E_NOT_FOUND);
  assert_true(strlen(error.message) < sizeof(error.message));
  assert_null(strchr(error.message, '\n'));
}

/* The macro and the function say the same, and the function keeps to the size that the caller knows. */
#define CHECK_INIT(name, macro)                                      \
  do {                                                               \
    const amxt_##name expected = macro;                              \
    union {                                                          \
      amxt_##name value;                                             \
      unsigned char bytes[sizeof(amxt_##name) + 8];                  \
    } actual;                                                        \
    memset(&actual, 0x5A, sizeof(actual));                           \
    amxt_##name##_init(&actual.value, sizeof(amxt_##name));          \
    assert_memory_equal(&actual.value, &expected, sizeof(expected)); \
    assert_int_equal(actual.bytes[sizeof(amxt_##name)], 0x5A);       \
    memset(&actual, 0x5A, sizeof(actual));                           \
    amxt_##name##_init(&actual.value, 8);                            \
    assert_int_equal(actual.value.struct_size, 8);                   \
    assert_int_equal(actual.bytes[8], 0x5A);                         \
    amxt_##name##_init(NULL, sizeof(amxt_##name));                   \
    ++checked;                                                       \
  } while (0)

static void every_struct_can_be_set_up(void** state) {
  int checked = 0;
  (void)state;
  CHECK_INIT(tensor_info, AMXT_TENSOR_INFO_INIT);
  CHECK_INIT(progress, AMXT_PROGRESS_INIT);
  CHECK_INIT(runtime_options, AMXT_RUNTIME_OPTIONS_INIT);
  CHECK_INIT(group_options, AMXT_GROUP_OPTIONS_INIT);
  CHECK_INIT(write_random_options, AMXT_WRITE_RANDOM_OPTIONS_INIT);
  CHECK_INIT(inspect_options, AMXT_INSPECT_OPTIONS_INIT);
  CHECK_INIT(plan_options, AMXT_PLAN_OPTIONS_INIT);
  CHECK_INIT(plan_totals, AMXT_PLAN_TOTALS_INIT);
  CHECK_INIT(dataset_options, AMXT_DATASET_OPTIONS_INIT);
  CHECK_INIT(token_writer_options, AMXT_TOKEN_WRITER_OPTIONS_INIT);
  CHECK_INIT(tokenize_options, AMXT_TOKENIZE_OPTIONS_INIT);
  CHECK_INIT(trainer_options, AMXT_TRAINER_OPTIONS_INIT);
  CHECK_INIT(batch, AMXT_BATCH_INIT);
  CHECK_INIT(step_metrics, AMXT_STEP_METRICS_INIT);
  CHECK_INIT(evaluation, AMXT_EVALUATION_INIT);
  CHECK_INIT(trainer_state, AMXT_TRAINER_STATE_INIT);
  CHECK_INIT(event, AMXT_EVENT_INIT);
  CHECK_INIT(run_options, AMXT_RUN_OPTIONS_INIT);
  CHECK_INIT(memory_usage, AMXT_MEMORY_USAGE_INIT);
  assert_int_equal(checked, 19); /* all of the header, amxt_error apart */
}

static void null_strings_can_be_destroyed(void** state) {
  (void)state;
  amxt_string_destroy(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(version_is_that_of_the_header),
      cmocka_unit_test(build_and_cpu_are_told_as_json),
      cmocka_unit_test(statuses_have_names_and_a_fatal_band),
      cmocka_unit_test(types_have_the_names_of_safetensors),
      cmocka_unit_test(error_is_a_kibibyte_and_may_be_null),
      cmocka_unit_test(error_that_was_not_set_up_is_refused_and_not_written),
      cmocka_unit_test(long_messages_are_cut_and_kept_on_one_line),
      cmocka_unit_test(every_struct_can_be_set_up),
      cmocka_unit_test(null_strings_can_be_destroyed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
