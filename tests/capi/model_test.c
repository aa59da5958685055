/* Sections 8 and 9 of the header: models and plans. */
#include "fixture.h"

static void presets_are_configurations(void** state) {
  const char* const names[] = {"tiny", "60m", "300m", "1b", "8b"};
  char* json = NULL;
  size_t i;
  (void)state;
  for (i = 0; i < sizeof(names) / sizeof(names[0]); ++i) {
    OK(amxt_model_preset(names[i], &json, &err));
    HAS(json, "hidden_size");
    amxt_string_destroy(json);
    json = NULL;
  }
  FAILS(AMXT_E_NOT_FOUND, "tiny", amxt_model_preset("2b", &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "name is NULL", amxt_model_preset(NULL, &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL", amxt_model_preset("tiny", NULL, &err));
  assert_null(json);
}

static void a_written_model_opens(void** state) {
  struct fixture* f = fixture_with_model();
  amxt_tensor_info info = AMXT_TENSOR_INFO_INIT;
  char* json = NULL;
  int64_t count = 0;
  (void)state;
  OK(amxt_model_check(f->model, &err));
  OK(amxt_model_info(f->model, &json, &err));
  HAS(json, "\"vocab_size\":256");
  HAS(json, "\"weights\":true");
  amxt_string_destroy(json);
  OK(amxt_model_tensor_count(f->model, &count, &err));
  assert_true(count > 10);
  OK(amxt_model_tensor_info(f->model, 0, &info, &err));
  assert_string_equal(info.name, "model.embed_tokens.weight");
  assert_int_equal(info.dtype, AMXT_DTYPE_BFLOAT16);
  assert_int_equal(info.dimensions, 2);
  assert_int_equal(info.shape[0], kVocabulary);
  assert_int_equal(info.shape[1], kHidden);
  assert_int_equal(info.bytes, kVocabulary * kHidden * 2);
  HAS(info.file, "model.safetensors");
  FAILS(AMXT_E_INVALID_ARGUMENT, "tensor -1", amxt_model_tensor_info(f->model, -1, &info, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "tensor", amxt_model_tensor_info(f->model, count, &info, &err));
  info.struct_size = 4;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_tensor_info",
        amxt_model_tensor_info(f->model, 0, &info, &err));
  fixture_free(f);
}

static void a_model_without_weights_opens_and_is_told(void** state) {
  struct fixture* f = fixture_with_model();
  char path[256];
  int64_t count = -1;
  (void)state;
  amxt_model_destroy(f->model);
  f->model = NULL;
  snprintf(path, sizeof(path), "%s/model.safetensors", f->model_path);
  assert_int_equal(unlink(path), 0);
  OK(amxt_model_open(f->runtime, f->model_path, &f->model, &err));
  FAILS(AMXT_E_NOT_FOUND, "model", amxt_model_check(f->model, &err));
  OK(amxt_model_tensor_count(f->model, &count, &err));
  assert_int_equal(count, 0);
  fixture_free(f);
}

static void what_is_no_model_is_refused(void** state) {
  struct fixture* f = fixture_new();
  char path[256];
  FILE* file;
  (void)state;
  FAILS(AMXT_E_NOT_FOUND, "config.json", amxt_model_open(f->runtime, f->folder, &f->model, &err));
  snprintf(path, sizeof(path), "%s/config.json", f->folder);
  file = fopen(path, "w");
  assert_non_null(file);
  fputs("{\"model_type\": \"llama\", ", file);
  fclose(file);
  FAILS(AMXT_E_FORMAT, "config.json", amxt_model_open(f->runtime, f->folder, &f->model, &err));
  file = fopen(path, "w");
  fputs("{\"model_type\": \"mamba\"}", file);
  fclose(file);
  FAILS(AMXT_E_UNSUPPORTED, "mamba", amxt_model_open(f->runtime, f->folder, &f->model, &err));
  assert_null(f->model);
  fixture_free(f);
}

struct seen {
  int calls;
  int32_t stage;
  int64_t done, total;
  int32_t answer;
};

static int32_t see(const amxt_progress* progress, void* user_data) {
  struct seen* seen = user_data;
  assert_non_null(progress->item_name);
  ++seen->calls;
  seen->stage = progress->stage;
  seen->done = progress->done_bytes;
  seen->total = progress->total_bytes;
  return seen->answer;
}

static void writing_tells_its_progress_and_can_be_ended(void** state) {
  struct fixture* f = fixture_new();
  amxt_write_random_options options = AMXT_WRITE_RANDOM_OPTIONS_INIT;
  struct seen seen = {0, 0, 0, 0, 1};
  char* config = NULL;
  (void)state;
  OK(amxt_model_preset("tiny", &config, &err));
  options.progress = see;
  options.progress_user_data = &seen;
  FAILS(AMXT_E_USER, "callback",
        amxt_model_write_random(f->runtime, config, f->model_path, &options, AMXT_FOREVER, &err));
  assert_int_equal(access(f->model_path, F_OK), -1);
  seen.answer = 0;
  OK(amxt_model_write_random(f->runtime, config, f->model_path, &options, AMXT_FOREVER, &err));
  assert_int_equal(seen.stage, AMXT_STAGE_WRITE);
  assert_int_equal(seen.done, seen.total);
  FAILS(AMXT_E_EXISTS, "model",
        amxt_model_write_random(f->runtime, config, f->model_path, &options, AMXT_FOREVER, &err));
  amxt_string_destroy(config);
  fixture_free(f);
}

static void bad_arguments_of_writing_are_refused(void** state) {
  struct fixture* f = fixture_new();
  amxt_write_random_options options = AMXT_WRITE_RANDOM_OPTIONS_INIT;
  const char* path = f->model_path;
  (void)state;
  FAILS(AMXT_E_FORMAT, "a test config",
        (options.config_name = "a test config",
         amxt_model_write_random(f->runtime, "{", path, &options, AMXT_FOREVER, &err)));
  options.seed = -1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "seed is -1",
        amxt_model_write_random(f->runtime, "{}", path, &options, AMXT_FOREVER, &err));
  options.seed = 1;
  options.shard_bytes = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "shard_bytes is 0",
        amxt_model_write_random(f->runtime, "{}", path, &options, AMXT_FOREVER, &err));
  options.struct_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_write_random_options",
        amxt_model_write_random(f->runtime, "{}", path, &options, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "config_json is NULL",
        amxt_model_write_random(f->runtime, NULL, path, NULL, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "directory is NULL",
        amxt_model_write_random(f->runtime, "{}", NULL, NULL, AMXT_FOREVER, &err));
  assert_int_equal(access(path, F_OK), -1);
  fixture_free(f);
}

static void inspect_tells_tensors_and_problems(void** state) {
  struct fixture* f = fixture_with_model();
  amxt_inspect_options options = AMXT_INSPECT_OPTIONS_INIT;
  char path[256], *json = NULL;
  (void)state;
  options.scan = 1;
  OK(amxt_inspect(f->runtime, f->model_path, &options, &json, SECONDS_OF_A_TEST, &err));
  HAS(json, "model.embed_tokens.weight");
  HAS(json, "\"nan\"");
  HAS(json, "\"problems\": []");
  amxt_string_destroy(json);
  snprintf(path, sizeof(path), "%s/model.safetensors", f->model_path);
  assert_int_equal(truncate(path, 100), 0);
  OK(amxt_inspect(f->runtime, path, NULL, &json, SECONDS_OF_A_TEST, &err));
  assert_null(strstr(json, "\"problems\": []"));
  amxt_string_destroy(json);
  json = NULL;
  FAILS(AMXT_E_NOT_FOUND, "nowhere",
        amxt_inspect(f->runtime, "/nowhere", NULL, &json, SECONDS_OF_A_TEST, &err));
  options.scan = 5;
  FAILS(AMXT_E_INVALID_ARGUMENT, "scan is 5",
        amxt_inspect(f->runtime, path, &options, &json, SECONDS_OF_A_TEST, &err));
  options.struct_size = 1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_inspect_options",
        amxt_inspect(f->runtime, path, &options, &json, SECONDS_OF_A_TEST, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "path is NULL",
        amxt_inspect(f->runtime, NULL, NULL, &json, 0, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL",
        amxt_inspect(f->runtime, path, NULL, NULL, 0, &err));
  assert_null(json);
  fixture_free(f);
}

static void a_plan_has_sums_and_fits_or_not(void** state) {
  struct fixture* f = fixture_with_model();
  amxt_plan_options options = AMXT_PLAN_OPTIONS_INIT;
  amxt_plan_totals totals = AMXT_PLAN_TOTALS_INIT;
  amxt_plan* plan = NULL;
  char* json = NULL;
  (void)state;
  options.ranks = 2;
  OK(amxt_plan_create(f->runtime, f->model, NULL, &options, &plan, &err));
  OK(amxt_plan_summary(plan, &totals, &err));
  assert_int_equal(totals.ranks, 2);
  assert_int_equal(totals.fits, 1);
  assert_int_equal(totals.weight_bytes, totals.parameters * 2);
  assert_true(totals.peak_bytes_per_node > totals.peak_bytes_per_rank);
  OK(amxt_plan_fits(plan, &err));
  OK(amxt_plan_json(plan, &json, &err));
  HAS(json, "\"peak_bytes_per_node\"");
  HAS(json, "\"peak_bytes_per_rank\"");
  amxt_string_destroy(json);
  totals.struct_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_plan_totals", amxt_plan_summary(plan, &totals, &err));
  amxt_plan_destroy(plan);

  options.node_memory_bytes = 1000;
  OK(amxt_plan_create(f->runtime, f->model, NULL, &options, &plan, &err));
  FAILS(AMXT_E_LIMIT, "1000 bytes", amxt_plan_fits(plan, &err));
  amxt_plan_destroy(plan);

  /* On two nodes each keeps its own half of the state. */
  options.node_memory_bytes = AMXT_UNSET_I64;
  OK(amxt_plan_create(f->runtime, f->model, NULL, &options, &plan, &err));
  amxt_plan_totals one = AMXT_PLAN_TOTALS_INIT;
  OK(amxt_plan_summary(plan, &one, &err));
  amxt_plan_destroy(plan);
  options.nodes = 2;
  OK(amxt_plan_create(f->runtime, f->model, NULL, &options, &plan, &err));
  totals.struct_size = sizeof(totals);
  OK(amxt_plan_summary(plan, &totals, &err));
  assert_int_equal(totals.ranks, one.ranks);
  assert_true(totals.optimizer_bytes < one.optimizer_bytes);
  OK(amxt_plan_json(plan, &json, &err));
  HAS(json, "\"nodes\":2");
  HAS(json, "\"window of weights\"");
  amxt_string_destroy(json);
  amxt_plan_destroy(plan);
  fixture_free(f);
}

static void bad_plans_are_refused(void** state) {
  struct fixture* f = fixture_with_model();
  amxt_plan_options options = AMXT_PLAN_OPTIONS_INIT;
  amxt_trainer_options trainer = AMXT_TRAINER_OPTIONS_INIT;
  amxt_plan* plan = NULL;
  char* json = NULL;
  (void)state;
  options.ranks = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "0 ranks",
        amxt_plan_create(f->runtime, f->model, NULL, &options, &plan, &err));
  options.ranks = 1;
  options.nodes = 2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "1 ranks on 2 nodes",
        amxt_plan_create(f->runtime, f->model, NULL, &options, &plan, &err));
  options.struct_size = 3;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_plan_options",
        amxt_plan_create(f->runtime, f->model, NULL, &options, &plan, &err));
  options.struct_size = sizeof(options);
  options.nodes = 1;
  trainer.ds_config =
      "{\"bf16\": {\"enabled\": true}, \"zero_optimization\": {\"overlap_comm\": true}}";
  trainer.ds_config_name = "ds.json";
  OK(amxt_plan_create(f->runtime, f->model, &trainer, &options, &plan, &err));
  OK(amxt_plan_json(plan, &json, &err));
  HAS(json, "\"notes\":[\"'ds.json': ");
  HAS(json, "overlap_comm");
  amxt_string_destroy(json);
  amxt_plan_destroy(plan);
  plan = NULL;
  json = NULL;
  trainer.ds_config = "{\"nonsense\": 1}";
  trainer.ds_config_name = "ds.json";
  FAILS(AMXT_E_FORMAT, "nonsense",
        amxt_plan_create(f->runtime, f->model, &trainer, NULL, &plan, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_plan_create(NULL, f->model, NULL, NULL, &plan, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "model is NULL",
        amxt_plan_create(f->runtime, NULL, NULL, NULL, &plan, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "plan is NULL",
        amxt_plan_create(f->runtime, f->model, NULL, NULL, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "plan is NULL", amxt_plan_summary(NULL, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "plan is NULL", amxt_plan_json(NULL, &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "plan is NULL", amxt_plan_fits(NULL, &err));
  amxt_plan_destroy(NULL);
  assert_null(plan);
  fixture_free(f);
}

static void null_models_are_refused(void** state) {
  struct fixture* f = fixture_new();
  amxt_tensor_info info = AMXT_TENSOR_INFO_INIT;
  int64_t count = 0;
  char* json = NULL;
  (void)state;
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL", amxt_model_open(NULL, "x", &f->model, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "directory is NULL",
        amxt_model_open(f->runtime, NULL, &f->model, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "model is NULL", amxt_model_open(f->runtime, "x", NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "model is NULL", amxt_model_check(NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "model is NULL", amxt_model_info(NULL, &json, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "model is NULL", amxt_model_tensor_count(NULL, &count, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "model is NULL", amxt_model_tensor_info(NULL, 0, &info, &err));
  amxt_model_destroy(NULL);
  fixture_free(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(presets_are_configurations),
      cmocka_unit_test(a_written_model_opens),
      cmocka_unit_test(a_model_without_weights_opens_and_is_told),
      cmocka_unit_test(what_is_no_model_is_refused),
      cmocka_unit_test(writing_tells_its_progress_and_can_be_ended),
      cmocka_unit_test(bad_arguments_of_writing_are_refused),
      cmocka_unit_test(inspect_tells_tensors_and_problems),
      cmocka_unit_test(a_plan_has_sums_and_fits_or_not),
      cmocka_unit_test(bad_plans_are_refused),
      cmocka_unit_test(null_models_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
