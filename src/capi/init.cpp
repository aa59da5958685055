// The init functions of all structs: what the INIT macros of this library's header say.
#include "capi/guard.h"

using amxt::capi::init_struct;

extern "C" {

void amxt_error_init(amxt_error* error) {
  if (error != nullptr) *error = AMXT_ERROR_INIT;
}

void amxt_tensor_info_init(amxt_tensor_info* info, uint32_t struct_size) {
  init_struct<amxt_tensor_info>(info, struct_size, AMXT_TENSOR_INFO_INIT);
}

void amxt_tensor_init(amxt_tensor* tensor, uint32_t struct_size) {
  init_struct<amxt_tensor>(tensor, struct_size, AMXT_TENSOR_INIT);
}

void amxt_progress_init(amxt_progress* progress, uint32_t struct_size) {
  init_struct<amxt_progress>(progress, struct_size, AMXT_PROGRESS_INIT);
}

void amxt_runtime_options_init(amxt_runtime_options* options, uint32_t struct_size) {
  init_struct<amxt_runtime_options>(options, struct_size, AMXT_RUNTIME_OPTIONS_INIT);
}

void amxt_group_options_init(amxt_group_options* options, uint32_t struct_size) {
  init_struct<amxt_group_options>(options, struct_size, AMXT_GROUP_OPTIONS_INIT);
}

void amxt_write_random_options_init(amxt_write_random_options* options, uint32_t struct_size) {
  init_struct<amxt_write_random_options>(options, struct_size, AMXT_WRITE_RANDOM_OPTIONS_INIT);
}

void amxt_inspect_options_init(amxt_inspect_options* options, uint32_t struct_size) {
  init_struct<amxt_inspect_options>(options, struct_size, AMXT_INSPECT_OPTIONS_INIT);
}

void amxt_plan_options_init(amxt_plan_options* options, uint32_t struct_size) {
  init_struct<amxt_plan_options>(options, struct_size, AMXT_PLAN_OPTIONS_INIT);
}

void amxt_plan_totals_init(amxt_plan_totals* totals, uint32_t struct_size) {
  init_struct<amxt_plan_totals>(totals, struct_size, AMXT_PLAN_TOTALS_INIT);
}

void amxt_dataset_options_init(amxt_dataset_options* options, uint32_t struct_size) {
  init_struct<amxt_dataset_options>(options, struct_size, AMXT_DATASET_OPTIONS_INIT);
}

void amxt_token_writer_options_init(amxt_token_writer_options* options, uint32_t struct_size) {
  init_struct<amxt_token_writer_options>(options, struct_size, AMXT_TOKEN_WRITER_OPTIONS_INIT);
}

void amxt_tokenize_options_init(amxt_tokenize_options* options, uint32_t struct_size) {
  init_struct<amxt_tokenize_options>(options, struct_size, AMXT_TOKENIZE_OPTIONS_INIT);
}

void amxt_trainer_options_init(amxt_trainer_options* options, uint32_t struct_size) {
  init_struct<amxt_trainer_options>(options, struct_size, AMXT_TRAINER_OPTIONS_INIT);
}

void amxt_batch_init(amxt_batch* batch, uint32_t struct_size) {
  init_struct<amxt_batch>(batch, struct_size, AMXT_BATCH_INIT);
}

void amxt_step_metrics_init(amxt_step_metrics* metrics, uint32_t struct_size) {
  init_struct<amxt_step_metrics>(metrics, struct_size, AMXT_STEP_METRICS_INIT);
}

void amxt_evaluation_init(amxt_evaluation* evaluation, uint32_t struct_size) {
  init_struct<amxt_evaluation>(evaluation, struct_size, AMXT_EVALUATION_INIT);
}

void amxt_trainer_state_init(amxt_trainer_state* state, uint32_t struct_size) {
  init_struct<amxt_trainer_state>(state, struct_size, AMXT_TRAINER_STATE_INIT);
}

void amxt_event_init(amxt_event* event, uint32_t struct_size) {
  init_struct<amxt_event>(event, struct_size, AMXT_EVENT_INIT);
}

void amxt_run_options_init(amxt_run_options* options, uint32_t struct_size) {
  init_struct<amxt_run_options>(options, struct_size, AMXT_RUN_OPTIONS_INIT);
}

void amxt_memory_usage_init(amxt_memory_usage* usage, uint32_t struct_size) {
  init_struct<amxt_memory_usage>(usage, struct_size, AMXT_MEMORY_USAGE_INIT);
}

}  // extern "C"
