"""What workers do to validate a store: each check looks at one file, one block or one small piece of metadata.

A check is a generator: it yields what is wrong and returns what the coordinator needs to compare with the snapshot.
Nothing is cached from earlier reads, and no check holds more than a block's obs, a few million values of a matrix, or a
block of one by gene.
They read with zarr-python and pyarrow themselves, and not with the readers that the rest of the package has: what those
would overlook is found too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from daodask._format import shorten
from daodask.arrays import open_group
from daodask.format.features import FeatureSpace
from daodask.format.manifest import ColumnSummary, DatasetInfo, FeatureSpaceInfo, MatrixInfo, ObsmInfo, merge_schema
from daodask.format.spec import BY_GENE, CHECKSUMS, OBS_NAMES, VAR_MEASURED, feature_path
from daodask.storage import StoreLocation
from daodask.types import AnyArray, Int64Array, Label

__all__ = [
    "BlockSeen",
    "Checked",
    "ColumnSeen",
    "File",
    "Finding",
    "check_files",
    "check_gene_block",
    "check_genes",
    "check_listing",
    "check_matrix",
    "check_matrix_block",
    "check_obs",
    "check_obs_block",
    "check_obsm",
    "check_schema",
    "check_space",
    "check_var",
    "run_check",
]

#: Bytes hashed, and values of a matrix looked at, at a time.
_HASH_BYTES: Final = 8 * 2**20
_PIECE: Final = 2**22
#: Values that are looked for by gene at a time, each with several numbers of 8 bytes.
_GENE_PIECE: Final = 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong or, as a ``note``, worth knowing; ``where`` is a path in the dataset or a part of the store."""

    where: str
    what: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found, and what it saw; ``seen`` is ``None`` where damage ended it early."""

    findings: tuple[Finding, ...]
    seen: Any = None


Check: TypeAlias = Generator[Finding, None, Any]


def run_check(where: str, check: Callable[..., Check], *arguments: Any) -> Checked:
    """Run a check to its end; what a reader raises over damaged bytes is a finding too."""
    findings: list[Finding] = []
    steps = check(*arguments)
    try:
        while True:
            findings.append(next(steps))
    except StopIteration as end:
        return Checked(tuple(findings), end.value)
    except Exception as error:  # noqa: BLE001  zarr, pyarrow and the codecs raise anything over damaged bytes
        findings.append(Finding(where, f"can't be read: {_said(error)}"))
        return Checked(tuple(findings))


def _said(error: Exception) -> str:
    # The error tree's own messages are sentences; those of libraries need their type to be understood.
    text = shorten(error, 300)
    return text if type(error).__module__.startswith("daodask.") else f"{type(error).__name__}: {text}"


# -- files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset, as its checksums have it."""

    path: str
    size: int
    sha256: str


def check_listing(dataset: StoreLocation, info: DatasetInfo) -> Check:
    """Compare checksums.json with the snapshot, and the files there are with checksums.json; sees the files to hash."""
    data = (dataset / CHECKSUMS).read()
    digest = hashlib.sha256(data).hexdigest()
    if digest != info.checksum:
        yield Finding(CHECKSUMS, _differs("SHA-256 of the snapshot", info.checksum, digest))
    files = tuple(File(path, int(e["size"]), str(e["sha256"])) for path, e in json.loads(data).items())
    nbytes = sum(f.size for f in files)
    if nbytes != info.nbytes:
        yield Finding(CHECKSUMS, f"expected {info.nbytes:,} bytes in all, as the snapshot says, got {nbytes:,}")
    for path in sorted({*_paths(dataset)} - {CHECKSUMS} - {f.path for f in files}):
        yield Finding(path, "not a file of the dataset; nothing reads it", note=True)
    return files


def _paths(dataset: StoreLocation) -> Iterator[str]:
    root = dataset.path.rstrip("/") + "/"
    return (str(path).removeprefix(root) for path in dataset.fs.find(dataset.path))


def check_files(dataset: StoreLocation, files: Sequence[File]) -> Check:
    """Size and SHA-256 of each file."""
    for file in files:
        try:
            size, digest = _digest(dataset / file.path)
        except FileNotFoundError:
            yield Finding(file.path, "missing")
        except OSError as error:
            yield Finding(file.path, f"can't be read: {_said(error)}")
        else:
            if size != file.size:
                yield Finding(file.path, f"expected {file.size:,} bytes, got {size:,}")
            elif digest != file.sha256:
                yield Finding(file.path, _differs("SHA-256", file.sha256, digest))


