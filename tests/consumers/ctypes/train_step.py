#!/usr/bin/env python3
"""Creates, steps and destroys something real through ctypes: train_step.py LIBRARY NEW_MODEL_DIRECTORY."""

import ctypes
import sys
from ctypes import POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p

UNSET_I32 = -(2**31)
UNSET_I64 = -(2**63)
MINUTE = 60 * 10**9
SAMPLES, POSITIONS, ROWS = 2, 32, 4


class Error(Structure):
    _fields_ = [("struct_size", c_uint32), ("code", c_int32), ("sys_errno", c_int32), ("rank", c_int32),
                ("message", c_char * 1008)]


class GroupOptions(Structure):
    _fields_ = [("struct_size", c_uint32), ("rank", c_int32), ("world_size", c_int32), ("local_rank", c_int32),
                ("local_size", c_int32), ("port", c_int32), ("address", c_char_p), ("connect_timeout_ns", c_int64),
                ("heartbeat_timeout_ns", c_int64), ("allow_unauthenticated_data", c_int32), ("reserved", c_int32)]


class TrainerOptions(Structure):
    _fields_ = ([("struct_size", c_uint32)]
                + [(name, c_int32) for name in (
                    "compute_dtype", "gradient_dtype", "decay", "schedule", "loss_average", "nonfinite", "keep",
                    "forward_only", "reschedule")]
                + [(name, c_int64) for name in (
                    "sequence_length", "micro_batch", "accumulate", "wave", "warmup_steps", "total_steps",
                    "log_steps", "seed", "memory_limit_bytes", "timeout_ns")]
                + [(name, c_double) for name in (
                    "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "clip")]
                + [("ds_config", c_char_p), ("ds_config_name", c_char_p), ("progress", c_void_p),
                   ("progress_user_data", c_void_p), ("prefetch_parameters", c_int64),
                   ("live_parameters", c_int64), ("wire_dtype", c_int32), ("reserved", c_int32)])


class Batch(Structure):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_int32), ("samples", c_int64), ("sequence_length", c_int64),
                ("tokens", POINTER(c_int32)), ("labels", c_void_p), ("weights", c_void_p),
                ("document_starts", c_void_p), ("lengths", c_void_p)]


class StepMetrics(Structure):
    _fields_ = [("struct_size", c_uint32), ("world_size", c_int32), ("skipped", c_int32), ("reserved", c_int32),
                ("step", c_int64), ("epoch", c_double), ("loss", c_double), ("grad_norm", c_double),
                ("learning_rate", c_double), ("tokens", c_int64), ("seconds", c_double),
                ("tokens_per_second", c_double), ("model_tflops", c_double), ("peak_rss_bytes", c_int64),
                ("peak_pss_bytes_all_ranks", c_int64), ("wire_bytes", c_int64), ("wire_wait_seconds", c_double)]


def initialised(library, kind, name):
    """A struct set up by its init function, which must agree with the size that ctypes computes."""
    value = kind()
    init = library["amxt_" + name + "_init"]
    init.restype = None
    init(ctypes.byref(value), c_uint32(ctypes.sizeof(kind)))
    assert value.struct_size == ctypes.sizeof(kind), f"{name}: {value.struct_size} != {ctypes.sizeof(kind)}"
    return value


def main(path, directory):
    library = ctypes.CDLL(path)
    library.amxt_version_string.restype = c_char_p
    err = Error()
    library.amxt_error_init(ctypes.byref(err))

    def call(name, *arguments):
        if library[name](*arguments, ctypes.byref(err)) != 0:
            raise RuntimeError(f"{name}: {err.code}: {err.message.decode()}")

    runtime, group, model, trainer, preset = (c_void_p() for _ in range(5))
    group_options = initialised(library, GroupOptions, "group_options")
    options = initialised(library, TrainerOptions, "trainer_options")
    batch = initialised(library, Batch, "batch")
    metrics = initialised(library, StepMetrics, "step_metrics")
    assert (group_options.rank, options.total_steps) == (UNSET_I32, UNSET_I64)

    group_options.rank, group_options.world_size = 0, 1
    options.sequence_length, options.accumulate, options.total_steps = POSITIONS, SAMPLES, 10
    options.learning_rate = 1e-2
    tokens = (c_int32 * (SAMPLES * POSITIONS))(*[(i * 7 + 3) % 256 for i in range(SAMPLES * POSITIONS)])
    batch.samples, batch.sequence_length, batch.tokens = SAMPLES, POSITIONS, tokens

    folder = directory.encode()

    def rows():
        values = (c_float * ROWS)()
        call("amxt_trainer_read_rows", trainer, b"model.norm.weight", c_int32(0), c_int64(0), c_int64(ROWS), values,
             c_int64(ROWS), c_int64(MINUTE))
        return list(values)

    try:
        call("amxt_runtime_create", None, ctypes.byref(runtime))
        call("amxt_group_create", runtime, ctypes.byref(group_options), ctypes.byref(group))
        call("amxt_model_preset", b"tiny", ctypes.byref(preset))
        call("amxt_model_write_random", runtime, preset, folder, None, c_int64(MINUTE))
        call("amxt_model_open", runtime, folder, ctypes.byref(model))
        call("amxt_trainer_create", runtime, group, model, ctypes.byref(options), ctypes.byref(trainer))
        call("amxt_trainer_load", trainer, folder, c_int64(MINUTE))
        before = rows()
        call("amxt_trainer_step", trainer, ctypes.byref(batch), ctypes.byref(metrics), c_int64(MINUTE))
        after = rows()
        assert 4.5 < metrics.loss < 7.0, f"a loss near ln 256 = 5.55 was expected, not {metrics.loss}"
        assert (metrics.step, metrics.tokens) == (1, SAMPLES * POSITIONS), (metrics.step, metrics.tokens)
        assert before != after, "the step moved no weight"
        print(f"version {library.amxt_version_string().decode()}, loss {metrics.loss:.6f}, {before[0]} -> {after[0]}")
    finally:
        library.amxt_trainer_destroy(trainer)
        library.amxt_model_destroy(model)
        library.amxt_group_destroy(group)
        library.amxt_runtime_destroy(runtime)
        library.amxt_string_destroy(preset)


if __name__ == "__main__":
    main(*sys.argv[1:3])
