/* Section 10 of the header: data sets and token files. */
#include "fixture.h"

static void documents_come_back_as_samples(void** state) {
  struct fixture* f = fixture_new();
  amxt_dataset_options options = AMXT_DATASET_OPTIONS_INIT;
  char* json = NULL;
  int64_t samples = 0;
  (void)state;
  fixture_write_data(f);
  options.sequence_length = 16;
  options.vocab_size = kVocabulary;
  OK(amxt_dataset_open(f->runtime, f->data_path, &options, &f->dataset, &err));
  OK(amxt_dataset_count(f->dataset, AMXT_UNSET_I64, &samples, &err));
  assert_int_equal(samples, 13); /* 200 tokens */
  OK(amxt_dataset_count(f->dataset, 100, &samples, &err));
  assert_int_equal(samples, 2);
  OK(amxt_dataset_info(f->dataset, &json, &err));
  HAS(json, "\"documents\":10");
  HAS(json, "\"tokens\":200");
  HAS(json, "\"mode\":\"pack\"");
  HAS(json, "\"loss_weight\":false");
  amxt_string_destroy(json);
  fixture_free(f);
}

static void padding_takes_a_document_a_sample(void** state) {
  struct fixture* f = fixture_new();
  amxt_dataset_options options = AMXT_DATASET_OPTIONS_INIT;
  int64_t samples = 0;
  (void)state;
  fixture_write_data(f);
  options.mode = AMXT_MODE_PAD;
  OK(amxt_dataset_open(f->runtime, f->data_path, &options, &f->dataset, &err));
  OK(amxt_dataset_count(f->dataset, 16, &samples, &err));
  assert_int_equal(samples, 10);
  FAILS(AMXT_E_INVALID_ARGUMENT, "none of its own",
        amxt_dataset_count(f->dataset, AMXT_UNSET_I64, &samples, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "sequence_length is 0",
        amxt_dataset_count(f->dataset, 0, &samples, &err));
  fixture_free(f);
}

static void several_files_are_one_data_set(void** state) {
  struct fixture* f = fixture_new();
  amxt_dataset_options options = AMXT_DATASET_OPTIONS_INIT;
  const char* more[2];
  int64_t samples = 0;
  (void)state;
  fixture_write_data(f);
  more[0] = f->data_path;
  more[1] = NULL;
  options.extra_paths = more;
  options.extra_path_count = 1;
  OK(amxt_dataset_open(f->runtime, f->data_path, &options, &f->dataset, &err));
  OK(amxt_dataset_count(f->dataset, 20, &samples, &err));
  assert_int_equal(samples, 20);
  amxt_dataset_destroy(f->dataset);
  f->dataset = NULL;
  options.extra_path_count = 2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "extra_paths[1] is NULL",
        amxt_dataset_open(f->runtime, f->data_path, &options, &f->dataset, &err));
  options.extra_path_count = -1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "extra_paths",
        amxt_dataset_open(f->runtime, f->data_path, &options, &f->dataset, &err));
  assert_null(f->dataset);
  fixture_free(f);
}

static void no_separator_can_be_asked_for(void** state) {
  struct fixture* f = fixture_new();
  amxt_dataset_options options = AMXT_DATASET_OPTIONS_INIT;
  char path[128], *json = NULL;
  FILE* file = NULL;
  (void)state;
  snprintf(path, sizeof(path), "%s/stream.bin", f->folder);
  file = fopen(path, "wb");
  assert_non_null(file);
  fwrite("\1\0\2\0\3\0\4\0", 1, 8, file);
  fclose(file);
  options.vocab_size = 256;
  options.separator = -1;
  OK(amxt_dataset_open(f->runtime, path, &options, &f->dataset, &err));
  OK(amxt_dataset_info(f->dataset, &json, &err));
  HAS(json, "\"separator\":null");
  HAS(json, "\"documents\":1");
  amxt_string_destroy(json);
  amxt_dataset_destroy(f->dataset);
  f->dataset = NULL;
  options.separator = 2;
  OK(amxt_dataset_open(f->runtime, path, &options, &f->dataset, &err));
  OK(amxt_dataset_info(f->dataset, &json, &err));
  HAS(json, "\"separator\":2");
  HAS(json, "\"documents\":2");
  amxt_string_destroy(json);
  fixture_free(f);
}

static void values_come_from_the_model(void** state) {
  struct fixture* f = fixture_with_model();
  amxt_dataset_options options = AMXT_DATASET_OPTIONS_INIT;
  char* json = NULL;
  (void)state;
  fixture_write_data(f);
  options.model = f->model;
  OK(amxt_dataset_open(f->runtime, f->data_path, &options, &f->dataset, &err));
  OK(amxt_dataset_info(f->dataset, &json, &err));
  HAS(json, "\"vocab_size\":256");
  HAS(json, "\"separator\":null"); /* tiny has no end of text */
  amxt_string_destroy(json);
  fixture_free(f);
}