def _digest(location: StoreLocation) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with location.fs.open(location.path, "rb") as stream:
        while piece := stream.read(_HASH_BYTES):
            size += len(piece)
            digest.update(piece)
    return size, digest.hexdigest()


def _differs(what: str, expected: str, got: str) -> str:
    return (
        f"expected the {what} {expected[:12] or '(none)'}…, got {got[:12]}…: its bytes are not those that were written"
    )


# -- feature spaces ------------------------------------------------------------------------------------------------


def check_space(location: StoreLocation, space: FeatureSpaceInfo) -> Check:
    """The genes in parquet are those that the hash was made of."""
    path = feature_path(space.hash)
    features = FeatureSpace.from_parquet((location / path).read(), name=space.name)
    if len(features) != space.n_vars:
        yield Finding(path, f"expected {space.n_vars:,} genes, as the snapshot says, got {len(features):,}")
    if features.hash != space.hash:
        yield Finding(path, f"expected genes whose content hash is {space.hash}, got {features.hash}")


def check_schema(space: FeatureSpaceInfo, datasets: Sequence[DatasetInfo]) -> Check:
    """The obs schema of a feature space is that of its datasets' columns."""
    merged = {column.name: column for column in merge_schema(datasets, space.obs)}
    stated = {column.name: column for column in space.obs}
    for name in {**stated, **merged}:
        if merged.get(name) != stated.get(name):
            yield Finding(f"snapshot, obs column {name!r}", f"expected {merged.get(name)}, got {stated.get(name)}")


# -- matrices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlockSeen:
    """Of a block of a matrix: its non-zeros, and the largest absolute value."""

    nnz: int
    largest: float


def check_matrix(dataset: StoreLocation, matrix: MatrixInfo, n_obs: int, n_vars: int) -> Check:
    """Shapes, dtypes and ends of a matrix."""
    group = open_group(dataset)[matrix.name]
    data, indices, indptr = (group[name] for name in ("data", "indices", "indptr"))
    shape = tuple(group.attrs["shape"])
    yield from _expect(matrix.name, "shape", (n_obs, n_vars), shape)
    yield from _expect(f"{matrix.name}/data", "dtype", matrix.dtype, data.dtype.name)
    yield from _expect(f"{matrix.name}/data", "length", matrix.nnz, data.shape[0])
    yield from _expect(f"{matrix.name}/indices", "length", matrix.nnz, indices.shape[0])
    yield from _expect(f"{matrix.name}/indptr", "length", n_obs + 1, indptr.shape[0])
    yield from _expect(f"{matrix.name}/indptr", "start", 0, int(indptr[0]))
    yield from _expect(f"{matrix.name}/indptr", "end", matrix.nnz, int(indptr[-1]))
    if indices.dtype.kind not in "iu":
        yield Finding(f"{matrix.name}/indices", f"expected whole numbers, got {indices.dtype.name}")
    # A build file may ask for counts as float32; their values are checked block by block.
    if matrix.kind == "counts" and data.dtype.kind not in "uf":
        yield Finding(f"{matrix.name}/data", f"expected unsigned whole numbers for counts, got {data.dtype.name}")


def check_matrix_block(
    dataset: StoreLocation, matrix: MatrixInfo, n_vars: int, start: int, stop: int
) -> Generator[Finding, None, BlockSeen | None]:
    """Rows of a matrix: indptr rises, indices are in range and rise in each row, values are of the kind."""
    group = open_group(dataset)[matrix.name]
    data, indices = group["data"], group["indices"]
    indptr = group["indptr"][start : stop + 1].astype(np.int64)
    falling = np.flatnonzero(np.diff(indptr) < 0)
    if len(indptr) != stop - start + 1 or len(falling):
        at = f" in row {start + int(falling[0]):,}" if len(falling) else f": it ends at row {start + len(indptr) - 1:,}"
        yield Finding(f"{matrix.name}/indptr", f"expected it to rise over rows {start:,} to {stop:,}, it doesn't{at}")
        return None
    low, high = int(indptr[0]), int(indptr[-1])
    if low < 0 or high > min(data.shape[0], indices.shape[0]):
        yield Finding(f"{matrix.name}/indptr", f"expected bounds within the data, got {low:,} to {high:,}")
        return None
    largest = 0.0
    for first in range(low, high, _PIECE):
        last = min(first + _PIECE, high)
        # One index more on the left, to compare the first one with.
        yield from _check_indices(matrix.name, indices, indptr, max(first - 1, low), last, start, n_vars)
        values = data[first:last]
        yield from _check_values(matrix, values, indptr, first, start)
        # NaN, which no comparison tells, stays what it is in numpy's maximum.
        largest = float(np.maximum(largest, np.abs(values).max()))
    return BlockSeen(high - low, largest)


