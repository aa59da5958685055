/* Sections 7, 11 and 13 of the header: operations, trainers, preview. */
#include <math.h>
#include <pthread.h>

#include "fixture.h"

#define LONG SECONDS_OF_A_TEST

static double step_once(struct fixture* f) {
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  OK(amxt_trainer_step(f->trainer, &f->batch, &metrics, LONG, &err));
  return metrics.loss;
}

static void read_norm(struct fixture* f, int32_t kind, float* values) {
  OK(amxt_trainer_read_rows(f->trainer, "model.norm.weight", kind, 0, kHidden, values, kHidden,
                            LONG, &err));
}

static void a_step_lowers_the_loss_and_moves_the_weights(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  float before[kHidden], after[kHidden];
  double first;
  int i;
  (void)state;
  read_norm(f, AMXT_ROWS_WEIGHT, before);
  OK(amxt_trainer_step(f->trainer, &f->batch, &metrics, LONG, &err));
  first = metrics.loss;
  assert_true(first > 5 && first < 6.5); /* about ln 256 */
  assert_int_equal(metrics.step, 1);
  assert_int_equal(metrics.tokens, kSamples * kPositions);
  assert_int_equal(metrics.world_size, 1);
  assert_true(metrics.grad_norm > 0 && metrics.seconds > 0 && metrics.peak_rss_bytes > 0);
  for (i = 0; i < 4; ++i) step_once(f);
  OK(amxt_trainer_step(f->trainer, &f->batch, &metrics, LONG, &err));
  assert_true(metrics.loss < first);
  read_norm(f, AMXT_ROWS_WEIGHT, after);
  assert_memory_not_equal(before, after, sizeof(before));
  assert_int_equal(state_step(f->trainer), 6);
  fixture_free(f);
}

static void before_load_there_are_no_steps(void** state) {
  struct fixture* f = fixture_with_trainer();
  amxt_evaluation evaluation = AMXT_EVALUATION_INIT;
  float values[kSamples * kPositions];
  (void)state;
  FAILS(AMXT_E_INVALID_STATE, "load", amxt_trainer_step(f->trainer, &f->batch, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_STATE, "load",
        amxt_trainer_forward(f->trainer, &f->batch, values, kSamples * kPositions, LONG, &err));
  FAILS(AMXT_E_INVALID_STATE, "load",
        amxt_trainer_evaluate(f->trainer, f->dataset, &evaluation, LONG, &err));
  FAILS(AMXT_E_INVALID_STATE, "load", amxt_trainer_run(f->trainer, f->dataset, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_STATE, "load",
        amxt_trainer_read_rows(f->trainer, "model.norm.weight", AMXT_ROWS_WEIGHT, 0, 1, values, 1,
                               LONG, &err));
  FAILS(AMXT_E_INVALID_STATE, "load", amxt_trainer_save(f->trainer, f->output, LONG, &err));
  FAILS(AMXT_E_INVALID_STATE, "load", amxt_trainer_export(f->trainer, f->output, LONG, &err));
  assert_int_equal(access(f->output, F_OK), -1);
  fixture_free(f);
}

static void bad_batches_are_refused_and_change_nothing(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  amxt_batch batch = f->batch;
  (void)state;
  batch.tokens = NULL;
  FAILS(AMXT_E_INVALID_ARGUMENT, "tokens", amxt_trainer_step(f->trainer, &batch, NULL, LONG, &err));
  batch = f->batch;
  batch.samples = 1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "1", amxt_trainer_step(f->trainer, &batch, NULL, LONG, &err));
  batch = f->batch;
  f->tokens[3] = kVocabulary;
  FAILS(AMXT_E_INVALID_ARGUMENT, "token 256",
        amxt_trainer_step(f->trainer, &batch, NULL, LONG, &err));
  f->tokens[3] = 0;
  batch.struct_size = 8;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_batch",
        amxt_trainer_step(f->trainer, &batch, NULL, LONG, &err));
  metrics.struct_size = 8;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_step_metrics",
        amxt_trainer_step(f->trainer, &f->batch, &metrics, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "batch is NULL",
        amxt_trainer_step(f->trainer, NULL, NULL, LONG, &err));
  assert_int_equal(state_step(f->trainer), 0);
  fixture_free(f);
}

static void a_step_that_may_not_wait_changes_nothing(void** state) {
  struct fixture* f = fixture_loaded();
  (void)state;
  FAILS(AMXT_E_TIMEOUT, "", amxt_trainer_step(f->trainer, &f->batch, NULL, AMXT_POLL, &err));
  assert_int_equal(state_step(f->trainer), 0);
  step_once(f);
  assert_int_equal(state_step(f->trainer), 1);
  fixture_free(f);
}

struct done {
  int calls;
  amxt_status status;
};

static void on_done(amxt_status status, const amxt_error* error, void* user_data) {
  struct done* done = user_data;
  assert_int_equal(error->code, status);
  done->status = status;
  ++done->calls;
}

