"""Rows decoded from whole chunks: those of a CSR matrix, whichever cells and genes are selected."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from daodask import Normalise
from daodask.analysis.blocks import StoredBlock, _decoded_rows
from daodask.analysis.run import plan_reduction
from daodask.analysis.transforms import Expm1
from daodask.arrays import open_array
from daodask.errors import CorruptStoreError, SpecError
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store

SIZES, N_VARS = (70, 0, 33), 32
COUNTS = coordinate_counts(np.arange(sum(SIZES)), N_VARS).toarray()


@pytest.fixture(scope="module", params=["lz4", "zstd", "none"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("blocks") / "store", SIZES, codec=request.param)


def dense(block: StoredBlock) -> np.ndarray:
    """A block's rows, put together from what kernels are given."""
    out = np.zeros((block.n_obs, block.n_vars + 1))
    seen = 0
    for rows in block.rows():
        assert rows.first == seen
        seen += len(rows)
        for r, (low, high) in enumerate(zip(rows.low, rows.high, strict=True)):
            np.add.at(out[rows.first + r], rows.lookup[rows.columns[low:high]], rows.values[low:high])
    assert seen == block.n_obs
    return out[:, :-1]


def read(store: Store, **options: object) -> np.ndarray:
    plan = plan_reduction(store, **options)
    blocks = [StoredBlock(plan.reading, address) for task in plan.tasks for address in task]
    for block in blocks:
        np.testing.assert_allclose(block.X.toarray(), dense(block), rtol=1e-6)
    return np.concatenate([np.zeros((0, store.n_vars)), *map(dense, blocks)])


@settings(max_examples=25)
@given(
    st.one_of(st.none(), st.sets(st.integers(0, 102))),
    st.one_of(st.none(), st.lists(st.integers(0, N_VARS - 1), unique=True)),
    st.integers(1, 40),
)
def test_rows_are_those_selected(store, rows, genes, piece):
    from daodask.analysis import blocks

    chosen, expected = store, COUNTS
    if rows is not None:
        chosen, expected = chosen[np.array(sorted(rows), dtype=np.int64)], expected[sorted(rows)]
    if genes is not None:
        chosen, expected = chosen[:, np.array(genes, dtype=np.int64)], expected[:, genes]
    patch = pytest.MonkeyPatch()
    with patch.context() as m:
        m.setattr(blocks, "_PIECE_CHUNKS", piece)
        np.testing.assert_array_equal(read(chosen), expected)


def test_whole_blocks_are_decoded_in_place_and_scattered_rows_are_gathered(store, monkeypatch):
    from daodask.analysis import blocks

    used = []
    monkeypatch.setattr(blocks, "_decoded_rows", lambda *a: used.append("decoded") or _decoded_rows(*a))
    monkeypatch.setattr(blocks, "read_matrix", lambda *a, _f=blocks.read_matrix: used.append("gathered") or _f(*a))
    for chosen, way in ((store, "decoded"), (store[[0, 11]], "gathered")):
        used.clear()
        plan = plan_reduction(chosen)
        for task in plan.tasks:
            for address in task:
                dense(StoredBlock(plan.reading, address))
        assert set(used) == {way}


@pytest.mark.parametrize("totals", ["all", "selected"])
@pytest.mark.parametrize("log1p", [True, False])
def test_normalising_in_blocks(store, totals, log1p):
    genes = [7, 3, 30, 12]
    total = (COUNTS if totals == "all" else COUNTS[:, genes]).sum(axis=1, keepdims=True)
    expected = COUNTS[:, genes] * 500.0 / np.where(total == 0, 1, total)
    found = read(store[:, genes], transform=Normalise(500, log1p, totals))
    np.testing.assert_allclose(found, np.log1p(expected) if log1p else expected, rtol=1e-14)


def test_logarithms_are_undone(store):
    found = read(store[:2], transform=Expm1(), layer="half")
    np.testing.assert_allclose(found, np.expm1(COUNTS[:2] / 2), rtol=1e-14)


def test_cells_of_the_same_share_are_tied():
    """1 of 1000 and 3 of 3000: as quotients of rounded quotients they would differ."""
    from daodask.analysis.kernels import normalise_rows

    values, out = np.array([1, 999, 3, 2997], dtype=np.uint16), np.empty(4)
    for log1p in (False, True):
        normalise_rows(np.array([0, 1, 0, 1]), values, np.array([0, 2]), np.array([2, 4]), np.empty(0), 1e4, log1p, out)
        assert out[0] == out[2]
        assert out[1] == out[3]
    assert 1 / (1000 / 1e4) == 10.0


def test_what_can_not_be_normalised_is_refused(tmp_path):
    import anndata

    import daodask

    X = sp.csr_matrix(np.random.default_rng(0).random((5, 3)).astype(np.float32))
    spec = {"features": {"name": "g", "reference": "union"}, "X": {"kind": "normalised"}}
    assert daodask.build_store({**spec, "studies": [{"id": "a", "source": anndata.AnnData(X)}]}, tmp_path / "s").ok
    store = daodask.open_store(tmp_path / "s")
    with pytest.raises(SpecError, match="expected counts to normalise, but X of dataset 'a' is 'normalised'"):
        daodask.mean_var(store, transform=Normalise())
    np.testing.assert_allclose(daodask.reduce(store, "mean"), X.toarray().mean(axis=0), rtol=1e-6)
    for bad in ({"target_sum": 0}, {"totals": "every"}):
        with pytest.raises(SpecError, match=next(iter(bad))):
            Normalise(**bad)


def test_columns_beyond_the_genes_are_refused(tmp_path):
    """Kernels trust their columns; a damaged store must not let them write anywhere."""
    import zarr

    store = random_store(tmp_path / "store", (20,), n_vars=8, codec="none")
    folder = next((tmp_path / "store" / "datasets").iterdir())
    zarr.open_array(folder / "X" / "indices", mode="r+")[3] = 60_000
    block = StoredBlock(plan_reduction(store).reading, store.blocks[0])
    with pytest.raises(CorruptStoreError, match="expected indices below 8, got 60000"):
        list(block.rows())


def test_a_row_longer_than_a_piece_is_put_together(tmp_path, monkeypatch):
    from daodask.analysis import blocks

    monkeypatch.setattr(blocks, "_PIECE_CHUNKS", 1)
    store = random_store(tmp_path / "store", (40,), n_vars=64, density=1.0)
    # Of rows that are this long, chunks that hold a part of one.
    spec = open_array(store.blocks[0].dataset, "X/data").spec
    assert spec is not None
    assert spec.chunk_length >= 64
    np.testing.assert_array_equal(read(store), coordinate_counts(np.arange(40), 64, density=1.0).toarray())
