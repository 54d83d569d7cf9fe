"""Values onto the columns of the feature space: literal tables, SciPy as oracle, matrices that lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from daodask.build.matrices import map_block, staged_index
from daodask.errors import StreamlineError


def targets(*columns: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(columns, dtype=np.int32)


def test_block() -> None:
    block = sp.csr_matrix(np.array([[1, 2, 0, 4], [0, 0, 0, 8], [0, 3, 5, 0]], dtype=np.float32))
    mapped = map_block(block, targets(2, 0, -1, 2), 4, "counts")
    assert mapped.matrix.toarray().tolist() == [[2, 0, 5, 0], [0, 0, 8, 0], [3, 0, 0, 0]]
    assert mapped.matrix.dtype == np.uint16
    assert (mapped.total, mapped.kept, mapped.largest) == (23.0, 18.0, 8.0)
    assert block.toarray().tolist() == [[1, 2, 0, 4], [0, 0, 0, 8], [0, 3, 5, 0]]


def test_sources_may_be_unsorted_repeated_and_hold_zeros() -> None:
    block = sp.csr_matrix((np.array([1, 2, 0, 4, 0], np.int64), [2, 0, 1, 2, 1], [0, 4, 4, 5]), shape=(3, 3))
    mapped = map_block(block, targets(0, 1, 2), 3, "counts")
    assert mapped.matrix.indices.tolist() == [0, 2]
    assert mapped.matrix.data.tolist() == [2, 5]
    assert mapped.matrix.indptr.tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_empty_blocks(shape: tuple[int, int]) -> None:
    mapped = map_block(sp.csr_matrix(shape, dtype=np.float32), np.zeros(shape[1], np.int32), 5, "counts")
    assert mapped.matrix.shape == (shape[0], 5)
    assert (mapped.matrix.nnz, mapped.matrix.dtype, mapped.total, mapped.largest) == (0, np.uint16, 0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "dtype", "stored", "summed"),
    [
        ([65535, 0], np.int32, np.uint16, 65535),
        ([65535, 1], np.uint16, np.uint32, 65536),
        ([2**24, 1], np.float32, np.uint32, 2**24 + 1),
        ([2**32 - 1, 1], np.float64, np.uint64, 2**32),
        ([2**53 - 1, 1], np.float64, np.uint64, 2**53),
        ([2**53 - 1, 1], np.int64, np.uint64, 2**53),
        ([200, 100], np.uint8, np.uint16, 300),
        ([100, 100], np.int8, np.uint16, 200),
        ([True, True], np.bool_, np.uint16, 2),
        ([2048, 1], np.float16, np.uint16, 2049),
    ],
)
def test_counts_are_summed_exactly(values: list[int], dtype: type, stored: type, summed: int) -> None:
    mapped = map_block(
        sp.csr_matrix((np.array(values, dtype), [0, 1], [0, 2]), shape=(1, 2)), targets(0, 0), 1, "counts"
    )
    assert mapped.matrix.dtype == stored
    assert [int(v) for v in mapped.matrix.data] == [summed]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.5, np.float32, r"expected counts \(integral, non-negative, finite\), got 0.5 in row 1, column 2 of a block"),
        (
            -1,
            np.int16,
            r"got -1 in row 1, column 2 of a block; declare X: \{kind: normalised\}, or read the counts from",
        ),
        (np.nan, np.float64, "got nan in row 1"),
        (np.inf, np.float32, "got inf in row 1"),
        (2.0**54, np.float64, "expected counts up to 9007199254740992, got 1.8014398509481984e[+]16 in row 1"),
        (2**63, np.uint64, "expected counts up to 9007199254740992, got 9223372036854775808 in row 1"),
        (1 + 1j, np.complex64, "expected a matrix of numbers, got complex64"),
    ],
)
def test_what_is_no_count_is_refused(value: Any, dtype: type, message: str) -> None:
    block = sp.csr_matrix((np.array([1, 2, value, 4], dtype), [0, 1, 2, 0], [0, 2, 3, 4]), shape=(3, 3))
    with pytest.raises(StreamlineError, match=message):
        map_block(block, targets(0, 1, -1), 2, "counts")


def test_sums_that_are_no_longer_exact_are_refused() -> None:
    block = sp.csr_matrix(np.array([[2**53, 1]]))
    with pytest.raises(StreamlineError, match="as the sum of several genes"):
        map_block(block, targets(0, 0), 1, "counts")


def test_genes_must_be_as_many_as_names() -> None:
    with pytest.raises(StreamlineError, match="expected a matrix of 2 genes, as there are names, got 3"):
        map_block(sp.csr_matrix((1, 3)), targets(0, 1), 2, "counts")


@pytest.mark.parametrize(
    ("values", "dtype", "stored", "result"),
    [
        ([0.5, -1.5], np.float32, np.float32, [0.5, -1.5]),
        ([0.1, 1.0], np.float64, np.float64, [0.1, 1.0]),
        ([0.25, 1e300], np.float64, np.float64, [0.25, 1e300]),
        ([2**24 + 1, 1], np.int64, np.float64, [2**24 + 1, 1]),
        ([1, 0], np.int64, np.float32, [1]),
    ],
)
def test_other_values_are_floats_without_rounding(
    values: list[float], dtype: type, stored: type, result: list[float]
) -> None:
    block = sp.csr_matrix((np.array(values, dtype), [0, 1], [0, 2]), shape=(1, 2))
    mapped = map_block(block, targets(0, 1), 2, "normalised")
    assert mapped.matrix.dtype == stored
    assert mapped.matrix.data.tolist() == result


def test_values_that_cancel_leave_no_zero() -> None:
    block = sp.csr_matrix(np.array([[1.5, -1.5, 2.0]]))
    mapped = map_block(block, targets(1, 1, 0), 2, "normalised")
    assert (mapped.matrix.indices.tolist(), mapped.matrix.data.tolist()) == ([0], [2.0])


def test_only_other_values_may_be_infinite_or_missing() -> None:
    block = sp.csr_matrix((np.array([np.nan, np.inf, -np.inf], np.float32), [0, 1, 2], [0, 3]), shape=(1, 3))
    with pytest.raises(StreamlineError, match=r"expected finite values, got nan in row 0, column 0 .*kind: other"):
        map_block(block, targets(0, 1, 2), 3, "normalised")
    mapped = map_block(block, targets(0, 1, 2), 3, "other")
    np.testing.assert_array_equal(mapped.matrix.data, np.array([np.nan, np.inf, -np.inf], np.float32))


def test_whole_numbers_beyond_float64_are_refused() -> None:
    with pytest.raises(StreamlineError, match="expected values that float64 holds exactly"):
        map_block(sp.csr_matrix(np.array([[2**60 + 1]])), targets(0), 1, "other")


@pytest.mark.parametrize("indices", [[0, 3], [0, -1], [2**31 - 1, 0]])
@pytest.mark.parametrize("target", [(0, 1, 2), (2, 1, 0), (-1, -1, -1)])
def test_columns_that_there_are_not(indices: list[int], target: tuple[int, ...]) -> None:
    block = sp.csr_matrix((1, 3), dtype=np.float32)
    block.data, block.indices = np.array([1, 0], np.float32), np.array(indices, np.int32)
    block.indptr = np.array([0, 2], np.int32)
    with pytest.raises(StreamlineError, match="expected columns from 0 to 2, got others too; the matrix is damaged"):
        map_block(block, targets(*target), 3, "counts")


def test_counts_beyond_all_measure() -> None:
    block = sp.csr_matrix((np.full(1024, 2**53), np.arange(1024), [0, 1024]), shape=(1, 1024))
    with pytest.raises(StreamlineError, match="expected counts that add up to less than 2\\*\\*63"):
        map_block(block, np.zeros(1024, np.int32), 1, "counts")
    block.data[:] = 2**42
    assert map_block(block, np.zeros(1024, np.int32), 1, "counts").matrix.toarray().tolist() == [[2**52]]


def test_staged_columns() -> None:
    assert [staged_index(n).name for n in (0, 2**16, 2**16 + 1)] == ["uint16", "uint16", "int32"]
    for n_vars in (2**16, 2**16 + 1):
        block = sp.csr_matrix(np.array([[1, 0, 2], [0, 3, 0]]))
        mapped = map_block(block, targets(n_vars - 1, 5, 0), n_vars, "counts")
        assert mapped.indices.dtype == staged_index(n_vars)
        assert mapped.indices.tolist() == [0, n_vars - 1, 5]
        assert mapped.indptr.tolist() == [0, 2, 3]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[sp.csr_matrix, np.ndarray[Any, np.dtype[np.int32]], int]:
    n_obs, n_genes, n_vars = draw(st.integers(0, 6)), draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 6, 64, 150]))
    dtype = draw(st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.float64]))
    dense = draw(hnp.arrays(np.int64, (n_obs, n_genes), elements=st.sampled_from([0, 0, 1, 2, 255])))
    matrix = sp.csr_matrix(dense.astype(dtype))
    if draw(st.booleans()) and matrix.nnz:  # shuffle each row's entries
        order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)])
        matrix = sp.csr_matrix((matrix.data[order], matrix.indices[order], matrix.indptr), shape=matrix.shape)
    if draw(st.booleans()):  # and give some an explicit zero or a second entry
        columns = draw(hnp.arrays(np.int32, matrix.nnz, elements=st.integers(0, n_genes - 1)))
        values = np.where(draw(hnp.arrays(np.bool_, matrix.nnz)), matrix.data, np.zeros(1, dtype))
        matrix = sp.csr_matrix((values, columns, matrix.indptr), shape=matrix.shape)
    target = draw(hnp.arrays(np.int32, n_genes, elements=st.integers(-1, n_vars - 1)))
    if draw(st.booleans()):
        target = np.sort(target)
    return matrix, target, n_vars


def reference(block: sp.csr_matrix, target: Any, n_vars: int, kind: str) -> sp.csr_matrix:
    """The same by SciPy: sorted, added up, without zeros."""
    columns = target[block.indices]
    placed = np.flatnonzero((block.data != 0) & (columns >= 0))
    values = block.data[placed].astype(np.uint64 if kind == "counts" else np.float64)
    indptr = np.searchsorted(placed, block.indptr)
    matrix = sp.csr_matrix((values, columns[placed], indptr), shape=(block.shape[0], n_vars))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


@given(blocks(), st.sampled_from(["counts", "normalised", "other"]))
def test_bytes_are_those_of_scipy(given: tuple[sp.csr_matrix, Any, int], kind: str) -> None:
    block, target, n_vars = given
    mapped, expected = map_block(block, target, n_vars, kind), reference(*given, kind)
    np.testing.assert_array_equal(mapped.indptr, expected.indptr)
    np.testing.assert_array_equal(mapped.indices, expected.indices)
    np.testing.assert_array_equal(mapped.data, expected.data)
    assert mapped.data.dtype == (np.uint16 if kind == "counts" else np.float32)


@given(blocks(), st.sampled_from(["counts", "normalised", "other"]))
def test_block_is_a_product_with_the_map(given: tuple[sp.csr_matrix, Any, int], kind: str) -> None:
    block, target, n_vars = given
    genes = np.flatnonzero(target >= 0)
    onto = sp.csr_matrix((np.ones(len(genes)), (genes, target[genes])), shape=(len(target), n_vars))
    mapped = map_block(block, target, n_vars, kind)
    block = block.astype(np.float64)  # scipy adds small integers up in their own type
    np.testing.assert_array_equal(mapped.matrix.toarray(), (block @ onto).toarray())
    assert mapped.matrix.has_canonical_format
    assert np.all(mapped.matrix.data != 0)
    assert mapped.total == block.sum()
    assert mapped.kept == block[:, genes].sum()
    assert mapped.largest == mapped.matrix.toarray().max(initial=0)
    assert mapped.matrix.dtype.kind == ("u" if kind == "counts" else "f")