static void an_operation_is_done_once(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  struct done done = {0, -1}, second = {0, -1};
  amxt_op* op = NULL;
  int32_t is_done = 0;
  (void)state;
  OK(amxt_trainer_step_async(f->trainer, &f->batch, &metrics, &op, &err));
  OK(amxt_op_on_done(op, on_done, &done, &err));
  OK(amxt_op_wait(op, LONG, &err));
  OK(amxt_op_test(op, &is_done, &err));
  assert_int_equal(is_done, 1);
  assert_int_equal(metrics.step, 1);
  OK(amxt_op_cancel(op, &err)); /* too late: nothing happens */
  OK(amxt_op_wait(op, AMXT_POLL, &err));
  FAILS(AMXT_E_INVALID_STATE, "callback", amxt_op_on_done(op, on_done, &second, &err));
  amxt_op_destroy(op);
  amxt_trainer_destroy(f->trainer); /* no callback is under way after this */
  f->trainer = NULL;
  assert_int_equal(done.calls, 1);
  assert_int_equal(done.status, AMXT_OK);
  assert_int_equal(second.calls, 0);
  fixture_free(f);
}

struct chain {
  struct fixture* f;
  amxt_op* next;
  int32_t next_is_done;
};

static void submit_next(amxt_status status, const amxt_error* error, void* user_data) {
  struct chain* chain = user_data;
  (void)error;
  assert_int_equal(status, AMXT_OK);
  OK(amxt_trainer_step_async(chain->f->trainer, &chain->f->batch, NULL, &chain->next, &err));
  OK(amxt_op_test(chain->next, &chain->next_is_done, &err));
  FAILS(AMXT_E_INVALID_STATE, "on the thread that runs it",
        amxt_op_wait(chain->next, AMXT_POLL, &err));
}

/* The thread that would run it is in the callback that submits it. */
static void an_operation_is_not_done_before_it_has_run(void** state) {
  struct fixture* f = fixture_loaded();
  struct chain chain = {f, NULL, -1};
  amxt_op* first = NULL;
  int32_t is_done = 0;
  (void)state;
  OK(amxt_trainer_step_async(f->trainer, &f->batch, NULL, &first, &err));
  OK(amxt_op_on_done(first, submit_next, &chain, &err));
  OK(amxt_op_wait(first, LONG, &err));
  step_once(f); /* on the same thread, after the callback */
  assert_int_equal(chain.next_is_done, 0);
  OK(amxt_op_wait(chain.next, LONG, &err));
  assert_int_equal(state_step(f->trainer), 3);
  OK(amxt_op_test(chain.next, &is_done, &err));
  assert_int_equal(is_done, 1);
  amxt_op_destroy(first);
  amxt_op_destroy(chain.next);
  fixture_free(f);
}

static void a_queued_operation_can_be_cancelled(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_op *first = NULL, *second = NULL;
  (void)state;
  OK(amxt_trainer_step_async(f->trainer, &f->batch, NULL, &first, &err));
  OK(amxt_trainer_step_async(f->trainer, &f->batch, NULL, &second, &err));
  OK(amxt_op_cancel(second, &err));
  OK(amxt_op_wait(first, LONG, &err));
  amxt_op_wait(second, LONG, NULL);
  assert_true(state_step(f->trainer) >= 1);
  amxt_op_destroy(first);
  amxt_op_destroy(second);
  fixture_free(f);
}

static void an_operation_outlives_its_trainer(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_op* op = NULL;
  amxt_status status;
  int32_t is_done = 0;
  (void)state;
  OK(amxt_trainer_step_async(f->trainer, &f->batch, NULL, &op, &err));
  amxt_trainer_destroy(f->trainer);
  f->trainer = NULL;
  OK(amxt_op_test(op, &is_done, &err));
  assert_int_equal(is_done, 1);
  status = amxt_op_wait(op, AMXT_POLL, NULL);
  assert_true(status == AMXT_OK || status == AMXT_E_CANCELLED);
  amxt_op_destroy(op);
  fixture_free(f);
}