static void bad_data_is_refused_by_name(void** state) {
  struct fixture* f = fixture_new();
  amxt_dataset_options options = AMXT_DATASET_OPTIONS_INIT;
  amxt_dataset** out = &f->dataset;
  (void)state;
  fixture_write_data(f);
  FAILS(AMXT_E_NOT_FOUND, "nowhere.npy",
        amxt_dataset_open(f->runtime, "/nowhere.npy", NULL, out, &err));
  options.vocab_size = 10;
  FAILS(AMXT_E_FORMAT, "data.safetensors",
        amxt_dataset_open(f->runtime, f->data_path, &options, out, &err));
  options.vocab_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "vocab_size is 0",
        amxt_dataset_open(f->runtime, f->data_path, &options, out, &err));
  amxt_dataset_options_init(&options, sizeof(options));
  options.mode = 2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "mode is 2",
        amxt_dataset_open(f->runtime, f->data_path, &options, out, &err));
  amxt_dataset_options_init(&options, sizeof(options));
  options.bin_dtype = AMXT_DTYPE_INT64;
  FAILS(AMXT_E_INVALID_ARGUMENT, "bin_dtype is 4",
        amxt_dataset_open(f->runtime, f->data_path, &options, out, &err));
  amxt_dataset_options_init(&options, sizeof(options));
  options.separator = -2;
  FAILS(AMXT_E_INVALID_ARGUMENT, "separator is -2",
        amxt_dataset_open(f->runtime, f->data_path, &options, out, &err));
  amxt_dataset_options_init(&options, sizeof(options));
  options.sequence_length = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "sequence_length is 0",
        amxt_dataset_open(f->runtime, f->data_path, &options, out, &err));
  options.struct_size = 7;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_dataset_options",
        amxt_dataset_open(f->runtime, f->data_path, &options, out, &err));
  assert_null(f->dataset);
  fixture_free(f);
}

