#!/usr/bin/env python3
"""Draws the output of a program as a terminal: terminal_picture.py LOG OUT.svg [--from TEXT] [--to TEXT]

The picture of the README is made by: make demo > demo.log 2>&1; tools/terminal_picture.py demo.log docs/images/demo.svg --from "== Two"
"""
import argparse
import html

p = argparse.ArgumentParser()
p.add_argument("log")
p.add_argument("out")
p.add_argument("--from", dest="first", default="")
p.add_argument("--to", dest="last", default="")
p.add_argument("--columns", type=int, default=118)
a = p.parse_args()

lines = open(a.log, encoding="utf-8").read().splitlines()
if a.first:
    lines = lines[next(i for i, line in enumerate(lines) if a.first in line):]
if a.last:
    lines = lines[:next(i for i, line in enumerate(lines) if a.last in line) + 1]
lines = [line if len(line) <= a.columns else line[:a.columns - 3] + "..." for line in lines]
while lines and not lines[-1]:
    lines.pop()

SIZE, WIDTH, HEIGHT = 13, 7.83, 17


def colour(line):
    if line.startswith("=="):
        return "#8fd3ff"
    if line.startswith("$"):
        return "#b8e986"
    if "error" in line or "Terminated" in line:
        return "#ff9e8a"
    return "#d8dee9"


width, height = a.columns * WIDTH + 32, len(lines) * HEIGHT + 32
with open(a.out, "w", encoding="utf-8") as f:
    f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
            f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{SIZE}">\n'
            f'<rect width="100%" height="100%" rx="8" fill="#1e2430"/>\n')
    for i, line in enumerate(lines):
        f.write(f'<text x="16" y="{28 + i * HEIGHT}" fill="{colour(line)}" xml:space="preserve">{html.escape(line)}</text>\n')
    f.write("</svg>\n")