def _check_indices(
    name: str, array: Any, indptr: Int64Array, first: int, last: int, start: int, n_vars: int
) -> Iterator[Finding]:
    indices = array[first:last].astype(np.int64)
    outside = np.flatnonzero((indices < 0) | (indices >= n_vars))
    if len(outside):
        row, at = _row(indptr, first + int(outside[0]), start), int(indices[outside[0]])
        yield Finding(f"{name}/indices", f"expected genes 0 to {n_vars - 1:,}, got {at:,} in row {row:,}")
    rising = np.diff(indices) > 0
    begins = indptr[(indptr > first) & (indptr < last)] - first - 1
    rising[begins] = True
    if not rising.all():
        row = _row(indptr, first + 1 + int(np.argmin(rising)), start)
        yield Finding(
            f"{name}/indices", f"expected each row's genes in strictly rising order, they aren't in row {row:,}"
        )


def _check_values(
    matrix: MatrixInfo, values: AnyArray, indptr: Int64Array, first: int, start: int
) -> Iterator[Finding]:
    for what, wrong in _wrong_values(matrix.kind, values):
        found = np.flatnonzero(wrong)
        if len(found):
            row, value = _row(indptr, first + int(found[0]), start), values[found[0]]
            yield Finding(f"{matrix.name}/data", f"expected {what}, got {len(found):,} others: {value} in row {row:,}")


def _wrong_values(kind: str, values: AnyArray) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    yield "no stored zero", values == 0
    if values.dtype.kind == "f" and kind == "counts":
        yield (
            "counts (whole, not negative, finite)",
            ~((values >= 0) & (values == np.floor(values)) & (values < np.inf)),
        )
    elif values.dtype.kind == "f" and kind == "normalised":
        yield "finite values", ~np.isfinite(values)


def _row(indptr: Int64Array, position: int, start: int) -> int:
    """The row of the dataset that an element belongs to."""
    return start + int(np.searchsorted(indptr, position, side="right")) - 1


def check_genes(dataset: StoreLocation, matrix: MatrixInfo, shape: tuple[int, int], blocks: Sequence[int]) -> Check:
    """Shapes and dtypes of a matrix's copy by gene."""
    where, n_blocks = f"{BY_GENE}/{matrix.name}", len(blocks) - 1
    group = open_group(dataset / BY_GENE)[matrix.name]
    data, indices, indptr, totals = (group[name] for name in ("data", "indices", "indptr", "totals"))
    yield from _expect(f"{where}/totals", "length", shape[0], totals.shape[0])
    yield from _expect(where, "shape", shape, tuple(group.attrs["shape"]))
    if n_blocks > 1:
        yield from _expect(where, "rows of a block", blocks[1], group.attrs["block_rows"])
    yield from _expect(f"{where}/data", "dtype", matrix.dtype, data.dtype.name)
    yield from _expect(f"{where}/indptr", "length", n_blocks * (shape[1] + 1), indptr.shape[0])
    for name, array in (("data", data), ("indices", indices)):
        yield from _expect(f"{where}/{name}", "elements of a chunk", (matrix.by_gene,), array.chunks)
        yield from _expect(f"{where}/{name}", "length", n_blocks * array.shards[0], array.shape[0])


