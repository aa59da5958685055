#!/usr/bin/env python3
"""Breaks the code on purpose, one place at a time, and tells which test turns red.

Works on a copy of the tree in DIR/tree, built in DIR/release; the working tree is never touched. Fails
when a mutation survives, doesn't compile, or its text isn't found exactly once. See README.md.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
BEGIN, END = "<!-- table: run.py -->", "<!-- end of table -->"

# The test programs of each rung, in the order in which they are run: those that take long come last. A
# trailing * takes all that match; after a space, a filter of GoogleTest.
PROGRAMS = {
    "base": ["unit_base"],
    "kernels": ["unit_kernels"],
    "io": ["unit_io"],
    "comm": ["unit_comm", "ranks_comm_*"],
    "model": ["unit_model", "unit_train *Golden*"],  # its truth are the goldens, which a step computes
    "store": ["unit_store", "unit_train *Nodes*"],  # what passes between nodes is tested by steps over nodes
    "checkpoint": ["unit_checkpoint"],
    "train": ["unit_train -*Golden*:*StepBits*", "unit_train *Golden*:*StepBits*"],
    "capi": ["capi_*"],
}


class Broken(Exception):
    """The list or the tree is not as it must be."""


def run(command, **options):
    return subprocess.run(command, check=False, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def must_run(command, **options):
    done = run(command, **options)
    if done.returncode != 0:
        raise Broken(f"{' '.join(map(str, command))}:\n{done.stdout[-4000:]}")
    return done.stdout


def copy_tree(target):
    """Brings target up to date with the files of the working tree; equal ones keep their times."""
    listed = must_run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=SOURCE)
    names = {name for name in listed.split("\0") if name and (SOURCE / name).is_file()}
    for name in names:
        source, copy = SOURCE / name, target / name
        if copy.is_file() and copy.read_bytes() == source.read_bytes():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    for copy in list(target.rglob("*")):
        if copy.is_file() and str(copy.relative_to(target)) not in names:
            copy.unlink()


def programs_of(area, known):
    """Pairs of a program and a filter of its tests."""
    result = []
    for entry in PROGRAMS[area]:
        pattern, _, tests = entry.partition(" ")
        found = [name for name in known if fnmatch.fnmatch(name, pattern)]
        if not found:
            raise Broken(f"area {area}: no test program {pattern}")
        result += [(name, tests or "*") for name in found]
    return result


class Builder:
    def __init__(self, tree, build, jobs):
        self.tree, self.build, self.jobs = tree, build, jobs
        must_run(["cmake", "--preset", "release", "-B", build,
                  f"-DAMXT_DEPS_DIR={SOURCE / 'build' / 'deps'}"], cwd=tree)
        targets = must_run(["ninja", "-C", build, "-t", "targets", "all"])
        self.programs = sorted(set(re.findall(r"^((?:unit|capi|ranks)_\w+): phony$", targets, re.M)))

    def make(self, programs):
        names = sorted({program for program, _ in programs})
        return run(["ninja", "-C", self.build, f"-j{self.jobs}", *names])

    def test(self, program, tests, limit):
        """None when all is green, else what turned red first."""
        environment = dict(os.environ, GTEST_FAIL_FAST="1", GTEST_COLOR="no", GTEST_FILTER=tests)
        process = subprocess.Popen([self.build / "tests" / program], cwd=self.build, text=True,
                                   errors="replace", env=environment, start_new_session=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            text, _ = process.communicate(timeout=limit)
            how = "" if process.returncode >= 0 else f" ({signal.Signals(-process.returncode).name})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            how = " (does not end)"
        if process.returncode == 0:
            return None
        red = re.search(r"^\[  FAILED  \] ([\w/.]+)(?: \(|,|$)", text, re.M)
        if red is None:
            begun = re.findall(r"^\[ RUN      \] ([\w/.]+)", text, re.M)
            return f"{program} {begun[-1] if begun else 'before its first test'}{how}"
        return f"{program} {red.group(1)}{how}"


def place(tree, mutation):
    text = (tree / mutation["file"]).read_text()
    count = text.count(mutation["before"])
    if count != 1:
        raise Broken(f"{mutation['file']}: found {count} times, not once: {mutation['before']!r}")
    if mutation["before"] == mutation["after"]:
        raise Broken(f"{mutation['file']}: changes nothing: {mutation['before']!r}")
    return text


def try_mutation(builder, mutation, programs, limits):
    """What turned red, or an exception; None when the mutation survived."""
    file = builder.tree / mutation["file"]
    whole = place(builder.tree, mutation)
    file.write_text(whole.replace(mutation["before"], mutation["after"]))
    try:
        made = builder.make(programs)
        if made.returncode != 0:
            raise Broken(f"{mutation['file']}: does not compile:\n{made.stdout[-3000:]}")
        for program in programs:
            red = builder.test(*program, limits[program])
            if red is not None:
                return red
        return None
    finally:
        file.write_text(whole)


def key(mutation):
    return "\0".join([mutation["file"], mutation["before"], mutation["after"]])


UNTRIED = "not tried yet"


def read_table():
    """What the table in README.md says, by area and reason; without those that were not tried."""
    text = (HERE / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (.+) \| (.+) \|$", text[text.index(BEGIN):text.index(END)], re.M)
    return {(area, why): red for area, why, red in rows[1:] if red != UNTRIED}


def write_table(mutations, known):
    """Into README.md, from what is known of all mutations: of this run, of earlier ones, of the table."""
    table = read_table()
    rows = [f"| {m['area']} | {m['why']} | "
            f"{known.get(key(m)) or table.get((m['area'], m['why'])) or UNTRIED} |" for m in mutations]
    table = "\n".join([BEGIN, "", "| area | broken | first red |", "|---|---|---|", *rows, "", END])
    readme = HERE / "README.md"
    text = readme.read_text()
    readme.write_text(text[:text.index(BEGIN)] + table + text[text.index(END) + len(END):])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True, type=Path, help="folder for the copy and its build")
    parser.add_argument("--area", action="append", choices=PROGRAMS, help="this rung alone; may be repeated")
    parser.add_argument("--match", action="append",
                        help="only mutations whose file or reason contains this; may be repeated")
    parser.add_argument("--untried", action="store_true",
                        help="only mutations that the table in README.md has no result of")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--readme", action="store_true",
                        help="write what runs with this folder have shown into README.md")
    arguments = parser.parse_args()

    mutations = json.loads((HERE / "mutations.json").read_text())
    for area in PROGRAMS:
        if sum(m["area"] == area for m in mutations) < 5:
            raise Broken(f"area {area}: fewer than five mutations")
    table = read_table()
    chosen = [m for m in mutations
              if (not arguments.area or m["area"] in arguments.area)
              and any(part in m["file"] or part in m["why"] for part in arguments.match or [""])
              and not (arguments.untried and (m["area"], m["why"]) in table)]
    for mutation in chosen:
        place(SOURCE, mutation)
        if not mutation["file"].startswith(f"src/{mutation['area']}/"):
            raise Broken(f"{mutation['file']} is not of the area {mutation['area']}")

    tree = (arguments.build / "tree").resolve()
    tree.mkdir(parents=True, exist_ok=True)
    copy_tree(tree)
    builder = Builder(tree, (arguments.build / "release").resolve(), arguments.jobs)
    areas = [area for area in PROGRAMS if any(m["area"] == area for m in chosen)]
    of_area = {area: programs_of(area, builder.programs) for area in areas}
    everything = sorted({program for programs in of_area.values() for program in programs})
    made = builder.make(everything)
    if made.returncode != 0:
        raise Broken(f"the tree does not build:\n{made.stdout[-3000:]}")
    limits = {}
    for program in everything:
        begin = time.monotonic()
        red = builder.test(*program, 600)
        if red is not None:
            raise Broken(f"red before anything is broken: {red}")
        limits[program] = 30 + 3 * (time.monotonic() - begin)
        print(f"green: {' '.join(program)}, {time.monotonic() - begin:.1f} s", flush=True)

    memory = arguments.build / "results.json"
    known = json.loads(memory.read_text()) if memory.is_file() else {}
    tried, survivors = 0, 0
    for area in areas:
        for mutation in (m for m in chosen if m["area"] == area):
            tried += 1
            try:
                red = try_mutation(builder, mutation, of_area[area], limits)
            except Broken as reason:
                survivors += 1
                print(f"NOTHING TRIED: {reason}", flush=True)
                continue
            survivors += red is None
            known[key(mutation)] = red
            memory.write_text(json.dumps(known, indent=1))
            print(f"{'SURVIVED' if red is None else 'red'}: {mutation['file']}: {mutation['why']}"
                  f"{'' if red is None else ': ' + red}", flush=True)
    print(f"{tried} mutations, {survivors} survived")
    if arguments.readme:
        write_table(mutations, known)
    return 1 if survivors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as reason:
        print(f"mutations: {reason}", file=sys.stderr)
        sys.exit(2)
