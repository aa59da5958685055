#!/usr/bin/env python3
"""bench/ops.py: turns, medians and ratios, with programs in the place of amxtrain and of the peers that answer what they are told.

Usage: bench_ops_test.py <root of the repository>
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else __file__).resolve()

# Takes the next number of `times` for each call, and writes down who was called with what.
PROGRAM = """#!{python}
import json, pathlib, sys
here = pathlib.Path({folder!r})
calls = here / "calls"
words = sys.argv[1:]
calls.write_text((calls.read_text() if calls.exists() else "") + json.dumps([{who!r}] + words) + "\\n")
count = sum(1 for line in calls.read_text().splitlines() if json.loads(line)[0] == {who!r})
times = {times!r}
if {who!r} == "peer" and words[1] in {failing!r}:
    sys.exit("ImportError: no such library")
print("libraries talk before they answer")
row = {{"form": {form!r}, "seconds": times[(count - 1) % len(times)], "ratio_to_peak": 0.5, "cpu_ratio_to_peak": 0.75}}
print(json.dumps({{"peak": {{"name": "limit"}}, "rows": [row]}}))
"""


class Ops(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.scratch.name)

    def tearDown(self):
        self.scratch.cleanup()

    def program(self, who, times, form, failing=()):
        path = self.folder / who
        path.write_text(PROGRAM.format(python=sys.executable, folder=str(self.folder), who=who, times=times, form=form,
                                       failing=list(failing)))
        path.chmod(0o755)
        return path

    def run_ops(self, form, only, ours, theirs, failing=(), rounds="3"):
        return subprocess.run([sys.executable, str(ROOT / "bench/ops.py"), "--out", str(self.folder / "out"), "--rounds", rounds,
                               "--only", only, "--amxtrain", str(self.program("own", ours, form)),
                               "--python", str(self.program("peer", theirs, form, failing))], capture_output=True, text=True)

    def lines(self):
        return json.loads((self.folder / "out/ops.json").read_text())["lines"]

    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def test_programs_take_turns_and_medians_count(self):
        done = self.run_ops("forward and backward", "head", [2.0, 9.0, 1.0], [8.0, 7.0, 1.0])
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([call[0] for call in self.calls()], ["own", "peer"] * 3)
        line, = self.lines()
        self.assertEqual((line["operation"], line["shape"], line["seconds"]), ("head", "512,128256,4096", 2.0))
        self.assertEqual((line["ratio_to_peak"], line["cpu_ratio_to_peak"]), (0.5, 0.75))
        self.assertEqual(line["peers"], {"head": {"seconds": 7.0, "times_as_fast": 3.5}})
        self.assertIn("3.50 x head (7000.0 ms)", done.stdout)
        own, peer = self.calls()[:2]
        self.assertEqual(own[1:3], ["bench", "head"])
        self.assertEqual(own[own.index("--shape") + 1], peer[peer.index("head") + 1], "the same shape for both")

    def test_a_peer_that_does_not_run_is_named_and_asked_once(self):
        done = self.run_ops("norm, clip, AdamW", "optimizer", [1.0], [3.0], ["optimizer-deepspeed"], rounds="2")
        self.assertEqual(done.returncode, 0, done.stderr)
        line, = self.lines()
        self.assertEqual(line["peers"]["optimizer"]["times_as_fast"], 3.0)
        self.assertIn("ImportError: no such library", line["peers"]["optimizer-deepspeed"]["failed"])
        asked = [call[2] for call in self.calls() if call[0] == "peer"]
        self.assertEqual(asked, ["optimizer", "optimizer-deepspeed", "optimizer"])

    def test_our_own_failure_ends_it(self):
        done = subprocess.run([sys.executable, str(ROOT / "bench/ops.py"), "--out", str(self.folder / "out"), "--only", "head",
                               "--amxtrain", "/bin/false"], capture_output=True, text=True)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("/bin/false ended with 1", done.stderr)
        self.assertFalse((self.folder / "out").exists())


if __name__ == "__main__":
    unittest.main()
