"""Draws the plots of docs/performance.md from the figures that report.py collects.

    python benchmarks/plots.py FIGURES FOLDER

It runs in an environment of its own that has matplotlib, so it imports nothing of the project. The same figures give
the same files.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

WIDE = (7.5, 3.2)
STYLE = {"svg.hashsalt": "quittance", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


def steps_of_a_task(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Stacked bars: the wall time of each step, for each kind of task but the largest."""
    ours = [row for row in rows if row["client"] == "ours" and "1 MiB" not in row["name"]]
    names, left = [row["name"] for row in ours], [0.0] * len(ours)
    _, axes = plt.subplots(figsize=WIDE)
    for step in dict.fromkeys(step for row in ours for step in row["by_step"]):
        widths = [statistics.median(row["by_step"].get(step) or [0.0]) for row in ours]
        axes.barh(names, widths, left=left, label=step)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms of wall time without waiting, medians")
    axes.legend(fontsize=7, loc="lower right")
    _write(folder / "path.svg")


def processor_time(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Bars: the processor time of a task with our client of DynamoDB and with boto3's."""
    kinds = [name for name in dict.fromkeys(row["name"] for row in rows) if "1 MiB" not in name]
    _, axes = plt.subplots(figsize=WIDE)
    for shift, client in ((-0.2, "ours"), (0.2, "boto3")):
        of_client = {row["name"]: row for row in rows if row["client"] == client}
        heights = [
            sum(map(statistics.median, (of_client[kind]["cpu_ms"], of_client[kind]["worker_cpu_ms"]))) for kind in kinds
        ]
        axes.bar([place + shift for place in range(len(kinds))], heights, 0.4, label=f"{client}: client of DynamoDB")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("ms of processor time, medians")
    axes.legend()
    _write(folder / "processor.svg")


def cost(rows: Sequence[dict[str, Any]], prices: dict[str, float], folder: Path) -> None:
    """Stacked bars: the dollars of a million tasks, by part."""
    names, bottom = [row["name"] for row in rows], [0.0] * len(rows)
    _, axes = plt.subplots(figsize=(7.5, 3.8))
    for part in dict.fromkeys(part for row in rows for part in row["used"]):
        heights = [
            sum(prices[name] * amount * 1e6 for name, amount in row["used"].get(part, {}).items()) for row in rows
        ]
        axes.barh(names, heights, left=bottom, label=part)
        bottom = [before + height for before, height in zip(bottom, heights, strict=True)]
    for place, total in enumerate(bottom):
        axes.text(total, place, f" {total:.0f}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(right=max(bottom) * 1.1)
    axes.set_xlabel("$ per million tasks")
    axes.legend(fontsize=7, loc="upper right")
    _write(folder / "cost.svg")


def sandbox(programs: dict[str, Any], folder: Path) -> None:
    """Bars: the processor time of a run in each way, to a bare run of the same module."""
    ways = ("sandbox", "bare, our settings", "in process", "Node", "compile at every call")
    shown = {name: facts for name, facts in programs.items() if "rows" in facts}
    _, axes = plt.subplots(figsize=WIDE)
    width = 0.8 / len(ways)
    for place, way in enumerate(ways):
        ratios = []
        for facts in shown.values():
            bare, row = facts["rows"][facts["bare"]], facts["rows"].get(way)
            ratios.append((row["cpu_ms"] + (row.get("worker_cpu_ms") or 0)) / bare["cpu_ms"] if row else 0)
        axes.bar([at + place * width for at in range(len(shown))], ratios, width, label=way)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(shown))], list(shown))
    axes.set_yscale("log")
    axes.set_ylabel("processor time, bare = 1")
    axes.legend(fontsize=7)
    _write(folder / "sandbox.svg")


def throughput(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Lines: calls a second, by the number of clients."""
    _, axes = plt.subplots(figsize=WIDE)
    for call, label in (("task", "tasks"), ("read", "reads of one item")):
        of_call = [row for row in rows if row["call"] == call]
        axes.plot([row["clients"] for row in of_call], [row["per_s"] for row in of_call], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients at once")
    axes.set_ylabel("a second")
    axes.legend(fontsize=7)
    _write(folder / "throughput.svg")


def cold_start(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Stacked bars: what each function's first request waits for."""
    _, axes = plt.subplots(figsize=(7.5, 3.8))
    names, left = [row["function"] for row in rows], [0.0] * len(rows)
    for part, label in (("imports", "imports"), ("parts", "parts of the first request")):
        widths = [row[part] for row in rows]
        axes.barh(names, widths, left=left, label=label)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    restored = [(row["restored"], row["function"]) for row in rows if row["restored"]]
    axes.plot(*zip(*restored, strict=True), "k|", markersize=9, label="restored from a snapshot")
    axes.invert_yaxis()
    axes.set_xlabel("processor time, a Python process that imports json and logging = 1")
    axes.legend(fontsize=7)
    _write(folder / "cold_start.svg")


def growth(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Lines: the 99th percentile of the two writes of a task, by rate."""
    _, axes = plt.subplots(figsize=WIDE)
    for mix in dict.fromkeys(row["mix"] for row in rows):
        of_mix = [row for row in rows if row["mix"] == mix]
        p99 = [sorted(row["money_ms"])[len(row["money_ms"]) * 99 // 100] for row in of_mix]
        axes.plot([row["rate"] for row in of_mix], p99, marker="o", label=mix)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tasks a second")
    axes.set_ylabel("ms, 99th percentile")
    axes.legend(fontsize=7)
    _write(folder / "growth.svg")


def _write(path: Path) -> None:
    plt.tight_layout()
    plt.savefig(path, metadata={"Date": None})
    plt.close()


def main() -> None:
    """Draw all plots."""
    figures, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("svg")
    plt.rcParams.update(STYLE)
    steps_of_a_task(figures["path"], folder)
    processor_time(figures["path"], folder)
    cost(figures["cost"], figures["prices"], folder)
    sandbox(figures["sandbox"]["programs"], folder)
    throughput(figures["throughput"], folder)
    cold_start(figures["cold_start"], folder)
    growth(figures["growth"], folder)


if __name__ == "__main__":
    main()