def check_gene_block(
    dataset: StoreLocation, matrix: MatrixInfo, n_vars: int, number: int, start: int, stop: int
) -> Check:
    """A block by gene has the values of its rows, each once and in the order of the rows, and no other."""
    where = f"{BY_GENE}/{matrix.name}"
    group, by_gene = open_group(dataset)[matrix.name], open_group(dataset / BY_GENE)[matrix.name]
    first = number * (n_vars + 1)
    ends = by_gene["indptr"][first : first + n_vars + 1].astype(np.int64)
    bounds, shard = ends.copy(), by_gene["data"].shards[0]
    if bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] > shard:
        yield Finding(f"{where}/indptr", f"expected it to rise from 0 in block {number}, it doesn't")
        return
    run = slice(number * shard, number * shard + int(bounds[-1]))
    rows, values = by_gene["indices"][run], by_gene["data"][run]
    indptr, totals = group["indptr"][start : stop + 1].astype(np.int64), np.zeros(stop - start)
    for low in range(int(indptr[0]), int(indptr[-1]), _GENE_PIECE):
        high = min(low + _GENE_PIECE, int(indptr[-1]))
        columns, data = group["indices"][low:high].astype(np.int64), group["data"][low:high]
        order = np.argsort(columns, kind="stable")
        ordered = columns[order]
        # The n-th element of a gene here goes n behind the last of it so far.
        at = ends[ordered] + np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        ends[:-1] += np.bincount(columns, minlength=n_vars)
        row = np.searchsorted(indptr, np.arange(low, high), side="right") - 1
        if (ends[:-1] > bounds[1:]).any():
            yield Finding(where, f"expected as many values of each gene as rows have in block {number}, got fewer")
            return
        if not np.array_equal(rows[at], row[order]) or values[at].tobytes() != data[order].tobytes():
            yield Finding(where, f"expected the rows' values in block {number}, got others")
            return
        totals += np.bincount(row, data, minlength=len(totals))
    if (ends[:-1] < bounds[1:]).any():
        yield Finding(where, f"expected as many values of each gene as rows have in block {number}, got more")
    if matrix.kind == "counts" and not np.array_equal(by_gene["totals"][start:stop], totals):
        yield Finding(f"{where}/totals", f"expected the sums of the rows in block {number}, got others")


def check_obsm(dataset: StoreLocation, array: ObsmInfo, n_obs: int) -> Check:
    """Shape and dtype of a dense array per cell."""
    stored = open_group(dataset)[f"obsm/{array.name}"]
    yield from _expect(f"obsm/{array.name}", "shape", (n_obs, array.width), stored.shape)
    yield from _expect(f"obsm/{array.name}", "dtype", array.dtype, stored.dtype.name)


# -- var and obs ---------------------------------------------------------------------------------------------------


def check_var(dataset: StoreLocation, space: FeatureSpaceInfo) -> Check:
    """Var is the feature space, with a boolean column of the genes that were measured."""
    import anndata

    var = anndata.io.read_elem(open_group(dataset)["var"])
    if VAR_MEASURED not in var:
        yield Finding("var", f"expected a boolean column {VAR_MEASURED!r}, got none")
    elif var[VAR_MEASURED].dtype != np.bool_:
        yield Finding(f"var/{VAR_MEASURED}", f"expected booleans, got {var[VAR_MEASURED].dtype}")
    features = FeatureSpace(space.name, var.drop(columns=VAR_MEASURED, errors="ignore"))
    if features.hash != space.hash:
        yield Finding("var", f"expected the {space.n_vars:,} genes of {space.name!r} (hash {space.hash}), got others "
                             f"({len(features):,}, hash {features.hash})")  # fmt: skip


def check_obs(dataset: StoreLocation, info: DatasetInfo) -> Check:
    """Obs has the snapshot's columns, dtypes and labels, in the zarr group as in the parquet file."""
    stated = tuple(column.name for column in info.columns)
    group = open_group(dataset)["obs"]
    yield from _expect("obs", "columns", stated, tuple(group.attrs["column-order"]))
    with _open_parquet(dataset) as parquet:
        yield from _expect("obs.parquet", "number of cells", info.n_obs, parquet.metadata.num_rows)
        yield from _expect("obs.parquet", "columns", (OBS_NAMES, *stated), tuple(parquet.schema_arrow.names))
        for column in info.columns:
            if column.name in parquet.schema_arrow.names:
                dtype = _dtype_name(parquet.schema_arrow.field(column.name).type)
                yield from _expect(f"obs.parquet, column {column.name!r}", "dtype", column.dtype, dtype)
            if column.name in group and column.dtype == "category":
                yield from _check_categories(group[column.name], column)


def _check_categories(node: Any, column: ColumnSummary) -> Iterator[Finding]:
    where = f"obs/{column.name}"
    if node.attrs["encoding-type"] != "categorical":
        yield Finding(where, f"expected a categorical, got the encoding {node.attrs['encoding-type']!r}")
        return
    yield from _expect(where, "categories", column.categories, tuple(_zarr_values(node["categories"]).to_pylist()))
    yield from _expect(where, "order of categories", column.ordered, bool(node.attrs["ordered"]))


