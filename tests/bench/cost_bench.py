#!/usr/bin/env python3
"""Table and plot of what the CPU engine's work costs as it grows.

    cost_bench.py [--threads 2] [--width 768] [--layers 12] [--svg common/engine/cost.svg]

Prints a Markdown table; the plot has one panel an axis. Python's standard library and build/release are all it takes.
"""

import argparse
import json
import os
import subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
AXES = {"batch": "sequences at once", "prefix": "tokens of a common prefix, 32 sequences",
        "context": "tokens of context, one sequence", "models": "models in one process, 64 sequences"}
WIDTH, HEIGHT, PAD, HEAD = 300, 190, 46, 26


def panel(axis, points, left, top):
    """Decode tokens a second over the axis; both begin at 0, steps of x are equal."""
    highest = max(y for _, y in points) * 1.1
    x = lambda i: left + PAD + i * (WIDTH - PAD - 24) / max(1, len(points) - 1)
    y = lambda v: top + HEIGHT - 34 - v / highest * (HEIGHT - 64)
    out = [f'<text x="{left + WIDTH / 2}" y="{top + 16}" class="title">{AXES[axis]}</text>',
           f'<path d="M{x(0)} {y(0)}H{left + WIDTH - 10}M{x(0)} {y(0)}V{top + 26}" class="axis"/>',
           f'<text x="{left + PAD - 6}" y="{y(0) + 4}" class="y">0</text>']
    best = max(v for _, v in points)
    out.append(f'<text x="{left + PAD - 6}" y="{y(best) + 4}" class="y">{best:.0f}</text>')
    out.append('<polyline points="' + " ".join(f"{x(i):.1f},{y(v):.1f}" for i, (_, v) in enumerate(points)) + '" class="line"/>')
    for i, (at, v) in enumerate(points):
        out.append(f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="3"/>')
        out.append(f'<text x="{x(i):.1f}" y="{top + HEIGHT - 16}" class="x">{at:g}</text>')
    return out


def plot(points, path):
    style = ("text{font:11px sans-serif;fill:#444;text-anchor:middle}.title{font-weight:bold}.y{text-anchor:end}"
             ".axis{stroke:#999;fill:none}.line{stroke:#2563a8;stroke-width:2;fill:none}circle{fill:#2563a8}")
    body = []
    for i, axis in enumerate(AXES):
        some = [(p["x"], p["decode_tokens_per_second"]) for p in points if p["axis"] == axis]
        body += panel(axis, some, i % 2 * (WIDTH + 20), HEAD + i // 2 * (HEIGHT + 10))
    size = (2 * WIDTH + 20, HEAD + 2 * HEIGHT + 10)
    body.append(f'<text x="{size[0] / 2}" y="18" class="title">Decoded tokens a second, against</text>')
    with open(path, "w") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}"><title>Decoded tokens a second'
                f'</title><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n")


def table(points):
    print("| | decode tokens/s | besides |")
    print("| --- | --- | --- |")
    for p in points:
        if p["axis"] == "memory":
            continue
        more = ""
        if p["axis"] == "prefix" and p["x"]:
            more = f'first token of 31 after {p["first_token_seconds_of_31"]:.2f} s, of the first {p["first_token_seconds_cold"]:.2f} s'
        if p["axis"] == "context":
            more = f'prefill {p["prefill_tokens_per_second"]:.0f} tokens/s'
        print(f'| {p["axis"]} {p["x"]:g} | {p["decode_tokens_per_second"]:.0f} | {more} |')
    memory = next(p for p in points if p["axis"] == "memory")
    print(f'\nA cached token takes {memory["allocated"]:.0f} bytes, in theory {memory["theory"]:.0f}; the process grew by '
          f'{memory["resident"]:.0f} a token over {memory["x"]:g}, buffers of the step included.')
    if abs(memory["allocated"] / memory["theory"] - 1) > 0.02:
        raise SystemExit("over 2 % off the theory")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--svg", default=os.path.join(ROOT, "common", "engine", "cost.svg"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    run = subprocess.run([os.path.join(ROOT, "build", "release", "bin", "cost_bench"), str(args.threads),
                          str(args.width), str(args.layers)], check=True, stdout=subprocess.PIPE, text=True)
    points = [json.loads(line) for line in run.stdout.splitlines()]
    table(points)
    plot(points, args.svg)


if __name__ == "__main__":
    main()
