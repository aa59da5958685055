// Creates, steps and destroys something real through cgo: train_step NEW_MODEL_DIRECTORY.
package main

// #cgo pkg-config: amxtrain
// #include <amxtrain.h>
// #include <stdlib.h>
import "C"

import (
	"fmt"
	"os"
	"unsafe"
)

const (
	samples   = 2
	positions = 32
	rows      = 4
	minute    = C.int64_t(60_000_000_000)
)

func run(directory string) error {
	if got := C.amxt_version(); got != C.AMXT_VERSION {
		return fmt.Errorf("the library is %d, the header %d", got, C.AMXT_VERSION)
	}
	var failure C.amxt_error
	C.amxt_error_init(&failure)
	check := func(status C.amxt_status) error {
		if status == C.AMXT_OK {
			return nil
		}
		return fmt.Errorf("%s: %s", C.GoString(C.amxt_status_name(status)), C.GoString(&failure.message[0]))
	}

	folder, tiny, tensor := C.CString(directory), C.CString("tiny"), C.CString("model.norm.weight")
	defer C.free(unsafe.Pointer(folder))
	defer C.free(unsafe.Pointer(tiny))
	defer C.free(unsafe.Pointer(tensor))

	var runtime *C.amxt_runtime
	if err := check(C.amxt_runtime_create(nil, &runtime, &failure)); err != nil {
		return err
	}
	defer C.amxt_runtime_destroy(runtime)

	var groupOptions C.amxt_group_options
	C.amxt_group_options_init(&groupOptions, C.uint32_t(unsafe.Sizeof(groupOptions)))
	groupOptions.rank, groupOptions.world_size = 0, 1
	var group *C.amxt_group
	if err := check(C.amxt_group_create(runtime, &groupOptions, &group, &failure)); err != nil {
		return err
	}
	defer C.amxt_group_destroy(group)

	var preset *C.char
	if err := check(C.amxt_model_preset(tiny, &preset, &failure)); err != nil {
		return err
	}
	defer C.amxt_string_destroy(preset)
	if err := check(C.amxt_model_write_random(runtime, preset, folder, nil, minute, &failure)); err != nil {
		return err
	}
	var model *C.amxt_model
	if err := check(C.amxt_model_open(runtime, folder, &model, &failure)); err != nil {
		return err
	}
	defer C.amxt_model_destroy(model)

	var options C.amxt_trainer_options
	C.amxt_trainer_options_init(&options, C.uint32_t(unsafe.Sizeof(options)))
	options.sequence_length, options.accumulate, options.total_steps = positions, samples, 10
	options.learning_rate = 1e-2
	var trainer *C.amxt_trainer
	if err := check(C.amxt_trainer_create(runtime, group, model, &options, &trainer, &failure)); err != nil {
		return err
	}
	defer C.amxt_trainer_destroy(trainer)
	if err := check(C.amxt_trainer_load(trainer, folder, minute, &failure)); err != nil {
		return err
	}

	read := func() (values [rows]C.float, err error) {
		err = check(C.amxt_trainer_read_rows(trainer, tensor, C.AMXT_ROWS_WEIGHT, 0, rows, &values[0], rows,
			minute, &failure))
		return values, err
	}
	before, err := read()
	if err != nil {
		return err
	}

	// A struct that C reads may not point into Go's memory, so the tokens are C's.
	tokens := (*[samples * positions]C.int32_t)(C.malloc(samples * positions * 4))
	defer C.free(unsafe.Pointer(tokens))
	for i := range tokens {
		tokens[i] = C.int32_t((i*7 + 3) % 256)
	}
	var batch C.amxt_batch
	C.amxt_batch_init(&batch, C.uint32_t(unsafe.Sizeof(batch)))
	batch.samples, batch.sequence_length, batch.tokens = samples, positions, &tokens[0]
	var metrics C.amxt_step_metrics
	C.amxt_step_metrics_init(&metrics, C.uint32_t(unsafe.Sizeof(metrics)))
	if err := check(C.amxt_trainer_step(trainer, &batch, &metrics, minute, &failure)); err != nil {
		return err
	}
	after, err := read()
	if err != nil {
		return err
	}

	if !(metrics.loss > 4.5 && metrics.loss < 7.0) {
		return fmt.Errorf("a loss near ln 256 = 5.55 was expected, not %g", float64(metrics.loss))
	}
	if metrics.step != 1 || metrics.tokens != samples*positions {
		return fmt.Errorf("step %d of %d tokens", metrics.step, metrics.tokens)
	}
	if before == after {
		return fmt.Errorf("the step moved no weight")
	}
	fmt.Printf("version %s, loss %.6f, %g -> %g\n", C.GoString(C.amxt_version_string()), float64(metrics.loss),
		float32(before[0]), float32(after[0]))
	return nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: train_step NEW_MODEL_DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
