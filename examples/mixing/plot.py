"""Measure speed against mixing for shuffles of several kinds, and write the plot and the table of README.md.

    python examples/mixing/plot.py [--repeats 5] [--store DIRECTORY]

The store is made up: 8 studies of 12,500 cells, in each of which the cells of 8 donors lie together, as they do in most
studies. It is kept where a directory is given. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd
import scipy.sparse as sp

import daodask
from daodask.batches.schedule import Shuffled
from daodask.bench import Spread, bench_store

HERE = Path(__file__).parent
N_STUDIES, N_CELLS, N_GENES, N_DONORS = 8, 12_500, 20_000, 8
#: Molecules of a cell, which are about 1,000 values that are not zero.
DEPTH = 1_800
RUN_ROWS = (1, 4, 16, 64, 256, 1024)
WINDOW_ROWS = (2_048, 8_192, 32_768)
BATCH_SIZE = 512
#: Of each measurement: a pass goes on for a third of it, and to the end of its window.
SECONDS = 4.5
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


def make_store(directory: Path) -> daodask.Store:
    for number in range(N_STUDIES):
        study = directory / f"study{number}.h5ad"
        if not study.exists():
            make_study(number).write_h5ad(study)
    studies = [
        {"id": f"study{n}", "source": str(directory / f"study{n}.h5ad"), "keep": "all"} for n in range(N_STUDIES)
    ]
    report = daodask.build_store(
        {"features": {"name": "genes", "reference": "union"}, "studies": studies}, directory / "store"
    )
    print(report.headline())
    return daodask.open_store(report.url)


def measure(store: daodask.Store, repeats: int) -> tuple[dict[Shuffled, Point], Spread]:
    """All kinds in turn, again and again, so that what else the machine does comes upon all of them."""
    kinds = [Shuffled(run_rows, window_rows) for window_rows in WINDOW_ROWS for run_rows in RUN_ROWS]
    speeds: dict[Shuffled, list[float]] = {kind: [] for kind in kinds}
    mixing: dict[Shuffled, float] = {}
    decode = []
    for repeat in range(repeats):
        for kind in kinds:
            report = bench_store(
                store, batch_size=BATCH_SIZE, schedule=kind, obs=["donor_id"], epochs=1, seconds=SECONDS
            )
            speeds[kind].append(report.cells.median)
            decode.append(report.decode.median)
            mixing[kind] = next(m.share for m in report.plan.mixing if m.column == "donor_id")
            print(f"{repeat + 1}/{repeats} {kind}: {report.cells.median:,.0f} cells/s, {mixing[kind]:.1%}", flush=True)
    return {kind: Point(Spread.of(speeds[kind]), mixing[kind]) for kind in kinds}, Spread.of(decode)


# -- showing -----------------------------------------------------------------------------------------------------------


def draw(points: dict[Shuffled, Point], decode: Spread, path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for window_rows, color, marker in zip(WINDOW_ROWS, ("#d1495b", "#edae49", "#00798c"), "os^", strict=True):
        line = [(kind, point) for kind, point in points.items() if kind.window_rows == window_rows]
        x = [_shortfall(point.mixing) for _, point in line]
        y = np.array([point.speed.median for _, point in line])
        spread = np.array([(p.speed.median - p.speed.low, p.speed.high - p.speed.median) for _, p in line]).T
        axes.errorbar(
            x, y, spread, color=color, marker=marker, linewidth=1.5, elinewidth=0.8, capsize=2, label=f"{window_rows:,}"
        )
        for (kind, _), a, b in zip(line, x, y, strict=True):
            axes.annotate(
                str(kind.run_rows), (a, b), (0, 7), textcoords="offset points", ha="center", color=color, fontsize=8
            )
    axes.axhline(decode.median, color="0.5", linewidth=1, linestyle="--")
    axes.annotate(
        "decoding alone", (0.99, decode.median), (0, 3), ("axes fraction", "data"), "offset points", ha="right"
    )
    axes.set(xscale="log", yscale="log", xlim=(1, (1 - MOST_MIXED) * 0.8))
    ticks = {0.8: "20%", 0.5: "50%", 0.2: "80%", 0.1: "90%", 0.05: "95%", 0.01: "99%", 0.001: "≥ 99.9%"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlabel("mixing: entropy of donors in a batch, of that of an independent draw")
    axes.set_ylabel("cells a second")
    axes.legend(title="window_rows", frameon=False, loc="lower left")
    axes.set_title(f"Numbers at the points: run_rows. Batches of {BATCH_SIZE}.", fontsize=10, loc="left")
    figure.savefig(path, dpi=110)


def _shortfall(mixing: float) -> float:
    return 1 - min(mixing, MOST_MIXED)


def table(points: dict[Shuffled, Point], decode: Spread) -> str:
    """Markdown: a row per length of runs, a column per size of windows."""
    rows = ["| `run_rows` | " + " | ".join(f"`window_rows={w:,}`".replace(",", "_") for w in WINDOW_ROWS) + " |"]
    rows.append("|---:|" + "---:|" * len(WINDOW_ROWS))
    for run_rows in RUN_ROWS:
        found = [points[Shuffled(run_rows, window_rows)] for window_rows in WINDOW_ROWS]
        rows.append(f"| {run_rows} | " + " | ".join(f"{_range(p.speed)}, **{p.mixing:.1%}**" for p in found) + " |")
    repeats = next(iter(points.values())).speed.repeats
    return "\n".join(
        [
            f"Thousands of cells a second: medians of {repeats} passes, with the lowest and the highest; and mixing by donor.",
            f"Decoding alone: {_range(decode)}.",
            "",
            *rows,
        ]
    )


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
    parser.add_argument("--store", type=Path, metavar="DIRECTORY")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.store or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        points, decode = measure(make_store(directory), arguments.repeats)
    draw(points, decode, HERE / "speed_against_mixing.png")
    write(table(points, decode), HERE / "README.md")


if __name__ == "__main__":
    main()
