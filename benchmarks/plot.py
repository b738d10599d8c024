"""Draw the figures of benchmarks/throughput.py as horizontal bars.

    python benchmarks/plot.py build/bench/throughput-*.json --output benchmarks/throughput.svg

Each file becomes a panel: a bar for each of those who took part, as long as its median of images
per second, with its range, and the ratio to sentence-transformers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

OURS = "this package"
BASELINE = "sentence-transformers"
_CORPORA = {
    "jpeg-640": "JPEG 640x480",
    "jpeg-2mp": "JPEG 2 MP",
    "jpeg-12mp": "JPEG 12 MP",
    "png-640": "PNG 640x480",
}
_MODELS = {"clip-b32": "CLIP ViT-B/32", "chinese-clip-b16": "Chinese-CLIP ViT-B/16"}


def draw_panel(axes: Any, figures: dict[str, Any]) -> None:
    results = sorted(figures["results"].items(), key=lambda item: item[1]["median"])
    names = [name for name, _ in results]
    medians = [one["median"] for _, one in results]
    below = [one["median"] - one["min"] for _, one in results]
    above = [one["max"] - one["median"] for _, one in results]
    colours = ["#2563a8" if name == OURS else "#b8c4d0" for name in names]
    axes.barh(names, medians, xerr=(below, above), color=colours, ecolor="#666666", height=0.65)
    base = figures["results"].get(BASELINE)
    widest = max(one["max"] for _, one in results)
    for place, (_, one) in enumerate(results):
        label = f"{one['median']:.1f}"
        if base:
            label += f"  ({one['median'] / base['median']:.2f}x)"
        axes.text(one["max"] + widest * 0.02, place, label, va="center", fontsize=8)
    axes.set_xlim(0, widest * 1.3)
    corpus = _CORPORA.get(figures["corpus"], figures["corpus"])
    model = _MODELS.get(figures["model_kind"], figures["model_kind"])
    dtype = "" if figures["dtype"] == "auto" else f", dtype={figures['dtype']}"
    axes.set_title(f"{corpus}, {model}{dtype}", loc="left", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("throughput.svg"))
    options = parser.parse_args()
    runs = [json.loads(file.read_text()) for file in options.files]
    heights = [len(run["results"]) + 1.5 for run in runs]
    figure, panels = plt.subplots(
        len(runs),
        squeeze=False,
        figsize=(7.5, 0.28 * sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
    )
    for axes, run in zip(panels[:, 0], runs, strict=True):
        draw_panel(axes, run)
    panels[-1, 0].set_xlabel(
        f"images per second, median and range ({runs[0]['machine']['cores']} cores)", fontsize=9
    )
    # Without a date and with fixed ids, so that the same figures make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "throughput"
    metadata = {"Date": None} if options.output.suffix == ".svg" else None
    figure.savefig(options.output, dpi=150, metadata=metadata, facecolor="white")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
