/* Section 12 of the header: checkpoints. */
#include "fixture.h"

#define LONG SECONDS_OF_A_TEST

static void step_times(struct fixture* f, int times) {
  while (times-- > 0) OK(amxt_trainer_step(f->trainer, &f->batch, NULL, LONG, &err));
}

static void read_norm(struct fixture* f, int32_t kind, float* values) {
  OK(amxt_trainer_read_rows(f->trainer, "model.norm.weight", kind, 0, kHidden, values, kHidden,
                            LONG, &err));
}

static void new_trainer(struct fixture* f, const amxt_trainer_options* options) {
  amxt_trainer_destroy(f->trainer);
  f->trainer = NULL;
  OK(amxt_trainer_create(f->runtime, f->group, f->model, options, &f->trainer, &err));
}

static void a_resumed_trainer_goes_on_bit_for_bit(void** state) {
  struct fixture* f = fixture_with_trainer();
  amxt_trainer_options options = fixture_trainer_options();
  float weight[kHidden], moment[kHidden], resumed[kHidden];
  (void)state;
  options.total_steps = 10;
  new_trainer(f, &options);
  OK(amxt_trainer_load(f->trainer, f->model_path, LONG, &err));
  step_times(f, 2);
  OK(amxt_trainer_save(f->trainer, f->output, LONG, &err));
  FAILS(AMXT_E_EXISTS, "step-000002", amxt_trainer_save(f->trainer, f->output, LONG, &err));
  step_times(f, 1);
  read_norm(f, AMXT_ROWS_WEIGHT, weight);
  read_norm(f, AMXT_ROWS_SECOND_MOMENT, moment);

  new_trainer(f, &options);
  OK(amxt_trainer_resume(f->trainer, f->output, LONG, &err));
  assert_int_equal(state_step(f->trainer), 2);
  step_times(f, 1);
  read_norm(f, AMXT_ROWS_WEIGHT, resumed);
  assert_memory_equal(resumed, weight, sizeof(weight));
  read_norm(f, AMXT_ROWS_SECOND_MOMENT, resumed);
  assert_memory_equal(resumed, moment, sizeof(moment));

  options.total_steps = 20;
  new_trainer(f, &options);
  FAILS(AMXT_E_MISMATCH, "20", amxt_trainer_resume(f->trainer, f->output, LONG, &err));
  options.reschedule = 1;
  new_trainer(f, &options);
  OK(amxt_trainer_resume(f->trainer, f->output, LONG, &err));
  fixture_free(f);
}

static void a_checkpoint_is_told_and_verified(void** state) {
  struct fixture* f = fixture_loaded();
  char path[256], *json = NULL;
  FILE* file;
  (void)state;
  step_times(f, 1);
  OK(amxt_trainer_save(f->trainer, f->output, LONG, &err));
  OK(amxt_checkpoint_info(f->runtime, f->output, &json, &err));
  HAS(json, "step-000001");
  HAS(json, "\"world_size\"");
  amxt_string_destroy(json);
  OK(amxt_checkpoint_verify(f->runtime, f->output, NULL, NULL, LONG, &err));
  FAILS(AMXT_E_TIMEOUT, "",
        amxt_checkpoint_verify(f->runtime, f->output, NULL, NULL, AMXT_POLL, &err));

  snprintf(path, sizeof(path), "%s/latest/rank-00000-of-00001.safetensors", f->output);
  file = fopen(path, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, -100, SEEK_END), 0);
  fputc(0x55, file);
  fputc(0xAA, file);
  fclose(file);
  FAILS(AMXT_E_CORRUPT, "rank-00000-of-00001.safetensors",
        amxt_checkpoint_verify(f->runtime, f->output, NULL, NULL, LONG, &err));
  fixture_free(f);
}

static int32_t refuse(const amxt_progress* progress, void* user_data) {
  *(int32_t*)user_data = progress->stage;
  return 1;
}

static void progress_can_end_a_verification(void** state) {
  struct fixture* f = fixture_loaded();
  int32_t stage = 0;
  (void)state;
  OK(amxt_trainer_save(f->trainer, f->output, LONG, &err));
  FAILS(AMXT_E_USER, "callback",
        amxt_checkpoint_verify(f->runtime, f->output, refuse, &stage, LONG, &err));
  assert_int_equal(stage, AMXT_STAGE_VERIFY);
  fixture_free(f);
}

static void progress_can_end_a_load(void** state) {
  struct fixture* f = fixture_with_trainer();
  amxt_trainer_options options = fixture_trainer_options();
  amxt_trainer_state now = AMXT_TRAINER_STATE_INIT;
  int32_t stage = 0;
  (void)state;
  options.progress = refuse;
  options.progress_user_data = &stage;
  new_trainer(f, &options);
  FAILS(AMXT_E_USER, "callback", amxt_trainer_load(f->trainer, f->model_path, LONG, &err));
  assert_int_equal(stage, AMXT_STAGE_LOAD);
  OK(amxt_trainer_get_state(f->trainer, &now, &err));
  assert_int_equal(now.status, AMXT_TRAINER_CREATED);
  fixture_free(f);
}

static void an_export_is_a_model(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_model* exported = NULL;
  (void)state;
  step_times(f, 1);
  OK(amxt_trainer_export(f->trainer, f->output, LONG, &err));
  OK(amxt_model_open(f->runtime, f->output, &exported, &err));
  OK(amxt_model_check(exported, &err));
  amxt_model_destroy(exported);
  OK(amxt_trainer_export(f->trainer, f->output, LONG, &err)); /* replaces it */
  FAILS(AMXT_E_EXISTS, "", amxt_trainer_export(f->trainer, f->folder, LONG, &err));
  fixture_free(f);
}

static void what_is_no_checkpoint_is_refused(void** state) {
  struct fixture* f = fixture_with_trainer();
  char* json = NULL;
  (void)state;
  FAILS(AMXT_E_NOT_FOUND, "nowhere", amxt_trainer_resume(f->trainer, "/nowhere", LONG, &err));
  FAILS(AMXT_E_NOT_FOUND, "nowhere", amxt_trainer_load(f->trainer, "/nowhere", LONG, &err));
  FAILS(AMXT_E_NOT_FOUND, "nowhere", amxt_checkpoint_info(f->runtime, "/nowhere", &json, &err));
  FAILS(AMXT_E_NOT_FOUND, "nowhere",
        amxt_checkpoint_verify(f->runtime, "/nowhere", NULL, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "path is NULL",
        amxt_checkpoint_info(f->runtime, NULL, &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL", amxt_checkpoint_info(f->runtime, "x", NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL", amxt_checkpoint_info(NULL, "x", &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "path is NULL",
        amxt_checkpoint_verify(f->runtime, NULL, NULL, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_checkpoint_verify(NULL, "x", NULL, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "path is NULL", amxt_trainer_resume(f->trainer, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "directory is NULL",
        amxt_trainer_load(f->trainer, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "directory is NULL",
        amxt_trainer_export(f->trainer, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "output is NULL", amxt_trainer_save(f->trainer, NULL, LONG, &err));
  assert_null(json);
  fixture_free(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_resumed_trainer_goes_on_bit_for_bit),
      cmocka_unit_test(a_checkpoint_is_told_and_verified),
      cmocka_unit_test(progress_can_end_a_verification),
      cmocka_unit_test(progress_can_end_a_load),
      cmocka_unit_test(an_export_is_a_model),
      cmocka_unit_test(what_is_no_checkpoint_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
