"""What every evaluation leaves behind: its numbers as JSON, a Markdown table, and plots of distributions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Curves = Mapping[str, np.ndarray]


def write(output: Path | None, results: dict[str, Any], text: str, plots: Mapping[str, Curves] | None = None) -> None:
    """Print the table; beside it, where there is an output file: OUTPUT.json, .md, and .png if there are plots.

    plots: {quantity with its unit: {curve: values (N)}}, a panel each with the share of values below every value; of
    a panel that is called "a against b" the two curves are drawn against each other.
    """
    print(text)
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    output.with_suffix(".md").write_text(text.rstrip("\n") + "\n")
    if plots:
        plot(output.with_suffix(".png"), plots, output.stem)


def plot(path: Path, plots: Mapping[str, Curves], title: str) -> None:
    """Draw `plots` (see `write`) side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(plots), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (quantity, curves) in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots.items(), strict=True):
        if " against " in quantity:
            (across, x), (up, y) = curves.items()
            axis.scatter(x.ravel()[:5000], y.ravel()[:5000], s=2, alpha=0.3)
            axis.set(xlabel=across, ylabel=up)
        else:
            for name, values in curves.items():
                share = np.linspace(0, 100, len(values))
                axis.plot(np.sort(values), share, label=f"{name}, mean {values.mean():.1f}")
            axis.set(xlabel=quantity, ylabel="below, %", xlim=(0, None))
            axis.legend(fontsize=7 if len(curves) <= 4 else 5)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
