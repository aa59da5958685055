/* Fine-tunes a model for ten steps with a progress callback of its own, and saves it.
 *
 *     cc train.c -o train $(pkg-config --cflags --libs amxtrain)
 *     ./train MODEL_DIRECTORY TOKENS.safetensors OUTPUT_DIRECTORY */
#include <amxtrain.h>
#include <stdio.h>

static int32_t show_progress(const amxt_progress* progress, void* user_data) {
  (void)user_data;
  if (progress->item_done_bytes == progress->item_total_bytes) {
    printf("%s: %lld bytes\n", progress->item_name, (long long)progress->item_done_bytes);
  }
  return 0; /* go on */
}

static int32_t show_event(const amxt_event* event, void* user_data) {
  (void)user_data;
  if (event->kind == AMXT_EVENT_STEP) {
    printf("step %lld of %lld: loss %.4f, %.0f tokens/s\n", (long long)event->step,
           (long long)event->total_steps, event->metrics->loss, event->metrics->tokens_per_second);
  }
  return AMXT_RUN_CONTINUE;
}

int main(int argc, char** argv) {
  amxt_error err = AMXT_ERROR_INIT;
  amxt_dataset_options data_options = AMXT_DATASET_OPTIONS_INIT;
  amxt_trainer_options options = AMXT_TRAINER_OPTIONS_INIT;
  amxt_run_options run = AMXT_RUN_OPTIONS_INIT;
  amxt_runtime* runtime = NULL;
  amxt_group* group = NULL;
  amxt_model* model = NULL;
  amxt_dataset* data = NULL;
  amxt_trainer* trainer = NULL;
  int failed;

  if (argc != 4) {
    fprintf(stderr, "usage: train MODEL_DIRECTORY TOKENS.safetensors OUTPUT_DIRECTORY\n");
    return 2;
  }
  options.learning_rate = 2e-5;
  options.sequence_length = 128;
  options.progress = show_progress;
  run.steps = 10;
  run.event = show_event;

  failed = amxt_runtime_create(NULL, &runtime, &err) ||
           amxt_group_create_from_env(runtime, NULL, &group, &err) ||
           amxt_model_open(runtime, argv[1], &model, &err);
  data_options.model = model; /* its vocabulary and its end of text */
  failed = failed || amxt_dataset_open(runtime, argv[2], &data_options, &data, &err) ||
           amxt_trainer_create(runtime, group, model, &options, &trainer, &err) ||
           amxt_trainer_load(trainer, argv[1], AMXT_FOREVER, &err) ||
           amxt_trainer_run(trainer, data, &run, AMXT_FOREVER, &err) ||
           amxt_trainer_export(trainer, argv[3], AMXT_FOREVER, &err) ||
           amxt_group_finalize(group, AMXT_SECONDS(60), &err);
  if (failed) fprintf(stderr, "train: %s: %s\n", amxt_status_name(err.code), err.message);

  amxt_trainer_destroy(trainer);
  amxt_dataset_destroy(data);
  amxt_model_destroy(model);
  amxt_group_destroy(group);
  amxt_runtime_destroy(runtime);
  return failed ? 1 : 0;
}
