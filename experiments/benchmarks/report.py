"""What `compare` found: a folder with results.json, table.md and plot.svg."""

import importlib.util
import io
import json
import os
import pathlib
import platform
import re
from typing import Any

import numpy as np
from sides import BEFORE, OURS

from paligemma_jax.training import flops

RESULTS, TABLE, PLOT = "results.json", "table.md", "plot.svg"
HEADER = (
    "what", "side", "median", "per second", "peak memory", "of peak", "ours / it", "95% interval",
)  # fmt: skip
# What a batch of B is per second.
UNITS = {"step": "examples", "prefill": "prompts", "further token": "tokens"}
# Bytes per second of memory, by NVIDIA's data sheets.
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12, "L4": 0.3e12, "T4": 0.32e12}
COLORS = {
    "big_vision": "#d1495b",
    "transformers": "#edae49",
    "keras_hub": "#00798c",
    BEFORE: "#6c757d",
}
Results = dict[str, Any]


def pop_versions(cases: dict[str, dict]) -> dict[str, dict[str, str]]:
    """Takes versions out of cases; returns them by side."""
    found: dict[str, dict[str, str]] = {}
    for case in cases.values():
        for side, answer in case["sides"].items():
            found[side] = found.get(side, {}) | answer.pop("versions")
    return found


def cpu() -> str:
    """Returns the cores that this process may use, in words."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} {'core' if cores == 1 else 'cores'} of {platform.machine()}"


def folder_name(results: Results) -> str:
    """Returns DATE-MACHINE-SIZE."""
    name = f"{results['date']}-{results['machine']}-{results['size']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def write(folder: pathlib.Path, results: Results) -> str:
    """Writes the folder, or adds cases to it, and returns the table.

    Without matplotlib there is no plot; another command on the same folder draws it.

    Raises:
      ValueError: the folder has results of another machine, size or other arguments.
    """
    if (folder / RESULTS).exists():
        results = add(json.loads((folder / RESULTS).read_text()), results, where=folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    shown = describe(results)
    (folder / TABLE).write_text(shown)
    if quantities(results) and importlib.util.find_spec("matplotlib"):
        (folder / PLOT).write_bytes(plot(results))
    return shown


def add(old: Results, new: Results, *, where: pathlib.Path) -> Results:
    """Returns old results with the cases of new ones of the same machine, in place of their own."""
    for key in ("machine", "size", "arguments"):
        if old[key] != new[key]:
            raise ValueError(
                f"{where}: has results of {key}={old[key]}, these are of {new[key]}: give --out "
                f"another folder"
            )
    return new | {
        "versions": old["versions"] | new["versions"],
        "cases": old["cases"] | new["cases"],
        "scripts": old["scripts"] | new["scripts"],
    }


def describe(results: Results) -> str:
    """Returns what was measured on what, the table, and what is left out, as Markdown."""
    versions = "; ".join(
        f"{side}: {', '.join(f'{name} {number}' for name, number in found.items())}"
        for side, found in results["versions"].items()
    )
    lines = [f"{results['size']}, {results['machine']}, {results['date']}", "", versions, ""]
    lines += table(HEADER, rows(results))
    ours = [
        (name, ", ".join(f"{key}: {value}" for key, value in row.items()))
        for name, found in results["scripts"].items()
        for row in found.get("rows", [])
    ]
    if ours:
        lines += ["", *table(("benchmark", "figures"), ours)]
    left_out = [
        f"- {name}, {side}: {reason}"
        for name, case in results["cases"].items()
        for side, reason in case["left_out"].items()
    ]
    left_out += [
        f"- {name}: {found['left_out']}"
        for name, found in results["scripts"].items()
        if "left_out" in found
    ]
    if left_out:
        lines += ["", "Left out:", "", *left_out]
    return "\n".join(lines) + "\n"


def table(header: tuple[str, ...], cells: list[tuple[str, ...]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    rule = tuple("---" for _ in header)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *cells)]


def rows(results: Results) -> list[tuple[str, ...]]:
    """Returns the table's rows: one per case, quantity and side."""
    return [
        row(label, case, side, quantity)
        for label, case, quantity in quantities(results)
        for side in case["sides"]
    ]


