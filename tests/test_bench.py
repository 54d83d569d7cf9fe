"""The bench measures: figures are there, positive and consistent. How large they are is the machine's matter."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from daodask.batches.schedule import Sequential, Shuffled
from daodask.bench import BenchReport, DecodeBound, Spread, Waits, bench_store, wait_times
from daodask.cli import main
from daodask.errors import CorruptStoreError, SpecError, UnknownNameError
from daodask.store import Store
from daodask.testing import random_store

SIZES = (70, 0, 33)
N_OBS = sum(SIZES)


@pytest.fixture(scope="module", params=["lz4", "zstd", "zstd-delta", "none"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("bench") / "store", SIZES, codec=request.param)


@pytest.fixture(scope="module")
def report(store: Store) -> BenchReport:
    return bench_store(store, batch_size=8, schedule=Shuffled(4, 32), epochs=3, seconds=20)


def check_spread(spread: Spread) -> None:
    assert 0 < spread.low <= spread.median <= spread.high < math.inf


def test_figures_are_positive_and_consistent(store: Store, report: BenchReport) -> None:
    assert report.decode is not None
    assert report.waits is not None
    for spread in (report.cells, report.read, report.decode, report.first_batch):
        check_spread(spread)
        assert spread.repeats == 3
    assert (report.n_obs, report.n_vars) == store.shape
    assert report.pass_cells == N_OBS
    assert report.share == report.cells.median / report.decode.median
    assert 0 <= report.waits.median <= report.waits.longest
    # 13 batches an epoch, of which the first window has 4.
    assert report.waits.batches == 9
    assert report.plan.n_batches == 13
    assert report.seconds > 0


def test_bytes_are_those_that_were_read(store: Store) -> None:
    report = bench_store(store, batch_size=N_OBS, epochs=1)
    read = round(report.read.median * report.pass_cells / report.cells.median)
    files = [f for f in store.location.fs.find(store.location.path) if "/X/indices/c/" in f or "/X/data/c/" in f]
    stored = sum(store.location.fs.size(f) for f in files)
    # The shards' indexes are in memory after the first pass, as are obs and where rows begin; chunks are read again.
    assert 0.5 * stored < read < stored


def test_labels_are_measured_by_default_and_columns_on_request(store: Store, report: BenchReport) -> None:
    assert report.obs == ("cell_type",)
    assert [m.column for m in report.plan.mixing] == ["dataset", "cell_type"]
    other = bench_store(store, batch_size=50, obs=["score", "odd"], epochs=1)
    assert other.obs == ("score", "odd")
    assert [m.column for m in other.plan.mixing] == ["dataset"]
    for m in report.plan.mixing:
        assert 0 < m.entropy < m.independent * 1.5


def test_dense_batches_of_some_genes(store: Store) -> None:
    report = bench_store(store, batch_size=20, dense_genes=5, epochs=1)
    assert report.dense
    assert report.n_vars == 5
    check_spread(report.cells)
    assert "dense, with cell_type" in str(report)
    with pytest.raises(SpecError, match="at most 32 genes"):
        bench_store(store, dense_genes=33)


def test_a_large_store_is_read_in_part(store: Store) -> None:
    report = bench_store(store, batch_size=8, schedule=Shuffled(4, 16), epochs=5, seconds=0)
    assert report.cells.repeats == 1
    assert report.pass_cells == 16
    assert "16 of 103 cells" in str(report)


def test_an_epoch_of_one_batch_has_nothing_to_wait_for(store: Store) -> None:
    report = bench_store(store, epochs=1)
    assert report.plan.n_batches == 1
    assert report.waits is None
    assert "waits" not in str(report)


def test_the_text_has_every_figure(report: BenchReport) -> None:
    head, *lines = str(report).splitlines()
    assert "103 cells × 32 genes" in head
    names = ["batches", "memory", "measured", "speed", "read", "decode", "first", "waits", "mixing", "mixing"]
    assert [line.split()[0] for line in lines] == names
    assert "3 times 103 cells, on" in lines[2]
    assert all(line.isprintable() for line in lines)


def test_the_json_has_every_figure(report: BenchReport) -> None:
    values = json.loads(report.to_json())
    assert values["cells"] == {name: getattr(report.cells, name) for name in ("median", "low", "high", "repeats")}
    assert values["share"] == report.share
    assert values["plan"]["n_batches"] == 13
    assert values["plan"]["mixing"][1]["column"] == "cell_type"
    assert values["waits"]["batches"] == 9


def test_a_store_of_zeros_has_nothing_to_decode(tmp_path) -> None:
    report = bench_store(random_store(tmp_path / "zeros", (20,), density=0), epochs=1)
    assert report.decode is None
    assert report.share is None
    assert "decode" not in str(report)
    assert json.loads(report.to_json())["decode"] is None


def test_no_cells_are_refused(tmp_path, store: Store) -> None:
    with pytest.raises(SpecError, match="expected cells to iterate over, found none"):
        bench_store(store[:0])
    with pytest.raises(UnknownNameError, match="did you mean 'cell_type'"):
        bench_store(store, obs=["cel_type"])


def test_the_bound_decodes_all_chunks_or_some(store: Store) -> None:
    whole = DecodeBound(store)
    assert whole.cells == pytest.approx(N_OBS)
    assert whole.decode() == whole.decode(threads=1) == whole.cells


def test_the_bound_holds_what_it_may(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daodask.bench._PIECE_CHUNKS", 1)
    store = random_store(tmp_path / "store", (500, 300), n_vars=64)
    whole, part = DecodeBound(store), DecodeBound(store, most_bytes=1)
    assert whole.cells == pytest.approx(800)
    assert 0 < part.decode() < 400


def test_the_bound_checks_what_it_decodes(tmp_path) -> None:
    store = random_store(tmp_path / "store", (40,))
    (file,) = (tmp_path / "store").glob("datasets/*/X/data/c/0")
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CorruptStoreError):
        DecodeBound(store).decode()


def test_waits_are_one_for_each_batch_until_the_time_is_up(store: Store) -> None:
    from daodask import BatchLoader

    loader = BatchLoader(store, 10, schedule=Sequential())
    assert len(wait_times(loader)) == 11
    assert len(wait_times(loader, seconds=0)) == 1
    assert min(wait_times(range(3))) >= 0


def test_waits_of_the_first_window_do_not_count() -> None:
    assert Waits.of([9.0, 8.0, 1.0, 3.0, 2.0], 2) == Waits(longest=3.0, median=2.0, batches=3)
    assert Waits.of([9.0, 1.0], 2) == Waits(longest=1.0, median=1.0, batches=1)
    assert Waits.of([9.0], 1) is None


def test_a_spread() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert spread == Spread(2.0, 1.0, 3.0, 3)
    assert spread.text(str) == "2.0 (1.0 to 3.0)"
    assert Spread.of(np.array([4.0]).tolist()).text(str) == "4.0"


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", store.location.url, "--epochs", "1", "--seconds", "5"]
    options = (
        "--batch-size 8 --run-rows 4 --window-rows 32 --dense-genes 6 --obs cell_type odd --memory 1MiB --threads 1"
    )
    assert main([*arguments, *options.split(), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    values = json.loads(shown.out)
    assert shown.err == ""
    assert values["schedule"] == "Shuffled(run_rows=4, window_rows=32)"
    assert (values["batch_size"], values["n_vars"], values["obs"]) == (8, 6, ["cell_type", "odd"])
    assert (values["plan"]["memory"], values["threads"]) == (2**20, 1)
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "512 cells, CSR, with cell_type; Shuffled(run_rows=64, window_rows=16384)" in shown.out
    assert shown.err.endswith(" 100 %  bench: pass 1/1\n")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--features x", 2, "has no feature space 'x'"),
        ("--obs cel_type", 2, "did you mean 'cell_type'"),
        ("--memory 10B", 2, "give more memory"),
        ("--snapshot 9", 3, "has no snapshot 9"),
    ],
)
def test_exit_codes(store: Store, options: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", store.location.url, *options.split()]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("daodask bench: ")
    assert message in line
