/* Creates, steps and destroys something real: a tiny model with random weights, and one step on it. */
#include <amxtrain.h>
#include <stdio.h>
#include <string.h>

#define SAMPLES 2
#define POSITIONS 32
#define ROWS 4

static const char kTensor[] = "model.norm.weight";

int main(int argc, char** argv) {
  amxt_error err = AMXT_ERROR_INIT;
  amxt_runtime_options runtime_options = AMXT_RUNTIME_OPTIONS_INIT;
  amxt_group_options group_options = AMXT_GROUP_OPTIONS_INIT;
  amxt_trainer_options options = AMXT_TRAINER_OPTIONS_INIT;
  amxt_batch batch = AMXT_BATCH_INIT;
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  amxt_runtime* runtime = NULL;
  amxt_group* group = NULL;
  amxt_model* model = NULL;
  amxt_trainer* trainer = NULL;
  char* preset = NULL;
  int32_t tokens[SAMPLES * POSITIONS];
  float before[ROWS], after[ROWS];
  int i, failed;

  if (argc != 2) {
    fprintf(stderr, "usage: train_step NEW_MODEL_DIRECTORY\n");
    return 2;
  }
  if (amxt_version() != AMXT_VERSION) {
    fprintf(stderr, "the library is %s, the header %d\n", amxt_version_string(), AMXT_VERSION);
    return 1;
  }
  for (i = 0; i < SAMPLES * POSITIONS; ++i) tokens[i] = (i * 7 + 3) % 256;
  runtime_options.threads = 1;
  group_options.rank = 0;
  group_options.world_size = 1;
  options.sequence_length = POSITIONS;
  options.accumulate = SAMPLES;
  options.learning_rate = 1e-2;
  options.total_steps = 10;
  batch.samples = SAMPLES;
  batch.sequence_length = POSITIONS;
  batch.tokens = tokens;

  failed = amxt_runtime_create(&runtime_options, &runtime, &err) ||
           amxt_group_create(runtime, &group_options, &group, &err) ||
           amxt_model_preset("tiny", &preset, &err) ||
           amxt_model_write_random(runtime, preset, argv[1], NULL, AMXT_SECONDS(60), &err) ||
           amxt_model_open(runtime, argv[1], &model, &err) ||
           amxt_trainer_create(runtime, group, model, &options, &trainer, &err) ||
           amxt_trainer_load(trainer, argv[1], AMXT_SECONDS(60), &err) ||
           amxt_trainer_read_rows(trainer, kTensor, AMXT_ROWS_WEIGHT, 0, ROWS, before, ROWS,
                                  AMXT_SECONDS(60), &err) ||
           amxt_trainer_step(trainer, &batch, &metrics, AMXT_SECONDS(60), &err) ||
           amxt_trainer_read_rows(trainer, kTensor, AMXT_ROWS_WEIGHT, 0, ROWS, after, ROWS,
                                  AMXT_SECONDS(60), &err);
  if (failed) {
    fprintf(stderr, "%s: %s\n", amxt_status_name(err.code), err.message);
  } else if (!(metrics.loss > 4.5 && metrics.loss < 7.0) || metrics.step != 1 ||
             metrics.tokens != SAMPLES * POSITIONS) {
    fprintf(stderr,
            "a loss near ln 256 = 5.55 after 1 step of %d tokens was expected, not %g, %d, %d\n",
            SAMPLES * POSITIONS, metrics.loss, (int)metrics.step, (int)metrics.tokens);
    failed = 1;
  } else if (memcmp(before, after, sizeof(before)) == 0) {
    fprintf(stderr, "the step moved no weight\n");
    failed = 1;
  } else {
    printf("version %s, loss %.6f, %s[0] %g -> %g\n", amxt_version_string(), metrics.loss, kTensor,
           before[0], after[0]);
  }

  amxt_trainer_destroy(trainer);
  amxt_model_destroy(model);
  amxt_group_destroy(group);
  amxt_runtime_destroy(runtime);
  amxt_string_destroy(preset);
  return failed ? 1 : 0;
}