def quantities(results: Results) -> list[tuple[str, dict, str]]:
    """Returns (label, case, quantity) of all that was timed; a case may have failed on our side."""
    found = []
    for name, case in results["cases"].items():
        timed = case["sides"][OURS]["seconds"][0] if OURS in case["sides"] else ()
        for quantity in timed:
            found.append((f"{name}: {quantity}" if len(timed) > 1 else name, case, quantity))
    return found


def row(label: str, case: dict, side: str, quantity: str) -> tuple[str, ...]:
    """Returns a row of the table."""
    median = float(np.median(times(case, side, quantity)))
    low, middle, high = quotient(case, side, quantity)
    unit, peak = UNITS.get(quantity), case["sides"][side].get("peak_bytes")
    return (
        label,
        side,
        f"{median:.3f} s" if median >= 1 else f"{1000 * median:.3g} ms",
        f"{case['batch_size'] / median:.3g} {unit}" if unit else "",
        f"{peak / 1e9:.2f} GB" if peak else "",
        share_of_peak(case, case["sides"][side], quantity, median),
        *(("", "") if side == OURS else (f"{middle:.3f}", f"{low:.3f} to {high:.3f}")),
    )


def times(case: dict, side: str, quantity: str) -> np.ndarray:
    return np.array([row[quantity] for row in case["sides"][side]["seconds"]])


def quotient(case: dict, side: str, quantity: str) -> tuple[float, float, float]:
    """Returns the median of our time over the neighbouring one of a side, in its 95% interval."""
    return interval(times(case, OURS, quantity) / times(case, side, quantity))


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns (low, median, high), the 95% interval by bootstrap."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(low), float(np.median(values)), float(high)


def share_of_peak(case: dict, answer: dict, quantity: str, seconds: float) -> str:
    """Returns a step's MFU, or the share of the memory's bandwidth that reading weights takes.

    Both by our own count, whatever the side does; empty where the device's peak is not known.
    """
    ours, device = case["sides"][OURS], answer.get("device", "")
    top = flops.peak(device)
    if quantity == "step" and top and "flops" in ours:
        return f"MFU {ours['flops'] / seconds / top:.1%}"
    bandwidth = next((value for name, value in BANDWIDTHS.items() if name in device), None)
    if quantity == "further token" and bandwidth and "read_bytes" in ours:
        return f"bandwidth {ours['read_bytes'] / seconds / bandwidth:.1%}"
    return ""


def plot(results: Results) -> bytes:
    """Returns an SVG: each side's time over ours, with its 95% interval, a line for each row."""
    import matplotlib as mpl
    from matplotlib import figure

    found = [
        (f"{name}: {quantity}", case, quantity) for name, case, quantity in quantities(results)
    ]
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "benchmarks", "font.size": 9}):
        picture = figure.Figure(figsize=(8, 1.4 + 0.3 * len(found)), layout="constrained")
        axes = picture.add_subplot()
        for side, color in COLORS.items():
            places = [i for i, (_, case, _) in enumerate(found) if side in case["sides"]]
            spans = [quotient(found[i][1], side, found[i][2]) for i in places]
            if spans:
                # The inverse of ours / it: low and high change places.
                low, middle, high = (1 / np.array(x) for x in zip(*spans, strict=True))
                errors = np.abs([middle - high, low - middle])
                axes.errorbar(
                    middle, places, xerr=errors, fmt="o", color=color, label=side, markersize=5
                )
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel(f"time in units of {OURS}'s; right of the line it is slower")
        axes.set_yticks(range(len(found)), [label for label, _, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(alpha=0.3)
        axes.set_title(f"{results['size']}, {results['machine']}, {results['date']}", loc="left")
        if axes.containers:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        picture.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
