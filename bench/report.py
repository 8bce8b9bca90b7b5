#!/usr/bin/env python3
"""A table of suite results beside another engine's figures, and a plot of throughput against concurrency.

    bench/report.py RESULTS.json... --beside OTHER.json [--svg PLOT.svg]

RESULTS are files of `firebrick bench suite --result-file`; OTHER is {"name": ..., "figures": {model: {workload: number}}}
with output tokens per second, or input tokens per second for workloads called prefill_*. Both engines must have run the
same workloads.
"""
import argparse
import json

CONCURRENCY = {"tp_c1": 1, "tp_c8": 8, "tp_c32": 32, "tp_c128": 128, "tp_c256": 256}
COLOURS = ["#1f6feb", "#bf5700", "#2da44e", "#8250df"]


def figure(name, result):
    key = "input_tokens_per_second" if name.startswith("prefill_") else "output_tokens_per_second"
    return result[key]


def table(results, other):
    lines = [f"| model | workload | Firebrick | {other['name']} | ratio | TTFT ms | TPOT ms |", "|---|---|--:|--:|--:|--:|--:|"]
    for model, result in results.items():
        for name, workload in result["workloads"].items():
            ours, theirs = figure(name, workload), other["figures"].get(model, {}).get(name)
            cells = [model, name, f"{ours:,.0f}", f"{theirs:,.0f}" if theirs else "–", f"{ours / theirs:.2f}" if theirs else "–"]
            cells += [f"{workload['mean_ttft_ms']:.2f}", f"{workload['mean_tpot_ms']:.2f}" if workload["mean_tpot_ms"] > 0 else "–"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results, other):
    """Output tokens per second against requests at a time, each model relative to its own largest figure."""
    width, height, left, bottom = 640, 360, 60, 40
    names = list(CONCURRENCY)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    x = lambda index: left + index * (width - left - 170) / (len(names) - 1)
    y = lambda share: height - bottom - share * (height - bottom - 20)
    for index, name in enumerate(names):
        parts.append(f'<text x="{x(index)}" y="{height - 15}" text-anchor="middle">{CONCURRENCY[name]}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line x1="{left}" x2="{width - 170}" y1="{y(share)}" y2="{y(share)}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(share) + 4}" text-anchor="end">{share:.0%}</text>')
    for place, (model, result) in enumerate(results.items()):
        colour, theirs = COLOURS[place % len(COLOURS)], other["figures"].get(model, {})
        ours = {name: figure(name, result["workloads"][name]) for name in names if name in result["workloads"]}
        largest = max([*ours.values(), *(theirs.get(name, 0) for name in names)])
        for values, dash, label in ((ours, "", "Firebrick"), (theirs, "5 4", other["name"])):
            points = " ".join(f"{x(i):.1f},{y(values[n] / largest):.1f}" for i, n in enumerate(names) if n in values)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
            row = 30 + 40 * place + (16 if dash else 0)
            parts.append(f'<line x1="{width - 160}" x2="{width - 135}" y1="{row - 4}" y2="{row - 4}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
            parts.append(f'<text x="{width - 130}" y="{row}" font-size="10">{model} {label}</text>')
    parts.append(f'<text x="{left}" y="12">share of the model\'s largest output tokens per second, by requests at a time</text></svg>')
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--beside", required=True)
    parser.add_argument("--svg")
    arguments = parser.parse_args()
    results = {}
    for path in arguments.results:
        with open(path, encoding="utf-8") as file:
            results.update(json.load(file))
    with open(arguments.beside, encoding="utf-8") as file:
        other = json.load(file)
    print(table(results, other), end="")
    if arguments.svg:
        with open(arguments.svg, "w", encoding="utf-8") as file:
            file.write(plot(results, other))


if __name__ == "__main__":
    main()