static void null_data_sets_are_refused(void** state) {
  struct fixture* f = fixture_new();
  int64_t samples = 0;
  char* json = NULL;
  (void)state;
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_dataset_open(NULL, "x", NULL, &f->dataset, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "path is NULL",
        amxt_dataset_open(f->runtime, NULL, NULL, &f->dataset, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "dataset is NULL",
        amxt_dataset_open(f->runtime, "x", NULL, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "dataset is NULL", amxt_dataset_count(NULL, 1, &samples, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "dataset is NULL", amxt_dataset_info(NULL, &json, &err));
  amxt_dataset_destroy(NULL);
  fixture_free(f);
}

static void a_writer_keeps_weights(void** state) {
  struct fixture* f = fixture_new();
  amxt_token_writer_options options = AMXT_TOKEN_WRITER_OPTIONS_INIT;
  amxt_token_writer* writer = NULL;
  const float weights[] = {0, 0.5f, 1};
  char* json = NULL;
  (void)state;
  options.dtype = AMXT_DTYPE_UINT16;
  options.loss_weight_dtype = AMXT_DTYPE_FLOAT32;
  OK(amxt_token_writer_open(f->runtime, f->data_path, &options, &writer, &err));
  OK(amxt_token_writer_add(writer, f->tokens, weights, 3, &err));
  OK(amxt_token_writer_add(writer, NULL, NULL, 0, &err));
  assert_int_equal(access(f->data_path, F_OK), -1); /* not before it is finished */
  OK(amxt_token_writer_finish(writer, &err));
  FAILS(AMXT_E_INVALID_STATE, "", amxt_token_writer_finish(writer, &err));
  amxt_token_writer_destroy(writer);
  OK(amxt_dataset_open(f->runtime, f->data_path, NULL, &f->dataset, &err));
  OK(amxt_dataset_info(f->dataset, &json, &err));
  HAS(json, "\"documents\":2");
  HAS(json, "\"loss_weight\":true");
  amxt_string_destroy(json);
  FAILS(AMXT_E_EXISTS, "data.safetensors",
        amxt_token_writer_open(f->runtime, f->data_path, &options, &writer, &err));
  fixture_free(f);
}

static void a_writer_refuses_what_it_cannot_hold(void** state) {
  struct fixture* f = fixture_new();
  amxt_token_writer_options options = AMXT_TOKEN_WRITER_OPTIONS_INIT;
  amxt_token_writer* writer = NULL;
  const int32_t large = 70000;
  const float weight = 1;
  (void)state;
  options.dtype = AMXT_DTYPE_UINT16;
  OK(amxt_token_writer_open(f->runtime, f->data_path, &options, &writer, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "without any",
        amxt_token_writer_add(writer, f->tokens, &weight, 1, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "count is -1",
        amxt_token_writer_add(writer, f->tokens, NULL, -1, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "tokens is NULL",
        amxt_token_writer_add(writer, NULL, NULL, 1, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "70000", amxt_token_writer_add(writer, &large, NULL, 1, &err));
  amxt_token_writer_destroy(writer);
  assert_int_equal(access(f->data_path, F_OK), -1);

  options.dtype = AMXT_DTYPE_FLOAT32;
  FAILS(AMXT_E_INVALID_ARGUMENT, "dtype is 0",
        amxt_token_writer_open(f->runtime, f->data_path, &options, &writer, &err));
  amxt_token_writer_options_init(&options, sizeof(options));
  options.loss_weight_dtype = AMXT_DTYPE_INT8;
  FAILS(AMXT_E_INVALID_ARGUMENT, "loss_weight_dtype is 8",
        amxt_token_writer_open(f->runtime, f->data_path, &options, &writer, &err));
  options.struct_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_token_writer_options",
        amxt_token_writer_open(f->runtime, f->data_path, &options, &writer, &err));
  FAILS(AMXT_E_NOT_FOUND, "nowhere",
        amxt_token_writer_open(f->runtime, "/nowhere/x.safetensors", NULL, &writer, &err));
  fixture_free(f);
}

static void null_writers_are_refused(void** state) {
  struct fixture* f = fixture_new();
  amxt_token_writer* writer = NULL;
  (void)state;
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_token_writer_open(NULL, "x", NULL, &writer, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "path is NULL",
        amxt_token_writer_open(f->runtime, NULL, NULL, &writer, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "writer is NULL",
        amxt_token_writer_open(f->runtime, "x", NULL, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "writer is NULL",
        amxt_token_writer_add(NULL, f->tokens, NULL, 1, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "writer is NULL", amxt_token_writer_finish(NULL, &err));
  amxt_token_writer_destroy(NULL);
  fixture_free(f);
}

static void text_becomes_tokens(void** state) {
  struct fixture* f = fixture_new();
  amxt_tokenize_options options = AMXT_TOKENIZE_OPTIONS_INIT;
  char text[96], *json = NULL;
  const char* texts[1];
  FILE* file;
  (void)state;
  snprintf(text, sizeof(text), "%s/pairs.jsonl", f->folder);
  file = fopen(text, "w");
  assert_non_null(file);
  fputs("{\"prompt\": \"2+2=\", \"completion\": \"4\"}\n{\"text\": \"hello\"}\n", file);
  fclose(file);
  texts[0] = text;
  OK(amxt_tokenize(f->runtime, f->data_path, texts, 1, NULL, &json, SECONDS_OF_A_TEST, &err));
  HAS(json, "\"documents\":2");
  HAS(json, "\"tokens\":10");
  HAS(json, "\"masked_tokens\":4");
  amxt_string_destroy(json);
  FAILS(AMXT_E_EXISTS, "data.safetensors",
        amxt_tokenize(f->runtime, f->data_path, texts, 1, NULL, NULL, SECONDS_OF_A_TEST, &err));
  options.overwrite = 1;
  OK(amxt_tokenize(f->runtime, f->data_path, texts, 1, &options, NULL, SECONDS_OF_A_TEST, &err));

  options.overwrite = 7;
  FAILS(AMXT_E_INVALID_ARGUMENT, "overwrite is 7",
        amxt_tokenize(f->runtime, f->data_path, texts, 1, &options, NULL, AMXT_FOREVER, &err));
  options.struct_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_tokenize_options",
        amxt_tokenize(f->runtime, f->data_path, texts, 1, &options, NULL, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "text_count is 0",
        amxt_tokenize(f->runtime, f->data_path, texts, 0, NULL, NULL, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "texts is NULL",
        amxt_tokenize(f->runtime, f->data_path, NULL, 1, NULL, NULL, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "path is NULL",
        amxt_tokenize(f->runtime, NULL, texts, 1, NULL, NULL, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_tokenize(NULL, f->data_path, texts, 1, NULL, NULL, AMXT_FOREVER, &err));
  fixture_free(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(documents_come_back_as_samples),
      cmocka_unit_test(padding_takes_a_document_a_sample),
      cmocka_unit_test(several_files_are_one_data_set),
      cmocka_unit_test(no_separator_can_be_asked_for),
      cmocka_unit_test(values_come_from_the_model),
      cmocka_unit_test(bad_data_is_refused_by_name),
      cmocka_unit_test(null_data_sets_are_refused),
      cmocka_unit_test(a_writer_keeps_weights),
      cmocka_unit_test(a_writer_refuses_what_it_cannot_hold),
      cmocka_unit_test(null_writers_are_refused),
      cmocka_unit_test(text_becomes_tokens),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
