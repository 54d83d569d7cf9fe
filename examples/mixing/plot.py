"""Measure speed against mixing for shuffles of several kinds, and write the plot and the table of README.md.

    python examples/mixing/plot.py [--repeats 5] [--store DIRECTORY]

The store is made up: 32 studies of 12,500 cells, in each of which the cells of 8 donors lie together, as they do in
most studies. It is kept where a directory is given. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd
import scipy.sparse as sp

import daodask
from daodask.batches.schedule import Shuffled
from daodask.bench import DecodeBound, Spread, run_pass

HERE = Path(__file__).parent
N_STUDIES, N_CELLS, N_GENES, N_DONORS = 32, 12_500, 20_000, 8
#: Molecules of a cell, which are about 1,000 values that are not zero.
DEPTH = 1_800
RUN_ROWS = (1, 4, 16, 64, 256, 1024)
WINDOW_ROWS = (2_048, 8_192, 32_768)
BATCH_SIZE = 512
#: After which a pass ends, with its window.
SECONDS = 1.5
#: More than this can't be told from an independent draw with so few batches.
MOST_MIXED = 0.999


class Point(NamedTuple):
    """A kind of shuffle: cells a second, and the entropy of donors in a batch over that of an independent draw."""

    speed: Spread
    mixing: float


# -- measuring ---------------------------------------------------------------------------------------------------------


def make_study(number: int) -> anndata.AnnData:
    """Counts drawn from one skewed profile: what is in them doesn't matter here, only how much it is."""
    generator = np.random.default_rng(number)
    profile = np.cumsum(np.random.default_rng(0).lognormal(sigma=2.0, size=N_GENES))
    genes = np.searchsorted(profile, generator.random(N_CELLS * DEPTH) * profile[-1])
    cells = np.repeat(np.arange(N_CELLS), DEPTH)
    counts = sp.coo_matrix((np.ones(len(cells), np.float32), (cells, genes)), (N_CELLS, N_GENES)).tocsr()
    donors = [f"donor {number}.{donor}" for donor in np.arange(N_CELLS) * N_DONORS // N_CELLS]
    obs = pd.DataFrame({"donor_id": pd.Categorical(donors)}, index=[f"{number}.{i}" for i in range(N_CELLS)])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)]))


def make_store(url: Path) -> daodask.Store:
    """Build study by study, so that one is in memory at a time; those that are there already stay."""
    there = () if not url.exists() else daodask.open_store(url).dataset_ids
    for number in range(N_STUDIES):
        study = f"study{number}"
        if study not in there:
            sources = [{"id": study, "source": make_study(number), "keep": "all"}]
            print(
                daodask.build_store(
                    {"features": {"name": "all", "reference": "union"}, "studies": sources}, url
                ).headline()
            )
    return daodask.open_store(url)


def measure(store: daodask.Store, repeats: int) -> tuple[dict[Shuffled, Point], Spread]:
    """All kinds in turn, again and again, so that what else the machine does comes upon all of them alike."""
    kinds = [Shuffled(run_rows, window_rows) for window_rows in WINDOW_ROWS for run_rows in RUN_ROWS]
    loaders = {kind: daodask.BatchLoader(store, BATCH_SIZE, schedule=kind) for kind in kinds}
    speeds: dict[Shuffled, list[float]] = {kind: [] for kind in kinds}
    decode: list[float] = []
    bound = DecodeBound(store)
    for repeat in range(repeats + 1):
        for kind, loader in loaders.items():
            speed = run_pass(loader, seconds=SECONDS).rate
            began = time.perf_counter()
            decoded = bound.decode() / (time.perf_counter() - began)
            print(f"{repeat}/{repeats} {kind}: {speed:,.0f} cells/s, decoding alone {decoded:,.0f}", flush=True)
            # The first time compiles, and reads files that are in memory later.
            if repeat:
                speeds[kind].append(speed)
                decode.append(decoded)
    mixing = {kind: loader.plan("donor_id").mixing[0].share for kind, loader in loaders.items()}
    return {kind: Point(Spread.of(speeds[kind]), mixing[kind]) for kind in kinds}, Spread.of(decode)


# -- showing -----------------------------------------------------------------------------------------------------------


