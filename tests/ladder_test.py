#!/usr/bin/env python3
"""The shape of src/: who may include whom, and what the library never does.

Usage: ladder_test.py <root of the repository>
The rules are functions over text, so that each is shown to catch a planted violation first.
"""

import pathlib
import re
import sys
import unittest

LADDER = ["base", "kernels", "io", "comm", "model", "store", "checkpoint", "train", "capi"]
SOURCES = {".h", ".cpp", ".c", ".inc"}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)

# A call, not a declaration or a method of the same name: what stands before is no identifier.
CALL = r"(?:(?:^|[;{}(),=!&|?]|(?<!:):)\s*|\breturn\s+|\belse\s+|\bstd::|(?<![\w>])::)%s\s*\("
FORBIDDEN = [
    (re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+omp\b", re.MULTILINE), "#pragma omp"),
    (re.compile(CALL % r"(?:abort|exit|_exit|_Exit|quick_exit|terminate)", re.MULTILINE),
     "ends the process"),
    (re.compile(CALL % r"(?:printf|vprintf|puts|putchar|perror)", re.MULTILINE), "prints"),
    (re.compile(r"\b(?:fprintf|fputs|fwrite|vfprintf|fputc)\s*\([^;]*\bstd(?:out|err)\b"), "prints"),
    (re.compile(r"\b(?:dprintf|write)\s*\(\s*(?:1|2|STD(?:OUT|ERR)_FILENO)\s*,"), "prints"),
    (re.compile(r"\bfmt::print\w*\s*\("), "prints"),
    (re.compile(r"\bstd::(?:cout|cerr|clog)\b"), "prints"),
    (re.compile(CALL % r"(?:signal|sigaction|bsd_signal)", re.MULTILINE), "takes a signal handler"),
    (re.compile(CALL % r"(?:fork|vfork|system|popen)", re.MULTILINE), "starts a process"),
]

TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<d>[^()\s\\]{0,16})\(.*?\)(?P=d)"'
    r'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)


def code_only(text):
    """The text without comments and literals; line numbers stay."""

    def blank(match):
        token = match.group(0)
        if token.startswith("'") and re.match(r"[0-9a-fA-F]", text[match.start() - 1:match.start()]):
            return token  # a digit separator
        return ('""' if token[-1] == '"' else " ") + "\n" * token.count("\n")

    # Include lines keep their names.
    lines = [("" if INCLUDE.match(line) else line) for line in text.split("\n")]
    return TOKEN.sub(blank, "\n".join(lines))


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def look_up(folder, path, text):
    """Includes of a higher rung, of the public header below capi, and relative ones."""
    problems = []
    for match in INCLUDE.finditer(text):
        quote, name = match.groups()
        where = f"{path}:{line_of(text, match.start(1))}"
        top = name.split("/")[0]
        if name in ("amxtrain.h", "include/amxtrain.h"):
            if folder != "capi":
                problems.append(f"{where}: only capi includes the public header")
        elif quote == '"' and (".." in name.split("/") or "/" not in name):
            problems.append(f'{where}: "{name}" is not written from src/')
        elif quote == '"' and top in LADDER and LADDER.index(top) > LADDER.index(folder):
            problems.append(f'{where}: {folder} includes "{name}" of the higher rung {top}')
        elif name == "omp.h":
            problems.append(f"{where}: no OpenMP in src/")
    return problems


def forbidden(path, text):
    code = code_only(text)
    return [f"{path}:{line_of(code, match.end())}: {what}: {match.group(0).strip()!r}"
            for pattern, what in FORBIDDEN for match in pattern.finditer(code)]


def is_one_paragraph(text):
    body = [line for line in text.strip().split("\n") if not line.startswith("#")]
    return len([p for p in re.split(r"\n\s*\n", "\n".join(body).strip()) if p.strip()]) >= 1


class Rules(unittest.TestCase):
    """Each rule catches what it is there for."""

    def test_looking_up_is_seen(self):
        self.assertTrue(look_up("io", "f", '#include "base/result.h"\n#include "model/layer.h"\n'))
        self.assertTrue(look_up("train", "f", '#include "amxtrain.h"\n'))
        self.assertTrue(look_up("io", "f", '#include "reader.h"\n'))
        self.assertFalse(look_up("io", "f", '#include "base/result.h"\n#include "io/reader.h"\n#include <vector>\n'))
        self.assertFalse(look_up("capi", "f", '#include "amxtrain.h"\n#include "train/trainer.h"\n'))

    def test_forbidden_calls_are_seen(self):
        for bad in ["#pragma omp parallel for", "void f() { abort(); }", "void f() {\n  std::exit(1);\n}",
                    "if (x) ::_exit(1);", "{ printf(\"%d\", 1); }", "fprintf(stderr, \"x\");",
                    "std::cerr << 1;", "fmt::print(\"x\");", "{ signal(SIGTERM, h); }", "return fork();"]:
            self.assertTrue(forbidden("f", bad), bad)

    def test_innocent_text_passes(self):
        for good in ["// abort() is never called", '"exit(1)"', "Result<void> abort(Deadline d);",
                     "group->abort(deadline);", "int n = snprintf(b, 3, \"x\");", "op.exit();",
                     "constexpr int k = 1'000'000; // printf(", "auto s = R\"x(; abort(); )x\";",
                     "void Group::abort(int) {}", "static Result<void> system(int);"]:
            self.assertFalse(forbidden("f", good), good)


class Tree(unittest.TestCase):
    """The repository itself."""

    root = pathlib.Path(".")

    def files(self):
        for folder in LADDER:
            for path in sorted((self.root / "src" / folder).rglob("*")):
                if path.suffix in SOURCES:
                    yield folder, path.relative_to(self.root), path.read_text(encoding="utf-8")

    def check(self, problems):
        self.assertFalse(problems, "\n" + "\n".join(problems))

    def test_no_file_looks_up(self):
        self.check([p for folder, path, text in self.files() for p in look_up(folder, path, text)])

    def test_nothing_forbidden_is_called(self):
        self.check([p for _, path, text in self.files() for p in forbidden(path, text)])

    def test_every_folder_is_a_rung(self):
        found = {p.name for p in (self.root / "src").iterdir() if p.is_dir()}
        self.check([f"src/{name} is not in the ladder" for name in sorted(found - set(LADDER))])

    def test_every_folder_has_a_readme(self):
        self.check([f"src/{folder}/README.md is missing or empty" for folder in LADDER
                    if not (self.root / "src" / folder / "README.md").is_file()
                    or not is_one_paragraph((self.root / "src" / folder / "README.md").read_text())])

    def test_the_command_uses_only_the_public_header(self):
        problems = []
        for path in sorted((self.root / "tools" / "amxtrain").glob("*")):
            if path.suffix in SOURCES:
                text = path.read_text(encoding="utf-8")
                problems += [f"{path.relative_to(self.root)}: includes \"{m.group(2)}\""
                             for m in INCLUDE.finditer(text) if m.group(2).split("/")[0] in LADDER]
        self.check(problems)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Tree.root = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=1)
