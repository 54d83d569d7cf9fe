"""DAO as sfaira wrote it: the cells of the original studies, every variant, and pickles that are refused."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import anndata
import fsspec
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st

from daodask.errors import SourceError
from daodask.sources import dao_v1, detect_format, open_source
from daodask.sources._unpickle import restricted_loads
from daodask.sources.base import PartedSource, SourceAddress
from daodask.sources.dao_v1 import DaoV1Source
from daodask.storage import StoreLocation
from daodask.testing import coordinate_counts

UNS = {
    "id": "a",
    "organism": "Homo sapiens",
    "year": 2017,
    "score": np.float64(0.5),
    "n": np.int64(3),
    "annotated": True,
}


def write_dao_v1(
    path: Path,
    counts: Any,
    *,
    permutation: Any = None,
    chunks: tuple[int, int] = (4, 5),
    version: int = 2,
    text: bool = False,
) -> Path:
    """As sfaira's `write_dao` does: the stored row i is the original's row `permutation[i]`."""
    n_obs, n_vars = counts.shape
    stored = np.arange(n_obs) if permutation is None else np.asarray(permutation)
    group = zarr.open_group(path / "zarr", mode="w", zarr_format=version)
    array = group.create_array("X", shape=counts.shape, dtype="f4", chunks=chunks, fill_value=0)
    array[...] = counts.toarray()[stored]
    rows = np.arange(n_obs)
    obs = pd.DataFrame(
        {"row": rows.astype(str), "cell_type": np.where(rows % 2, "T", "B")}, index=[f"c{i}" for i in rows]
    )
    obs = obs.iloc[stored].astype(object if text else "category")
    if permutation is not None:
        obs["permutation_original_data"] = np.argsort(stored)
    (path / "parquet").mkdir()
    obs.to_parquet(path / "parquet" / "obs.parquet")
    pd.DataFrame({"symbol": [f"S{j}" for j in range(n_vars)]}, index=[f"g{j}" for j in range(n_vars)]).to_parquet(
        path / "parquet" / "var.parquet"
    )
    (path / "pickle").mkdir()
    (path / "pickle" / "uns.pickle").write_bytes(pickle.dumps(UNS))
    return path


def opened(path: Path | str) -> DaoV1Source:
    return DaoV1Source(StoreLocation.parse(path))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(4, 5), (30, 1), (1, 11)])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_variant(tmp_path: Path, version: int, chunks: tuple[int, int], text: bool, shuffled: bool) -> None:
    counts = coordinate_counts(np.arange(30), 11)
    permutation = np.random.default_rng(0).permutation(30) if shuffled else None
    path = write_dao_v1(tmp_path / "a", counts, permutation=permutation, chunks=chunks, version=version, text=text)
    source = opened(path)
    assert isinstance(source, PartedSource)
    assert source.n_obs == 30
    assert source.obs().index.tolist() == [f"c{i}" for i in range(30)]
    assert source.obs()["row"].astype(str).tolist() == [str(i) for i in range(30)]
    assert source.obs().columns.tolist() == ["row", "cell_type"]
    assert source.var("X").index.tolist() == [f"g{j}" for j in range(11)]
    assert source.uns() == UNS
    for start, stop in ((0, 30), (3, 17), (29, 30), (8, 8)):
        rows = source.read_matrix("X", start, stop)
        assert isinstance(rows, sp.csr_matrix)
        assert rows.dtype == np.float32
        assert rows.toarray().tolist() == counts[start:stop].toarray().tolist()


@given(st.permutations(range(13)), st.integers(1, 40), st.integers(1, 13))
def test_any_permutation_in_parts_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, permutation: list[int], part: int, chunk: int
) -> None:
    counts = coordinate_counts(np.arange(13), 6, density=0.6)
    path = tmp_path_factory.mktemp("dao") / "a"
    source = opened(write_dao_v1(path, counts, permutation=permutation, chunks=(chunk, 3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dao_v1, "PART_VALUES", part)
        parts = source.matrix_parts("X")
        assert parts is not None
        assert parts.dtype == "float32"
        found = list(source.read_parts("X", 0, parts.number))
        # What a part may be of: the rows of so many values, and one at least.
        assert all(len(np.unique(p.rows)) <= max(1, part // 6) for p in found)
        rows, columns, values = (np.concatenate([getattr(p, f) for p in found]) for f in ("rows", "columns", "values"))
        assert (sp.coo_matrix((values, (rows, columns)), shape=(13, 6)).tocsr() != counts).nnz == 0
        assert (source.read_matrix("X", 2, 11) != counts[2:11]).nnz == 0


def test_found_by_its_content_remote_and_pickled(tmp_path: Path) -> None:
    counts = coordinate_counts(np.arange(9), 6)
    path = write_dao_v1(tmp_path / "a", counts, permutation=np.arange(9)[::-1])
    fsspec.filesystem("memory").put(str(path), "/dao_v1/a", recursive=True)
    location = StoreLocation.parse("memory://dao_v1/a")
    assert detect_format(location) == "dao_v1"
    source = open_source(SourceAddress(location, "dao_v1"))
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    for found in (source, copy):
        assert (found.read_matrix("X", 0, 9) != counts).nnz == 0
    with pytest.raises(SourceError, match=r"got 1 datasets of DAO v1; .* source: memory://dao_v1/a"):
        detect_format(StoreLocation.parse("memory://dao_v1"))


# -- the real ones -------------------------------------------------------------------------------------------------

# Dataset, its study, cells, total count, the study's column of cell types.
REAL = [
    ("pbmc_zheng17", "pbmc_facs_zheng17", 600, 1_098_459, "celltype"),
    ("sc_mixology_celseq2", "sc_celseq2", 274, 8_643_317, "cell_line"),
    ("sc_mixology_dropseq", "sc_dropseq", 225, 5_058_927, "cell_line"),
]


@pytest.mark.parametrize(("name", "study", "n_obs", "total", "labels"), REAL)
def test_the_cells_are_those_of_the_original_study(
    data: Path, name: str, study: str, n_obs: int, total: int, labels: str
) -> None:
    source = opened(data / "dao_v1" / name)
    assert detect_format(StoreLocation.parse(data / "dao_v1" / name)) == "dao_v1"
    genes = source.var("X").index
    assert (source.n_obs, len(genes)) == (n_obs, 11_280)
    original = anndata.read_h5ad(data / "studies" / f"{study}.h5ad")
    columns = original.var_names.get_indexer(genes)
    values = sp.csr_matrix(original.X[:, columns]).astype(np.float32)
    found = sp.vstack([source.read_matrix("X", i, min(i + 100, n_obs)) for i in range(0, n_obs, 100)], format="csr")
    assert int(found.sum(dtype=np.float64)) == total
    # Each cell is one of the study's, in the study's order, which shuffling on writing had destroyed.
    rows = {row: number for number, row in enumerate(map(row_bytes, values))}
    numbers = [rows[row] for row in map(row_bytes, found)]
    assert numbers == sorted(set(numbers))
    assert source.obs()["cell_type"].tolist() == original.obs[labels].iloc[numbers].astype(str).tolist()
    assert source.obs().index.tolist() == [f"{name}_{i + 1}" for i in range(n_obs)]
    assert source.uns() == {
        "id": name, "organism": "Homo sapiens", "title": name, "year": 2017, "mapped_features": "104", "annotated": True
    }  # fmt: skip


def row_bytes(row: Any) -> bytes:
    return bytes(np.ascontiguousarray(row.toarray()).tobytes())


# -- pickles -------------------------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param((os.system, "touch {}"), id="os.system"),
        pytest.param((eval, "open({!r}, 'w')"), id="eval"),
        pytest.param((exec, "open({!r}, 'w')"), id="exec"),
        pytest.param((getattr, "", "join"), id="getattr"),
        pytest.param((open, "{}", "w"), id="open"),
        pytest.param((np.load, "{}"), id="numpy"),
        pytest.param((pd.read_pickle, "{}"), id="pandas"),
    ],
)
def test_a_pickle_that_calls_anything_is_refused_before_it_is_called(
    tmp_path: Path, payload: tuple[Any, ...], protocol: int
) -> None:
    function, *arguments = payload
    victim = tmp_path / "victim"
    hostile = Hostile(function, *(a.format(str(victim)) for a in arguments))
    path = write_dao_v1(tmp_path / "a", coordinate_counts(np.arange(4), 5))
    (path / "pickle" / "uns.pickle").write_bytes(pickle.dumps({"id": hostile}, protocol=protocol))
    with pytest.raises(SourceError, match=r"expected plain values .*uns\.pickle, got \w+\.\w+.*, which is refused"):
        opened(path).uns()
    assert not victim.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_pass_and_arrays_are_passed_over(protocol: int) -> None:
    values = {
        "text": "ü", "bytes": b"\xff", "whole": 2**70, "float": 0.5, "yes": True, "none": None, "list": [1, (2, "x")],
        "set": {1, 2}, "frozen": frozenset("a"), "ordered": OrderedDict(a=1), "float32": np.float32(1.5),
        "big-endian": np.array([7], ">i4")[0], "numpy text": np.str_("né"), "numpy bool": np.True_,
    }  # fmt: skip
    array = {"array": np.arange(5), "objects": np.array([[], "x"], dtype=object), "record": np.zeros(2, "i4,f8")}
    found = restricted_loads(pickle.dumps(values | array, protocol=protocol), "here")
    assert {name: found[name] for name in values} == values
    assert set(found) == {*values, *array}
    assert not any(isinstance(found[name], np.ndarray) for name in array)


@given(st.data())
def test_a_damaged_pickle_is_refused_or_plain(data: st.DataObject) -> None:
    whole = bytearray(pickle.dumps({"a": np.float64(1), "b": np.arange(3), "c": "text", "d": {1}}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(SourceError):  # and any other error fails the test
        restricted_loads(damaged, "here")


# -- other refusals ------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    counts = coordinate_counts(np.arange(6), 5)
    for number, (name, message) in enumerate(
        [
            ("parquet/obs.parquet", "expected parquet/obs.parquet in .*, found none; a dataset of DAO v1 has"),
            ("parquet/var.parquet", "expected parquet/var.parquet in .*, found none"),
            ("zarr/X/.zarray", "but zarr/X can't be read"),
            ("zarr/.zgroup", "but the group can't be read"),
        ]
    ):
        path = write_dao_v1(tmp_path / str(number), counts)
        (path / name).unlink()
        with pytest.raises(SourceError, match=message):
            opened(path)
    path = write_dao_v1(tmp_path / "other", coordinate_counts(np.arange(7), 5))
    (tmp_path / "1" / "parquet").rename(tmp_path / "moved")
    write_dao_v1(tmp_path / "whole", counts)
    (path / "parquet" / "obs.parquet").write_bytes((tmp_path / "whole" / "parquet" / "obs.parquet").read_bytes())
    with pytest.raises(SourceError, match=r"to have the 6 cells of .* and the 5 genes .*, got shape \(7, 5\)"):
        opened(path)


def test_damage_is_refused(tmp_path: Path) -> None:
    counts = coordinate_counts(np.arange(6), 5)
    path = write_dao_v1(tmp_path / "a", counts, permutation=np.arange(6)[::-1])
    obs = pd.read_parquet(path / "parquet" / "obs.parquet")
    obs.assign(permutation_original_data=[0, 0, 1, 2, 3, 4]).to_parquet(path / "parquet" / "obs.parquet")
    with pytest.raises(SourceError, match="permutation_original_data in .* to have each number below 6 once, got"):
        opened(path).obs()
    (path / "parquet" / "obs.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(SourceError, match="but parquet/obs.parquet can't be read"):
        opened(path)
    path = write_dao_v1(tmp_path / "b", counts)
    (path / "pickle" / "uns.pickle").write_bytes(pickle.dumps([1]))
    with pytest.raises(SourceError, match="expected a dict in the pickle .*, got list"):
        opened(path).uns()
    (path / "pickle" / "uns.pickle").unlink()
    assert opened(path).uns() == {}


def test_a_chunk_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    counts = coordinate_counts(np.arange(200), 50)
    path = write_dao_v1(tmp_path / "a", counts, chunks=(200, 50))
    group = zarr.open_group(path / "zarr", mode="r+")
    del group["X"]
    packed = zarr.create_array(
        path / "zarr", name="X", shape=(200, 50), dtype="f4", chunks=(200, 50), zarr_format=2,
        compressors=numcodecs.Blosc("lz4"),
    )  # fmt: skip
    packed[...] = counts.toarray()
    (chunk,) = (f for f in (path / "zarr" / "X").iterdir() if not f.name.startswith("."))
    assert (opened(path).read_matrix("X", 0, 200) != counts).nnz == 0
    chunk.write_bytes(chunk.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"expected the chunk X/0\.0 of .* to be of \d+ bytes, as it says, got \d+"):
        opened(path).read_matrix("X", 0, 200)