def draw(points: dict[Shuffled, Point], decode: Spread, path: Path) -> None:
    """Speed against mixing, both on scales where equal steps are equal ratios: of cells a second, of what lacks."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    for window_rows, color, marker in zip(WINDOW_ROWS, ("#c8553d", "#a47e1b", "#1b6ca8"), "os^", strict=True):
        line = [(kind, point) for kind, point in points.items() if kind.window_rows == window_rows]
        x = [_shortfall(point.mixing) for _, point in line]
        y = [point.speed.median for _, point in line]
        axes.vlines(x, [p.speed.low for _, p in line], [p.speed.high for _, p in line], color, linewidth=1, alpha=0.6)
        axes.plot(x, y, color=color, marker=marker, linewidth=1.5, label=f"{window_rows:,}")
        for (kind, _), a, b in zip(line, x, y, strict=True):
            axes.annotate(str(kind.run_rows), (a, b), (5, 5), textcoords="offset points", color=color, fontsize=9)
    axes.axhline(decode.median, color="0.4", linewidth=1, linestyle="--")
    where = ("axes fraction", "data")
    axes.annotate("decoding alone", (0.99, decode.median), (0, 4), where, "offset points", color="0.4", ha="right")
    axes.set(xscale="log", yscale="log", xlim=(0.9, (1 - MOST_MIXED) * 0.75))
    ticks = {0.8: "20%", 0.5: "50%", 0.2: "80%", 0.1: "90%", 0.05: "95%", 0.02: "98%", 0.01: "99%", 0.001: "≥ 99.9%"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    shown = [digit * 10**power for power in range(3, 7) for digit in (1, 2, 5)]
    low, high = axes.get_ylim()
    axes.set_yticks([y for y in shown if low <= y <= high], [f"{y:,}" for y in shown if low <= y <= high])
    axes.minorticks_off()
    axes.set_xlabel("mixing: mean entropy of the donors in a batch, as a share of an independent draw's")
    axes.set_ylabel("cells a second")
    axes.legend(title="window_rows", frameon=False, loc="lower left")
    repeats = next(iter(points.values())).speed.repeats
    about = (
        f"batches of {BATCH_SIZE} cells; numbers: run_rows; medians of {repeats} passes, from the lowest to the highest"
    )
    axes.set_title(about, fontsize=10, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _shortfall(mixing: float) -> float:
    return 1 - min(mixing, MOST_MIXED)


def table(points: dict[Shuffled, Point], decode: Spread) -> str:
    """Markdown: a row per length of runs, a column per size of windows."""
    rows = ["| `run_rows` | " + " | ".join(f"`window_rows={w:,}`".replace(",", "_") for w in WINDOW_ROWS) + " |"]
    rows.append("|---:|" + "---:|" * len(WINDOW_ROWS))
    for run_rows in RUN_ROWS:
        found = [points[Shuffled(run_rows, window_rows)] for window_rows in WINDOW_ROWS]
        rows.append(
            f"| {run_rows} | " + " | ".join(f"{_range(p.speed)}, **{min(1.0, p.mixing):.1%}**" for p in found) + " |"
        )
    repeats = next(iter(points.values())).speed.repeats
    about = f"""\
Thousands of cells a second, as medians of {repeats} passes with the lowest and the highest, and **mixing** by donor.
Decoding alone, measured {decode.repeats} times in between: {_range(decode)}."""
    return "\n".join([about, "", *rows])


def _range(spread: Spread) -> str:
    middle, low, high = (f"{value / 1e3:.3g}" for value in (spread.median, spread.low, spread.high))
    return f"{middle} ({low}–{high})"


def write(text: str, path: Path) -> None:
    """Put text between the two marks of a file."""
    before, mark, rest = path.read_text(encoding="utf-8").partition("<!-- measured -->\n")
    _, end, after = rest.partition("<!-- end -->")
    path.write_text(f"{before}{mark}{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--store", type=Path, metavar="DIRECTORY", help="keep the store there, or find it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = make_store(arguments.store or Path(temporary) / "store")
        points, decode = measure(store, arguments.repeats)
    draw(points, decode, HERE / "speed_against_mixing.png")
    write(table(points, decode), HERE / "README.md")


if __name__ == "__main__":
    main()
