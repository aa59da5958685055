#!/usr/bin/env python3
"""Counts tests over the JUnit reports of ctest and GoogleTest: the last line of make check.

A ctest entry that is a cmocka program counts as the tests that cmocka says it ran. Exits 1 when a test
failed or none was found.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

CMOCKA = re.compile(r"\[\s+(PASSED|FAILED|SKIPPED)\s+\] (\d+) test\(s\)")


def count(case):
    """(passed, failed, skipped) of one testcase element."""
    status = case.get("status", "run")
    inside = {"PASSED": 0, "FAILED": 0, "SKIPPED": 0}
    for what, number in CMOCKA.findall(case.findtext("system-out") or ""):
        inside[what] += int(number)
    if case.find("failure") is not None or case.find("error") is not None or status == "fail":
        return inside["PASSED"], max(1, inside["FAILED"]), inside["SKIPPED"]
    skipped = case.find("skipped")
    if skipped is not None or status in ("notrun", "disabled"):
        # ctest calls a test skipped, too, that it could not run.
        message = skipped.get("message", "") if skipped is not None else ""
        broken = message.startswith(("Unable to find", "Fixture dependency"))
        return (0, 1, 0) if broken else (0, 0, 1)
    if any(inside.values()):
        return inside["PASSED"], inside["FAILED"], inside["SKIPPED"]
    return 1, 0, 0


def reason(case):
    """Why a test was skipped, from what it said."""
    element = case.find("skipped")
    said = (case.findtext("system-out") or "") + "\n" + (element.get("message", "") if element is not None else "")
    for pattern in (r"(skipped: [^\n]*)", r": Skipped\n([^\n]+)", r"^\S+:\d+\n([^\n]+)"):
        match = re.search(pattern, said, re.MULTILINE)
        if match:
            return match.group(1)
    return "skipped"


def main(paths):
    total = [0, 0, 0]
    skipped = []
    for path in paths:
        try:
            cases = list(ElementTree.parse(path).getroot().iter("testcase"))
        except (OSError, ElementTree.ParseError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            total[1] += 1
            continue
        for case in cases:
            result = count(case)
            total = [a + b for a, b in zip(total, result)]
            if result[2]:
                skipped.append(f"{case.get('name')}: {reason(case)}")
    for line in sorted(set(skipped)):
        print(line)
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")
    return 0 if total[1] == 0 and total[0] > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
