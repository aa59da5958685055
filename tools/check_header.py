#!/usr/bin/env python3
"""Checks that include/amxtrain.h keeps its own rules.

Usage:
  check_header.py comments HEADER            each function, struct and typedef is documented as it must be
  check_header.py symbols HEADER LIBRARY     what the library exports is what the header declares
  check_header.py uses HEADER                prints a C and C++ program that uses each INIT macro

A function's comment is a /** */ block right before it, with @param[in], [out] or [in,out] for each
parameter, @return unless it returns void, and the fields "Thread-safety:", "Blocking:", "Collective:" and
"Since:". A struct has a comment right before it and an INIT macro.
"""

import re
import subprocess
import sys

FIELDS = ("Thread-safety:", "Blocking:", "Collective:", "Since:")
FROZEN = {"amxt_error"}  # never grows, so it carries no struct_size
# An integer of unclear width, a bool or an enum in a struct is another layout with another compiler.
LOOSE_TYPES = re.compile(r"^(?:const\s+)?(?:bool|_Bool|enum\b.*|(?:unsigned |signed )?(?:int|long|short|long long)|size_t|unsigned)$")


class Header:
    """Declarations of the header, each with the comment right before it."""

    def __init__(self, text):
        self.text = text
        self.comments = [(m.start(), m.end(), m.group(0)) for m in re.finditer(r"/\*.*?\*/", text, re.DOTALL)]
        # Comments become spaces, so that positions stay.
        bare = text
        for start, end, comment in self.comments:
            bare = bare[:start] + re.sub(r"[^\n]", " ", comment) + bare[end:]
        self.bare = re.sub(r"//[^\n]*", lambda m: " " * len(m.group(0)), bare)
        self.functions = list(self._functions())
        self.structs = list(self._structs())
        self.macros = set(re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", self.bare, re.MULTILINE))
        self.opaque = set(re.findall(r"typedef\s+struct\s+(\w+)\s+\1\s*;", self.bare))

    def comment_before(self, position, opening="/**"):
        """The comment with nothing but white space between it and position, or ''."""
        for start, end, comment in reversed(self.comments):
            if end <= position:
                between = self.bare[end:position]
                return comment if comment.startswith(opening) and not between.strip() else ""
        return ""

    def line(self, position):
        return self.text.count("\n", 0, position) + 1

    def _functions(self):
        for match in re.finditer(r"^[ \t]*AMXT_API\b([^;{]*?)\b(amxt_\w+)\s*\(([^;{]*)\)([^;()]*);", self.bare,
                                 re.MULTILINE | re.DOTALL):
            returns, name, parameters = (re.sub(r"\s+", " ", g).strip() for g in match.groups()[:3])
            start = match.start() + len(match.group(0)) - len(match.group(0).lstrip())
            yield {"name": name, "returns": returns, "line": self.line(start),
                   "parameters": split_parameters(parameters), "comment": self.comment_before(start)}

    def _structs(self):
        for match in re.finditer(r"^typedef\s+struct\s+(\w+)\s*\{(.*?)\}\s*(\w+)\s*;", self.bare,
                                 re.MULTILINE | re.DOTALL):
            fields = [re.sub(r"\s+", " ", f).strip() for f in match.group(2).split(";")]
            yield {"name": match.group(3), "line": self.line(match.start()),
                   "fields": [f for f in fields if f], "comment": self.comment_before(match.start(), "/*")}


def split_parameters(text):
    """Names of the parameters, in order."""
    if text in ("", "void"):
        return []
    depth, part, parts = 0, "", []
    for letter in text + ",":
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
            continue
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        part += letter
    names = []
    for part in parts:
        pointer = re.search(r"\(\s*\*\s*(\w+)\s*\)", part)
        names.append(pointer.group(1) if pointer else re.findall(r"\w+", re.sub(r"\[.*?\]", "", part))[-1])
    return names


def init_macro(struct):
    return struct.upper() + "_INIT"


def check_function(function):
    problems = []
    comment = function["comment"]
    if not comment:
        return ["has no /** */ comment right before it"]
    documented = re.findall(r"@param\[(in|out|in,out)\]\s+(\w+)", comment)
    names = [name for _, name in documented]
    for bad in re.findall(r"@param(?!\[(?:in|out|in,out)\]\s)\S*\s+\S*", comment):
        problems.append(f"'{bad}' says neither [in], [out] nor [in,out]")
    for name in function["parameters"]:
        if names.count(name) != 1:
            problems.append(f"parameter '{name}' has {names.count(name)} @param lines")
    for name in names:
        if name not in function["parameters"]:
            problems.append(f"@param of '{name}', which is no parameter")
    if function["returns"] != "void" and "@return" not in comment:
        problems.append("has no @return")
    if function["returns"] == "void" and "@return" in comment:
        problems.append("has a @return, yet returns nothing")
    for field in FIELDS:
        if not re.search(re.escape(field) + r"\s*\S", comment):
            problems.append(f"has no '{field}'")
    text = re.sub(r"^/\*\*|\*/$", "", comment)
    if not re.sub(r"[\s*]", "", text.split("@")[0]):
        problems.append("does not say what it does")
    return problems


def check_struct(struct, macros):
    problems = []
    if not struct["comment"]:
        problems.append("has no comment right before it")
    if init_macro(struct["name"]) not in macros:
        problems.append(f"has no {init_macro(struct['name'])}")
    if struct["name"] not in FROZEN and (not struct["fields"] or struct["fields"][0] != "uint32_t struct_size"):
        problems.append("does not start with uint32_t struct_size")
    for field in struct["fields"]:
        if re.search(r"\w\s*:\s*\d", field):
            problems.append(f"bit-field '{field}'")
        kind = re.sub(r"\s*\w+(\s*\[[^\]]*\])*(\s*,.*)?$", "", field)
        if "(" not in field and "*" not in field and LOOSE_TYPES.match(kind):
            problems.append(f"field '{field}' has no fixed width")
    return problems


def check_comments(header):
    problems = []
    for function in header.functions:
        problems += [f"{function['line']}: {function['name']}: {p}" for p in check_function(function)]
        returns_status = function["returns"] == "amxt_status"
        if returns_status and (not function["parameters"] or function["parameters"][-1] != "err"):
            problems.append(f"{function['line']}: {function['name']}: the last parameter is not err")
    for struct in header.structs:
        problems += [f"{struct['line']}: {struct['name']}: {p}" for p in check_struct(struct, header.macros)]
    # A prototype that is not marked would be hidden by the compiler and reported by the linker of a user.
    marked = {f["name"] for f in header.functions}
    for match in re.finditer(r"^(?!.*\btypedef\b)[\w \t*]*?\b(amxt_\w+)[ \t]*\(", header.bare, re.MULTILINE):
        if match.group(1) not in marked and not match.group(0).lstrip().startswith("#"):
            problems.append(f"{header.line(match.start(1))}: {match.group(1)}: declared without AMXT_API")
    names = [f["name"] for f in header.functions]
    problems += [f"{n}: declared twice" for n in sorted(set(names)) if names.count(n) > 1]
    preview = re.search(r"#\s*if(?:def)?\b[^\n]*AMXT_ENABLE_PREVIEW.*?\n#\s*endif", header.bare, re.DOTALL)
    inside = preview.group(0) if preview else ""
    for name in names:
        if name.startswith("amxt_preview_") != bool(re.search(rf"\b{name}\b", inside)):
            problems.append(f"{name}: preview functions, and they alone, stand under AMXT_ENABLE_PREVIEW")
    if not names:
        problems.append("no function found")
    return problems


def exported(library):
    out = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    names = set()
    for line in out.splitlines():
        kind, name = line.split()[-2:]
        if kind != "A":  # the version's own name
            names.add(name.split("@")[0])
    return names


def check_symbols(header, library):
    declared = {f["name"] for f in header.functions}
    found = exported(library)
    return ([f"declared, not exported: {name}" for name in sorted(declared - found)]
            + [f"exported, not declared: {name}" for name in sorted(found - declared)])


def uses(header):
    """A program for every compiler: it sets up each struct and takes the address of each function."""
    lines = ["#define AMXT_ENABLE_PREVIEW 1", "#include <amxtrain.h>", "#include <amxtrain.h>", ""]
    lines += ["typedef void (*any_function)(void);", "any_function all_functions[] = {"]
    lines += [f"    (any_function){f['name']}," for f in header.functions]
    lines += ["};", "", "int main(void) {", "  int wrong = 0;"]
    for struct in header.structs:
        name = struct["name"]
        lines.append(f"  {{ {name} x = {init_macro(name)};")
        if name in FROZEN:
            lines.append(f"    wrong += sizeof({name}) != 1024 || x.message[0] != 0; }}")
        else:
            lines.append(f"    wrong += x.struct_size != sizeof({name}); }}")
    lines += ["  return wrong;", "}", ""]
    return "\n".join(lines)


def main(arguments):
    if len(arguments) < 2 or arguments[0] not in ("comments", "symbols", "uses"):
        print(__doc__, file=sys.stderr)
        return 2
    with open(arguments[1], encoding="utf-8") as file:
        header = Header(file.read())
    if arguments[0] == "uses":
        print(uses(header))
        return 0
    if arguments[0] == "comments":
        problems = check_comments(header)
    else:
        problems = check_symbols(header, arguments[2])
    for problem in problems:
        print(f"{arguments[1]}: {problem}")
    print(f"{len(header.functions)} functions, {len(header.structs)} structs, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
