#!/usr/bin/env python3
"""tools/check_header.py catches each planted violation."""

import pathlib
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))

import check_header  # noqa: E402

GOOD = """
typedef struct amxt_model amxt_model;

/** Options of opening. */
typedef struct amxt_open_options {
  uint32_t struct_size; /**< sizeof the struct */
  int64_t limit;
} amxt_open_options;
#define AMXT_OPEN_OPTIONS_INIT {sizeof(amxt_open_options), -1}

/**
 * Opens a model.
 * @param[in] path the folder
 * @param[out] out the caller owns it
 * @param[in,out] err optional
 * @return AMXT_OK, AMXT_E_IO
 * Thread-safety: any thread.
 * Blocking: reads files.
 * Collective: no.
 * Since: 0.1
 */
AMXT_API amxt_status amxt_model_open(const char *path, amxt_model **out,
                                     amxt_error *err);
"""


def problems(text):
    return check_header.check_comments(check_header.Header(text))


class CheckHeader(unittest.TestCase):
    def test_a_good_header_passes(self):
        self.assertEqual(problems(GOOD), [])

    def test_each_missing_piece_is_named(self):
        for piece, complaint in [
                (" * @param[in] path the folder\n", "parameter 'path' has 0 @param lines"),
                (" * @return AMXT_OK, AMXT_E_IO\n", "has no @return"),
                (" * Thread-safety: any thread.\n", "has no 'Thread-safety:'"),
                (" * Blocking: reads files.\n", "has no 'Blocking:'"),
                (" * Collective: no.\n", "has no 'Collective:'"),
                (" * Since: 0.1\n", "has no 'Since:'"),
                (" * Opens a model.\n", "does not say what it does"),
                ("/** Options of opening. */\n", "has no comment"),
                ("#define AMXT_OPEN_OPTIONS_INIT {sizeof(amxt_open_options), -1}\n", "has no AMXT_OPEN_OPTIONS_INIT"),
                ("  uint32_t struct_size; /**< sizeof the struct */\n", "does not start with uint32_t struct_size"),
                ("AMXT_API ", "declared without AMXT_API")]:
            self.assertIn(piece, GOOD)
            found = problems(GOOD.replace(piece, ""))
            self.assertTrue(any(complaint in p for p in found), f"{complaint}: {found}")

    def test_each_wrong_piece_is_named(self):
        for old, new, complaint in [
                ("@param[in] path", "@param path", "neither [in], [out] nor [in,out]"),
                ("@param[in] path", "@param[in] folder", "which is no parameter"),
                ("int64_t limit;", "bool limit;", "no fixed width"),
                ("int64_t limit;", "long limit;", "no fixed width"),
                ("int64_t limit;", "uint32_t limit : 3;", "bit-field"),
                ("amxt_error *err)", "amxt_error *error)", "the last parameter is not err"),
                ("amxt_model_open(", "amxt_preview_open(", "under AMXT_ENABLE_PREVIEW")]:
            found = problems(GOOD.replace(old, new))
            self.assertTrue(any(complaint in p for p in found), f"{complaint}: {found}")

    def test_callbacks_and_arrays_have_names(self):
        self.assertEqual(check_header.split_parameters("void (*done)(void *, int), const int64_t shape[4], void *data"),
                         ["done", "shape", "data"])
        self.assertEqual(check_header.split_parameters("void"), [])


if __name__ == "__main__":
    unittest.main()