static void null_operations_are_refused(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_op* op = NULL;
  int32_t is_done = 0;
  (void)state;
  FAILS(AMXT_E_INVALID_ARGUMENT, "op is NULL", amxt_op_wait(NULL, 0, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "op is NULL", amxt_op_test(NULL, &is_done, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "op is NULL", amxt_op_cancel(NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "op is NULL", amxt_op_on_done(NULL, on_done, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "op is NULL",
        amxt_trainer_step_async(f->trainer, &f->batch, NULL, NULL, &err));
  OK(amxt_trainer_step_async(f->trainer, &f->batch, NULL, &op, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "done is NULL", amxt_op_test(op, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "done is NULL", amxt_op_on_done(op, NULL, NULL, &err));
  OK(amxt_op_wait(op, LONG, &err));
  amxt_op_destroy(op);
  amxt_op_destroy(NULL);
  fixture_free(f);
}

static void forward_gives_the_loss_of_each_label(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  float logprobs[kSamples * kPositions];
  double sum = 0;
  int i;
  (void)state;
  OK(amxt_trainer_forward(f->trainer, &f->batch, logprobs, kSamples * kPositions, LONG, &err));
  for (i = 0; i < kSamples * kPositions; ++i) {
    if (i % kPositions == 0) assert_true(logprobs[i] == 0);
    sum += logprobs[i];
  }
  OK(amxt_preview_trainer_gradients(f->trainer, &f->batch, &metrics, LONG, &err));
  assert_true(fabs(-sum / (kSamples * (kPositions - 1)) - metrics.loss) < 1e-4);
  FAILS(AMXT_E_INVALID_ARGUMENT, "count is 5",
        amxt_trainer_forward(f->trainer, &f->batch, logprobs, 5, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "logprobs is NULL",
        amxt_trainer_forward(f->trainer, &f->batch, NULL, 5, LONG, &err));
  fixture_free(f);
}

static void gradients_can_be_read_and_commit_nothing(void** state) {
  struct fixture* f = fixture_loaded();
  float before[kHidden], after[kHidden], gradient[kHidden];
  double squares = 0;
  int i;
  (void)state;
  read_norm(f, AMXT_ROWS_WEIGHT, before);
  FAILS(AMXT_E_INVALID_STATE, "gradient",
        amxt_trainer_read_rows(f->trainer, "model.norm.weight", AMXT_ROWS_GRADIENT, 0, kHidden,
                               gradient, kHidden, LONG, &err));
  OK(amxt_preview_trainer_gradients(f->trainer, &f->batch, NULL, LONG, &err));
  read_norm(f, AMXT_ROWS_GRADIENT, gradient);
  for (i = 0; i < kHidden; ++i) squares += gradient[i] * gradient[i];
  assert_true(squares > 0);
  read_norm(f, AMXT_ROWS_WEIGHT, after);
  assert_memory_equal(before, after, sizeof(before));
  assert_int_equal(state_step(f->trainer), 0);
  FAILS(AMXT_E_INVALID_ARGUMENT, "trainer is NULL",
        amxt_preview_trainer_gradients(NULL, &f->batch, NULL, LONG, &err));
  fixture_free(f);
}

static void rows_that_are_written_are_read(void** state) {
  struct fixture* f = fixture_loaded();
  const char* name = "model.layers.0.mlp.down_proj.weight";
  float row[384], back[384];
  int i;
  (void)state;
  for (i = 0; i < 384; ++i) row[i] = 0.25f * (float)i;
  OK(amxt_trainer_write_rows(f->trainer, name, AMXT_ROWS_WEIGHT, 7, 1, row, 384, LONG, &err));
  OK(amxt_trainer_read_rows(f->trainer, name, AMXT_ROWS_WEIGHT, 7, 1, back, 384, LONG, &err));
  assert_memory_equal(row, back, sizeof(row));
  OK(amxt_trainer_read_rows(f->trainer, name, AMXT_ROWS_WEIGHT, 7, 1, NULL, 0, LONG, &err));
  OK(amxt_trainer_write_rows(f->trainer, name, AMXT_ROWS_FIRST_MOMENT, 7, 1, row, 384, LONG, &err));
  OK(amxt_trainer_read_rows(f->trainer, name, AMXT_ROWS_FIRST_MOMENT, 7, 1, back, 384, LONG, &err));
  assert_memory_equal(row, back, sizeof(row));
  FAILS(AMXT_E_NOT_FOUND, "no.such.tensor",
        amxt_trainer_read_rows(f->trainer, "no.such.tensor", 0, 0, 1, back, 384, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "",
        amxt_trainer_read_rows(f->trainer, name, 0, 128, 1, back, 384, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "",
        amxt_trainer_read_rows(f->trainer, name, 0, 0, 1, back, 383, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "kind is 9",
        amxt_trainer_read_rows(f->trainer, name, 9, 0, 1, back, 384, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "rows",
        amxt_trainer_read_rows(f->trainer, name, 0, -1, 1, back, 384, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "values is NULL",
        amxt_trainer_read_rows(f->trainer, name, 0, 0, 1, NULL, 384, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "only be read",
        amxt_trainer_write_rows(f->trainer, name, AMXT_ROWS_GRADIENT, 0, 1, row, 384, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "values is NULL",
        amxt_trainer_write_rows(f->trainer, name, 0, 0, 1, NULL, 384, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "tensor is NULL",
        amxt_trainer_write_rows(f->trainer, NULL, 0, 0, 1, row, 384, LONG, &err));
  fixture_free(f);
}

static void evaluate_gives_loss_and_perplexity(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_evaluation evaluation = AMXT_EVALUATION_INIT;
  (void)state;
  OK(amxt_trainer_evaluate(f->trainer, f->dataset, &evaluation, LONG, &err));
  assert_true(fabs(exp(evaluation.loss) - evaluation.perplexity) < 1e-6 * evaluation.perplexity);
  assert_int_equal(evaluation.samples, 13);
  assert_true(evaluation.tokens > 0 && evaluation.tokens < 200);
  evaluation.struct_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_evaluation",
        amxt_trainer_evaluate(f->trainer, f->dataset, &evaluation, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "evaluation is NULL",
        amxt_trainer_evaluate(f->trainer, f->dataset, NULL, LONG, &err));
  evaluation.struct_size = sizeof(evaluation);
  FAILS(AMXT_E_INVALID_ARGUMENT, "dataset is NULL",
        amxt_trainer_evaluate(f->trainer, NULL, &evaluation, LONG, &err));
  fixture_free(f);
}

static void data_of_another_length_is_refused(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_dataset_options options = AMXT_DATASET_OPTIONS_INIT;
  amxt_evaluation evaluation = AMXT_EVALUATION_INIT;
  amxt_dataset* longer = NULL;
  (void)state;
  options.sequence_length = kPositions + 1;
  OK(amxt_dataset_open(f->runtime, f->data_path, &options, &longer, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "17",
        amxt_trainer_evaluate(f->trainer, longer, &evaluation, LONG, &err));
  amxt_dataset_destroy(longer);
  fixture_free(f);
}

struct run {
  struct fixture* f;
  int steps, saves, evaluations, ends;
  int64_t stop_at;
  int32_t verdict;
  char path[256];
};

static int32_t on_event(const amxt_event* event, void* user_data) {
  struct run* run = user_data;
  switch (event->kind) {
    case AMXT_EVENT_STEP:
      ++run->steps;
      assert_non_null(event->metrics);
      assert_int_equal(event->metrics->step, event->step);
      assert_int_equal(state_step(run->f->trainer), event->step); /* allowed in a callback */
      assert_int_equal(amxt_trainer_step(run->f->trainer, &run->f->batch, NULL, LONG, NULL),
                       AMXT_E_INVALID_STATE); /* not allowed */
      break;
    case AMXT_EVENT_SAVE:
      ++run->saves;
      snprintf(run->path, sizeof(run->path), "%s", event->path);
      break;
    case AMXT_EVENT_EVALUATE:
      ++run->evaluations;
      assert_non_null(event->evaluation);
      break;
    default:
      ++run->ends;
  }
  return event->step == run->stop_at ? run->verdict : AMXT_RUN_CONTINUE;
}

static amxt_run_options options_of(struct fixture* f, struct run* run) {
  amxt_run_options options = AMXT_RUN_OPTIONS_INIT;
  memset(run, 0, sizeof(*run));
  run->f = f;
  run->stop_at = -1;
  options.steps = 4;
  options.event = on_event;
  options.event_user_data = run;
  return options;
}

static void a_run_tells_all_that_happens(void** state) {
  struct fixture* f = fixture_with_trainer();
  struct run run;
  amxt_run_options options = options_of(f, &run);
  char metrics[256], path[256], *resume = (char*)"?";
  (void)state;
  snprintf(metrics, sizeof(metrics), "%s/metrics.jsonl", f->folder);
  options.output = f->output;
  options.save_steps = 2;
  options.keep = 1;
  options.eval_data = f->dataset;
  options.eval_steps = 2;
  options.metrics_path = metrics;
  OK(amxt_trainer_prepare(f->trainer, f->dataset, &options, &resume, LONG, &err));
  assert_null(resume);
  OK(amxt_trainer_load(f->trainer, f->model_path, LONG, &err));
  OK(amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  assert_int_equal(run.steps, 4);
  assert_int_equal(run.saves, 2);
  assert_int_equal(run.evaluations, 2);
  assert_int_equal(run.ends, 1);
  snprintf(path, sizeof(path), "%s/final/model.safetensors", f->output);
  assert_int_equal(access(path, F_OK), 0);
  snprintf(path, sizeof(path), "%s/step-000002", f->output);
  assert_int_equal(access(path, F_OK), -1); /* one is kept */
  snprintf(path, sizeof(path), "%s/latest/manifest.json", f->output);
  assert_int_equal(access(path, F_OK), 0);
  assert_int_equal(access(metrics, F_OK), 0);
  fixture_free(f);
}

static void a_run_pauses_and_goes_on(void** state) {
  struct fixture* f = fixture_loaded();
  struct run run;
  amxt_run_options options = options_of(f, &run);
  (void)state;
  run.stop_at = 2;
  run.verdict = AMXT_RUN_PAUSE;
  OK(amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  assert_int_equal(run.steps, 2);
  run.stop_at = -1;
  OK(amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  assert_int_equal(run.steps, 4);
  assert_int_equal(state_step(f->trainer), 4);
  fixture_free(f);
}

static void a_callback_can_stop_or_fail_a_run(void** state) {
  struct fixture* f = fixture_loaded();
  struct run run;
  amxt_run_options options = options_of(f, &run);
  (void)state;
  run.stop_at = 1;
  run.verdict = -5;
  FAILS(AMXT_E_USER, "-5", amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  assert_int_equal(run.steps, 1);
  run.stop_at = 3;
  run.verdict = AMXT_RUN_STOP;
  OK(amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  assert_int_equal(state_step(f->trainer), 3);
  fixture_free(f);
}

static int32_t cancel_at_two(const amxt_event* event, void* user_data) {
  if (event->step == 2)
    assert_int_equal(amxt_trainer_cancel((amxt_trainer*)user_data, NULL), AMXT_OK);
  return AMXT_RUN_CONTINUE;
}

static void a_cancelled_run_keeps_its_last_step(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_run_options options = AMXT_RUN_OPTIONS_INIT;
  (void)state;
  options.steps = 1000;
  options.event = cancel_at_two;
  options.event_user_data = f->trainer;
  FAILS(AMXT_E_CANCELLED, "", amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  assert_int_equal(state_step(f->trainer), 2);
  step_once(f); /* later calls are not affected */
  assert_int_equal(state_step(f->trainer), 3);
  fixture_free(f);
}

static void* cancel_later(void* argument) {
  struct fixture* f = argument;
  while (state_step(f->trainer) < 2) sched_yield();
  assert_int_equal(amxt_runtime_cancel(f->runtime, NULL), AMXT_OK);
  return NULL;
}

static void another_thread_cancels_a_run(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_run_options options = AMXT_RUN_OPTIONS_INIT;
  pthread_t thread;
  (void)state;
  options.steps = 1000000;
  assert_int_equal(pthread_create(&thread, NULL, cancel_later, f), 0);
  FAILS(AMXT_E_CANCELLED, "", amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_true(state_step(f->trainer) >= 2);
  fixture_free(f);
}

static void bad_runs_are_refused_by_name(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_run_options options = AMXT_RUN_OPTIONS_INIT;
  char* resume = NULL;
  (void)state;
  options.steps = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "steps is 0",
        amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  options.steps = 5;
  options.epochs = 1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "both",
        amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  options.steps = AMXT_UNSET_I64;
  options.epochs = -1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "epochs is -1, not above 0 and at most 1000000",
        amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  options.epochs = 1;
  options.keep = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "keep is 0",
        amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  options.struct_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_run_options",
        amxt_trainer_run(f->trainer, f->dataset, &options, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "dataset is NULL",
        amxt_trainer_run(f->trainer, NULL, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "resume_from is NULL",
        amxt_trainer_prepare(f->trainer, f->dataset, NULL, NULL, LONG, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "dataset is NULL",
        amxt_trainer_prepare(f->trainer, NULL, NULL, &resume, LONG, &err));
  assert_null(resume);
  fixture_free(f);
}

static void the_learning_rate_can_be_set(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  amxt_trainer_state now = AMXT_TRAINER_STATE_INIT;
  (void)state;
  OK(amxt_trainer_set_lr(f->trainer, 0.125, &err));
  OK(amxt_trainer_get_state(f->trainer, &now, &err));
  assert_true(now.learning_rate == 0.125);
  assert_int_equal(now.status, AMXT_TRAINER_READY);
  OK(amxt_trainer_step(f->trainer, &f->batch, &metrics, LONG, &err));
  assert_true(metrics.learning_rate == 0.125);
  OK(amxt_trainer_set_lr(f->trainer, AMXT_UNSET_F64, &err));
  OK(amxt_trainer_get_state(f->trainer, &now, &err));
  assert_true(now.learning_rate != 0.125);
  FAILS(AMXT_E_INVALID_ARGUMENT, "-1", amxt_trainer_set_lr(f->trainer, -1, &err));
  now.struct_size = 1;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_trainer_state",
        amxt_trainer_get_state(f->trainer, &now, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "state is NULL", amxt_trainer_get_state(f->trainer, NULL, &err));
  fixture_free(f);
}

static void effective_options_and_memory_are_told(void** state) {
  struct fixture* f = fixture_loaded();
  amxt_memory_usage usage = AMXT_MEMORY_USAGE_INIT;
  char* json = NULL;
  (void)state;
  OK(amxt_trainer_options_json(f->trainer, &json, &err));
  HAS(json, "\"accumulate\":2");
  HAS(json, "\"compute_dtype\":\"float32\"");
  HAS(json, "\"world_size\":1");
  amxt_string_destroy(json);
  step_once(f);
  OK(amxt_trainer_memory_report(f->trainer, &usage, &json, &err));
  HAS(json, "\"stage\":\"after load\"");
  HAS(json, "\"stage\":\"first step\"");
  assert_true(usage.stage_count >= 4);
  assert_true(usage.rank_private_bytes > 0);
  amxt_string_destroy(json);
  OK(amxt_trainer_memory_report(f->trainer, NULL, NULL, &err));
  usage.struct_size = 0;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_memory_usage",
        amxt_trainer_memory_report(f->trainer, &usage, NULL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL", amxt_trainer_options_json(f->trainer, NULL, &err));
  fixture_free(f);
}

static void bad_options_are_refused_by_name(void** state) {
  struct fixture* f = fixture_with_model();
  amxt_trainer_options options = fixture_trainer_options();
  amxt_trainer** out = &f->trainer;
  (void)state;
  OK(amxt_group_create(f->runtime, NULL, &f->group, &err));
#define REFUSED(field, value, status, part)                                                        \
  do {                                                                                             \
    options = fixture_trainer_options();                                                           \
    options.field = value;                                                                         \
    FAILS(status, part, amxt_trainer_create(f->runtime, f->group, f->model, &options, out, &err)); \
  } while (0)
  REFUSED(compute_dtype, 2, AMXT_E_INVALID_ARGUMENT, "compute_dtype is 2");
  REFUSED(gradient_dtype, AMXT_DTYPE_INT8, AMXT_E_INVALID_ARGUMENT, "gradient_dtype is 8");
  REFUSED(decay, -1, AMXT_E_INVALID_ARGUMENT, "decay is -1");
  REFUSED(schedule, 3, AMXT_E_INVALID_ARGUMENT, "schedule is 3");
  REFUSED(loss_average, 2, AMXT_E_INVALID_ARGUMENT, "loss_average is 2");
  REFUSED(nonfinite, 2, AMXT_E_INVALID_ARGUMENT, "nonfinite is 2");
  REFUSED(keep, 4, AMXT_E_INVALID_ARGUMENT, "keep is 4");
  REFUSED(reschedule, 2, AMXT_E_INVALID_ARGUMENT, "reschedule is 2");
  REFUSED(sequence_length, 0, AMXT_E_INVALID_ARGUMENT, "sequence_length is 0");
  REFUSED(micro_batch, 0, AMXT_E_INVALID_ARGUMENT, "micro_batch is 0");
  REFUSED(accumulate, -3, AMXT_E_INVALID_ARGUMENT, "accumulate is -3");
  REFUSED(learning_rate, -1.0, AMXT_E_INVALID_ARGUMENT, "learning");
  REFUSED(clip, INFINITY, AMXT_E_INVALID_ARGUMENT, "clip");
  REFUSED(beta1, 1.0, AMXT_E_INVALID_ARGUMENT, "beta");
  REFUSED(memory_limit_bytes, 1000, AMXT_E_LIMIT, "1000 bytes");
  REFUSED(ds_config, "{", AMXT_E_FORMAT, "ds_config");
  REFUSED(ds_config, "{\"train_micro_batch_size_per_gpu\": 7, \"gradient_accumulation_steps\": 5}",
          AMXT_E_INVALID_ARGUMENT, "gradient_accumulation_steps");
  REFUSED(struct_size, 16, AMXT_E_INVALID_ARGUMENT, "amxt_trainer_options");
#undef REFUSED
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL",
        amxt_trainer_create(NULL, f->group, f->model, NULL, out, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "group is NULL",
        amxt_trainer_create(f->runtime, NULL, f->model, NULL, out, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "model is NULL",
        amxt_trainer_create(f->runtime, f->group, NULL, NULL, out, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "trainer is NULL",
        amxt_trainer_create(f->runtime, f->group, f->model, NULL, NULL, &err));
  assert_null(f->trainer);
  fixture_free(f);
}

// A caller built with the header before fields were appended: what is behind them is not his.
static void sizes_of_older_headers_stay_good(void** state) {
  (void)state;
  struct fixture* f = fixture_with_model();
  amxt_group_options group = AMXT_GROUP_OPTIONS_INIT;
  group.struct_size = offsetof(amxt_group_options, allow_unauthenticated_data);
  group.rank = 0;
  group.world_size = 1;
  group.allow_unauthenticated_data = 77;
  OK(amxt_group_create(f->runtime, &group, &f->group, &err));
  amxt_trainer_options options = fixture_trainer_options();
  options.struct_size = offsetof(amxt_trainer_options, prefetch_parameters);
  options.prefetch_parameters = -77;
  options.live_parameters = -77;
  options.wire_dtype = 77;
  OK(amxt_trainer_create(f->runtime, f->group, f->model, &options, &f->trainer, &err));
  OK(amxt_trainer_load(f->trainer, f->model_path, LONG, &err));
  amxt_step_metrics metrics = AMXT_STEP_METRICS_INIT;
  metrics.struct_size = offsetof(amxt_step_metrics, wire_bytes);
  metrics.wire_bytes = 77;
  metrics.wire_wait_seconds = 77;
  OK(amxt_trainer_step(f->trainer, &f->batch, &metrics, LONG, &err));
  assert_int_equal(metrics.step, 1);
  assert_int_equal(metrics.struct_size, offsetof(amxt_step_metrics, wire_bytes));
  assert_int_equal(metrics.wire_bytes, 77);
  assert_true(metrics.wire_wait_seconds == 77);
  metrics.struct_size += 4;
  FAILS(AMXT_E_INVALID_ARGUMENT, "amxt_step_metrics",
        amxt_trainer_step(f->trainer, &f->batch, &metrics, LONG, &err));
  fixture_free(f);
}

static void a_trainer_outlives_its_parents(void** state) {
  struct fixture* f = fixture_loaded();
  (void)state;
  amxt_runtime_destroy(f->runtime);
  amxt_model_destroy(f->model);
  amxt_group_destroy(f->group);
  f->runtime = NULL;
  f->model = NULL;
  f->group = NULL;
  step_once(f);
  assert_int_equal(state_step(f->trainer), 1);
  fixture_free(f);
}

static void null_trainers_are_refused(void** state) {
  float value = 0;
  char* json = NULL;
  amxt_op* op = NULL;
  amxt_batch batch = AMXT_BATCH_INIT;
  amxt_trainer_state now = AMXT_TRAINER_STATE_INIT;
  amxt_evaluation evaluation = AMXT_EVALUATION_INIT;
  const amxt_status bad = AMXT_E_INVALID_ARGUMENT;
  const char* part = "trainer is NULL";
  (void)state;
  FAILS(bad, part, amxt_trainer_prepare(NULL, NULL, NULL, &json, 0, &err));
  FAILS(bad, part, amxt_trainer_load(NULL, "x", 0, &err));
  FAILS(bad, part, amxt_trainer_step(NULL, &batch, NULL, 0, &err));
  FAILS(bad, part, amxt_trainer_step_async(NULL, &batch, NULL, &op, &err));
  FAILS(bad, part, amxt_trainer_forward(NULL, &batch, &value, 1, 0, &err));
  FAILS(bad, part, amxt_trainer_evaluate(NULL, NULL, &evaluation, 0, &err));
  FAILS(bad, part, amxt_trainer_run(NULL, NULL, NULL, 0, &err));
  FAILS(bad, part, amxt_trainer_cancel(NULL, &err));
  FAILS(bad, part, amxt_trainer_get_state(NULL, &now, &err));
  FAILS(bad, part, amxt_trainer_set_lr(NULL, 1, &err));
  FAILS(bad, part, amxt_trainer_options_json(NULL, &json, &err));
  FAILS(bad, part, amxt_trainer_memory_report(NULL, NULL, &json, &err));
  FAILS(bad, part, amxt_trainer_read_rows(NULL, "x", 0, 0, 1, &value, 1, 0, &err));
  FAILS(bad, part, amxt_trainer_write_rows(NULL, "x", 0, 0, 1, &value, 1, 0, &err));
  FAILS(bad, part, amxt_trainer_save(NULL, "x", 0, &err));
  FAILS(bad, part, amxt_trainer_resume(NULL, "x", 0, &err));
  FAILS(bad, part, amxt_trainer_export(NULL, "x", 0, &err));
  amxt_trainer_destroy(NULL);
  assert_null(json);
  assert_null(op);
}

static void peak_can_be_cancelled_and_has_a_deadline(void** state) {
  struct fixture* f = fixture_new();
  char* json = NULL;
  (void)state;
  FAILS(AMXT_E_TIMEOUT, "", amxt_preview_bench_peak(f->runtime, &json, AMXT_POLL, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "runtime is NULL", amxt_preview_bench_peak(NULL, &json, 0, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "json is NULL",
        amxt_preview_bench_peak(f->runtime, NULL, 0, &err));
  assert_null(json);
  fixture_free(f);
}

static void benchmarks_are_named_and_their_options_checked(void** state) {
  struct fixture* f = fixture_new();
  char* json = NULL;
  (void)state;
  FAILS(AMXT_E_INVALID_ARGUMENT, "one of gemm, attention, optimizer, head, norms, layer, peak",
        amxt_preview_bench(f->runtime, "gem", NULL, &json, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "name is NULL",
        amxt_preview_bench(f->runtime, NULL, NULL, &json, AMXT_FOREVER, &err));
  FAILS(AMXT_E_INVALID_ARGUMENT, "peak has none",
        amxt_preview_bench(f->runtime, "peak", "{}", &json, AMXT_FOREVER, &err));
  FAILS(AMXT_E_TIMEOUT, "", amxt_preview_bench(f->runtime, "gemm", NULL, &json, AMXT_POLL, &err));
  static const char* const wrong[] = {"[]",
                                      "{\"shape\": [[1,2,3]]}",
                                      "{\"shapes\": []}",
                                      "{\"shapes\": [[1,2]]}",
                                      "{\"shapes\": [[1,2,0]]}",
                                      "{\"shapes\": [[1,2,3.5]]}",
                                      "{\"shapes\": [[1,2,1048577]]}",
                                      "{\"repeat\": 0}",
                                      "{\"repeat\": \"5\"}"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
    FAILS(AMXT_E_INVALID_ARGUMENT, "bench gemm: ",
          amxt_preview_bench(f->runtime, "gemm", wrong[i], &json, AMXT_FOREVER, &err));
  }
  FAILS(AMXT_E_FORMAT, "", amxt_preview_bench(f->runtime, "gemm", "{", &json, AMXT_FOREVER, &err));
  static const struct {
    const char *name, *options, *says;
  } misfits[] = {
      {"attention", "{\"shapes\": [[8,3,2,16]]}", "bench attention: kv_heads must divide heads"},
      {"attention", "{\"shapes\": [[8,2,2,15]]}", "bench attention: head_dim must be even"},
      {"attention", "{\"shapes\": [[8,2,2]]}", "is no shape [T, heads, kv_heads, head_dim]"},
      {"attention", "{\"shapes\": [[65537,2,2,16]]}", "T is 65537, and must be"},
      {"optimizer", "{\"shapes\": [[0]]}", "parameters is 0, and must be"},
      {"optimizer", "{\"shapes\": [8]}", "8 is no shape [parameters]"},
      {"head", "{\"shapes\": [[8,true,8]]}", "vocab is true, and must be"},
      {"norms", "{\"shapes\": [[8,64,64,3]]}", "bench norms: head_dim must be even"},
      {"norms", "{\"shapes\": [[8,64,64,6]]}", "bench norms: head_dim must divide hidden"},
      {"layer", "{\"shapes\": [[8,64,64,3,2,16]]}", "bench layer: kv_heads must divide heads"},
      {"layer", "{\"shapes\": [[8,64,64,2,2,15]]}", "bench layer: head_dim must be even"}};
  for (size_t i = 0; i < sizeof misfits / sizeof *misfits; ++i) {
    FAILS(AMXT_E_INVALID_ARGUMENT, misfits[i].says,
          amxt_preview_bench(f->runtime, misfits[i].name, misfits[i].options, &json, AMXT_FOREVER,
                             &err));
    FAILS(AMXT_E_TIMEOUT, "",
          amxt_preview_bench(f->runtime, misfits[i].name, NULL, &json, AMXT_POLL, &err));
  }
  FAILS(AMXT_E_OUT_OF_MEMORY, "bench head: T 65536, vocab 4194304, hidden 65536 takes 1",
        amxt_preview_bench(f->runtime, "head", "{\"shapes\": [[65536,4194304,65536]]}", &json,
                           AMXT_FOREVER, &err));
  assert_null(json);
  assert_int_equal(amxt_preview_bench(f->runtime, "gemm", "{\"shapes\": [[3,5,7]], \"repeat\": 1}",
                                      &json, AMXT_FOREVER, NULL),
                   AMXT_OK);
  assert_non_null(strstr(json, "\"grad_weight_added\""));
  amxt_string_destroy(json);
  fixture_free(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_step_lowers_the_loss_and_moves_the_weights),
      cmocka_unit_test(before_load_there_are_no_steps),
      cmocka_unit_test(bad_batches_are_refused_and_change_nothing),
      cmocka_unit_test(a_step_that_may_not_wait_changes_nothing),
      cmocka_unit_test(an_operation_is_done_once),
      cmocka_unit_test(an_operation_is_not_done_before_it_has_run),
      cmocka_unit_test(a_queued_operation_can_be_cancelled),
      cmocka_unit_test(an_operation_outlives_its_trainer),
      cmocka_unit_test(null_operations_are_refused),
      cmocka_unit_test(forward_gives_the_loss_of_each_label),
      cmocka_unit_test(gradients_can_be_read_and_commit_nothing),
      cmocka_unit_test(rows_that_are_written_are_read),
      cmocka_unit_test(evaluate_gives_loss_and_perplexity),
      cmocka_unit_test(data_of_another_length_is_refused),
      cmocka_unit_test(a_run_tells_all_that_happens),
      cmocka_unit_test(a_run_pauses_and_goes_on),
      cmocka_unit_test(a_callback_can_stop_or_fail_a_run),
      cmocka_unit_test(a_cancelled_run_keeps_its_last_step),
      cmocka_unit_test(another_thread_cancels_a_run),
      cmocka_unit_test(bad_runs_are_refused_by_name),
      cmocka_unit_test(the_learning_rate_can_be_set),
      cmocka_unit_test(effective_options_and_memory_are_told),
      cmocka_unit_test(bad_options_are_refused_by_name),
      cmocka_unit_test(sizes_of_older_headers_stay_good),
      cmocka_unit_test(a_trainer_outlives_its_parents),
      cmocka_unit_test(null_trainers_are_refused),
      cmocka_unit_test(peak_can_be_cancelled_and_has_a_deadline),
      cmocka_unit_test(benchmarks_are_named_and_their_options_checked),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