def _dtype_name(kind: pa.DataType) -> str:
    """The word that a snapshot has for the type of a parquet column."""
    if pa.types.is_dictionary(kind):
        return "category"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


@dataclass(frozen=True, slots=True)
class ColumnSeen:
    """Of a block of an obs column: what its summary in the snapshot adds up from."""

    n_missing: int
    counts: Counter[Label] = field(default_factory=Counter)
    low: Label | None = None
    high: Label | None = None


def check_obs_block(
    dataset: StoreLocation, columns: Sequence[str], start: int, stop: int
) -> Generator[Finding, None, dict[str, ColumnSeen]]:
    """Rows ``[start, stop)`` of obs are the same in the zarr group and in the parquet file."""
    group = open_group(dataset)["obs"]
    with _open_parquet(dataset) as parquet:
        table = _parquet_rows(parquet, start, stop)
    stored = {OBS_NAMES: group.attrs["_index"], **{name: name for name in columns}}
    seen = {}
    for name, key in stored.items():
        if name not in table.column_names or key not in group:
            continue  # said once, of the whole dataset
        written, queried = _zarr_values(group[key], start, stop), table.column(name).combine_chunks()
        row = _first_difference(written, queried)
        if row is not None:
            yield Finding(
                f"obs, column {name!r}",
                f"expected the same values in the zarr group and in obs.parquet, row {start + row:,} differs",
            )
        seen[name] = _column_seen(queried)
    return {name: seen[name] for name in columns if name in seen}


def _parquet_rows(parquet: pq.ParquetFile, start: int, stop: int) -> pa.Table:
    bounds = np.cumsum([0, *(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))])
    groups = [i for i in range(parquet.num_row_groups) if bounds[i] < stop and bounds[i + 1] > start]
    return parquet.read_row_groups(groups).slice(start - int(bounds[groups[0]]) if groups else 0, stop - start)


def _zarr_values(node: Any, start: int = 0, stop: int | None = None) -> pa.Array:
    """Rows of a column in AnnData's encodings; missing values are null."""
    encoding = node.attrs["encoding-type"]
    if encoding == "categorical":
        codes = np.asarray(node["codes"][start:stop])
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), _zarr_values(node["categories"]))
    if encoding.startswith("nullable-"):
        return _arrow(node["values"][start:stop], np.asarray(node["mask"][start:stop]))
    return _arrow(node[start:stop])


def _arrow(values: Any, mask: AnyArray | None = None) -> pa.Array:
    values = np.asarray(values)
    # zarr's texts are of numpy's StringDType, which arrow doesn't take.
    return pa.array(values if values.dtype.kind in "biuf" else values.astype(object), mask=mask, from_pandas=True)


def _first_difference(a: pa.Array, b: pa.Array) -> int | None:
    a, b = _plain(a), _plain(b)
    if len(a) != len(b):
        return min(len(a), len(b))
    if a.type != b.type and a.null_count < len(a):
        a = a.cast(b.type)
    if a.equals(b) or a.null_count == b.null_count == len(a):
        return None
    return next((i for i, (x, y) in enumerate(zip(a.to_pylist(), b.to_pylist(), strict=True)) if x != y), None)


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _column_seen(values: pa.Array) -> ColumnSeen:
    if pa.types.is_dictionary(values.type):
        labels = _plain(values).drop_null().value_counts().to_pylist()
        return ColumnSeen(values.null_count, Counter({v["values"]: v["counts"] for v in labels}))
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        ends = pc.min_max(values).as_py()
        return ColumnSeen(values.null_count, low=ends["min"], high=ends["max"])
    return ColumnSeen(values.null_count)


# -- opening -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_parquet(dataset: StoreLocation) -> Iterator[pq.ParquetFile]:
    location = dataset / "obs.parquet"
    with location.fs.open(location.path, "rb") as file, pq.ParquetFile(file) as parquet:
        yield parquet


def _expect(where: str, what: str, expected: object, got: object) -> Iterator[Finding]:
    if expected != got:
        yield Finding(where, f"expected {what} {shorten(expected, 120)}, as the snapshot says, got {shorten(got, 120)}")
