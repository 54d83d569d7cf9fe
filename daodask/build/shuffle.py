"""Datasets into shuffled ones: a real permutation of all their cells, in memory that is set by a block.

Each input block is read once and written as a part of an exchange, its rows sorted by the output block that they go to;
each output block reads its rows from all parts and puts them in their order. What goes where is a
:class:`~daodask.build.permutation.Permutation`, of which each task works out its own part.

Obs columns :data:`~daodask.format.spec.SOURCE_DATASET` and :data:`~daodask.format.spec.SOURCE_ROW` tell where each cell
was: sorting by them undoes it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from daodask.arrays import open_array
from daodask.blocks import BlockAddress, arrow_type, category_dtype, conform, read_obs, read_obsm
from daodask.buffers import reused_empty
from daodask.build.exchange import Exchange
from daodask.build.matrices import MappedBlock, staged_index
from daodask.build.permutation import Permutation
from daodask.build.receipts import (
    BlockReceipt,
    FramesReceipt,
    MatrixReceipt,
    PartsReceipt,
    ScratchFile,
    with_receipt,
    write_file,
)
from daodask.build.runs import RUN_ROWS
from daodask.build.staging import StagedMatrix
from daodask.build.streamline import streamline_obs, summarise
from daodask.build.tasks import MatrixJob, StudyJob, obsm_chunk_rows, staged_indptr, write_obsm_rows
from daodask.errors import StreamlineError
from daodask.format.groups import CSRLayout, ObsmLayout, encode_group, encode_obs_parquet
from daodask.format.manifest import DatasetInfo, ObsColumn, ObsmInfo, merge_schema
from daodask.format.spec import MEASURED_BY_SOURCE, OBS_NAMES, SOURCE_DATASET, SOURCE_ROW, VAR_MEASURED, Layout
from daodask.sources import Fingerprint
from daodask.storage import StoreLocation
from daodask.types import AnyArray, BoolArray, Int64Array

__all__ = ["ShuffleJob", "ShuffledFrames", "collect_block", "plan_shuffle", "scatter_block", "write_shuffled_frames"]

#: How wide the number of a row's origin is in a part.
_ROW: Final = np.dtype("<i8")
_LENGTH: Final = np.dtype("<i4")
#: Column of row numbers beside those of obs, of which none has this name.
_NUMBER: Final = "_index"


@dataclass(frozen=True, slots=True)
class Input:
    """A dataset to take cells from: where it is, its id, and its cells."""

    location: StoreLocation
    id: str
    n_obs: int


@dataclass(frozen=True)
class ShuffleJob:
    """Everything that the tasks of one shuffle share.

    Parameters
    ----------
    scratch
        Where the exchanges and the receipts are.
    inputs
        Datasets with all of ``matrices`` and ``obsm``, on the same genes.
    outputs
        A job for each dataset to write, of which staging and writing use the parts.
    dtypes
        Of the values of each matrix: what holds those of all inputs.
    schema
        Obs columns of all inputs.
    origins
        Whether obs tells the dataset, too, that a cell is from.
    seed
        Of the permutation.
    """

    scratch: StoreLocation
    inputs: tuple[Input, ...]
    outputs: tuple[StudyJob, ...]
    dtypes: tuple[str, ...]
    schema: tuple[ObsColumn, ...]
    origins: bool
    seed: int

    @property
    def layout(self) -> Layout:
        """How datasets are cut; inputs are read in blocks of the same size."""
        return self.outputs[0].layout

    @property
    def matrices(self) -> tuple[MatrixJob, ...]:
        """The matrices that every input has."""
        return self.outputs[0].matrices

    @property
    def obsm(self) -> tuple[ObsmInfo, ...]:
        """The dense arrays that every input has."""
        return self.outputs[0].obsm

    @property
    def sources(self) -> tuple[tuple[int, int, int], ...]:
        """Of each input block its input and its row bounds there."""
        cuts = [self.layout.block_bounds(i.n_obs) for i in self.inputs]
        return tuple((number, *bounds) for number, cut in enumerate(cuts) for bounds in pairwise(cut))

    @property
    def targets(self) -> tuple[tuple[int, int], ...]:
        """Of each output block its dataset and its number there."""
        return tuple((d, b) for d, job in enumerate(self.outputs) for b in range(len(job.blocks) - 1))

    @property
    def first_rows(self) -> tuple[int, ...]:
        """Number of each input's first row, if they were laid one after another."""
        return tuple(accumulate((i.n_obs for i in self.inputs), initial=0))[:-1]

    @property
    def permutation(self) -> Permutation:
        """Of input blocks to output blocks."""
        inputs = tuple(stop - start for _, start, stop in self.sources)
        outputs = tuple(stop - start for job in self.outputs for start, stop in pairwise(job.blocks))
        return Permutation(inputs, outputs, self.seed)

    @property
    def cells(self) -> Exchange:
        """Exchange of rows: a part is an input block, a target an output block."""
        return Exchange(self.scratch, "cells", len(self.sources), len(self.targets))

    @property
    def obs(self) -> Exchange:
        """Exchange of obs: a part is an input block, a target an output dataset."""
        return Exchange(self.scratch, "obs", len(self.sources), len(self.outputs))


# -- scattering ----------------------------------------------------------------------------------------------------


def scatter_block(job: ShuffleJob, block: int) -> PartsReceipt:
    """Read an input block and write its rows by where they go."""
    return with_receipt(job.scratch, f"scatter-{block:06d}", PartsReceipt, lambda: _scatter_block(job, block))


def _scatter_block(job: ShuffleJob, block: int) -> PartsReceipt:
    number, start, stop = job.sources[block]
    source = job.inputs[number]
    rows, bounds = job.permutation.rows(block)
    address = BlockAddress(source.location, source.id, job.first_rows[number], start, stop)
    # The content of a part, array by array: what each row has of it, and where each row's begins.
    arrays: list[tuple[AnyArray, Int64Array]] = [_fixed((rows + address.offset + start).astype(_ROW)[:, None])]
    n_values = 0
    for matrix, dtype in zip(job.matrices, job.dtypes, strict=True):
        lengths, indices, data = _sorted_rows(address, matrix.name, dtype, rows, job.outputs[0].n_vars)
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        arrays += [_fixed(lengths.astype(_LENGTH)[:, None]), (indices, ends), (data, ends)]
        n_values += len(data)
    arrays += [_fixed(read_obsm(address, a.name, a.dtype)[rows]) for a in job.obsm]
    files = _write_part(job.cells, block, bounds, arrays), _write_obs(job, block, address, rows, bounds)
    return PartsReceipt((block,), n_values, files)


def _fixed(rows: AnyArray) -> tuple[AnyArray, Int64Array]:
    """Rows of one width."""
    return np.ascontiguousarray(rows).ravel(), np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]


def _sorted_rows(
    address: BlockAddress, matrix: str, dtype: str, rows: Int64Array, n_vars: int
) -> tuple[Int64Array, AnyArray, AnyArray]:
    """Lengths, columns and values of a block's rows in the order given, read some rows at a time."""
    indptr = open_array(address.dataset, f"{matrix}/indptr").read(address.start, address.stop + 1).astype(np.int64)
    lengths = np.diff(indptr)
    begins = np.empty(len(rows), dtype=np.int64)
    begins[rows] = np.cumsum(lengths[rows]) - lengths[rows]
    nnz = int(indptr[-1] - indptr[0])
    indices, data = reused_empty(nnz, staged_index(n_vars)), reused_empty(nnz, dtype)
    arrays = [(open_array(address.dataset, f"{matrix}/{n}"), out) for n, out in (("indices", indices), ("data", data))]
    for first in range(0, len(rows), RUN_ROWS):
        run = slice(first, first + RUN_ROWS)
        low, high = int(indptr[first]), int(indptr[min(first + RUN_ROWS, len(rows))])
        for array, out in arrays:
            _move_rows(array.read(low, high), lengths[run], begins[run], out)
    return lengths[rows], indices, data


def _move_rows(values: AnyArray, lengths: Int64Array, begins: Int64Array, out: AnyArray) -> None:
    """Copy rows, one behind another in ``values``, to where each is said to begin; cast, where the dtype is another."""
    from daodask.kernels import scatter

    # As bytes: what comes out of a part need not be aligned.
    data, size = values.astype(out.dtype, copy=False).view(np.uint8), out.itemsize
    ends = np.cumsum(lengths) * size
    scatter(data, 0, ends - lengths * size, ends, begins * size, out.view(np.uint8), False)


def _write_part(
    exchange: Exchange, part: int, bounds: Int64Array, arrays: Sequence[tuple[AnyArray, Int64Array]]
) -> ScratchFile:
    """Write rows: the piece of a target is the number of its rows, and then of each array what these rows have."""
    pieces: list[memoryview] = []
    ends = np.zeros(len(bounds), dtype=np.int64)
    for target, (first, last) in enumerate(pairwise(bounds.tolist())):
        ends[target + 1] = ends[target]
        if first < last:
            piece = [np.array([last - first], dtype=_ROW), *(a[b[first] : b[last]] for a, b in arrays)]
            ends[target + 1] += sum(a.nbytes for a in piece)
            pieces += [a.data for a in piece]
    return exchange.write(part, ends, pieces)


def _write_obs(job: ShuffleJob, block: int, address: BlockAddress, rows: Int64Array, bounds: Int64Array) -> ScratchFile:
    names = [OBS_NAMES, *(c.name for c in job.schema)]
    obs = read_obs(address, job.schema, [i.id for i in job.inputs], names).iloc[rows]
    pieces: list[bytes] = []
    n_targets = np.cumsum([0, *(len(output.blocks) - 1 for output in job.outputs)])
    for first, last in pairwise(bounds[n_targets].tolist()):
        pieces.append(_encode_obs(job, obs.iloc[first:last]) if first < last else b"")
    ends = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    return job.obs.write(block, ends, [memoryview(piece) for piece in pieces])


def _encode_obs(job: ShuffleJob, obs: pd.DataFrame) -> bytes:
    """Obs with its row numbers, labels as codes: what codes mean is the same in all parts."""
    columns = {n: c.cat.codes if isinstance(c.dtype, pd.CategoricalDtype) else c for n, c in obs.items()}
    columns[_NUMBER] = pd.Series(obs.index)
    schema = _obs_schema(job)
    table = pa.table([pa.array(columns[f.name], type=f.type, from_pandas=True) for f in schema], schema=schema)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _obs_schema(job: ShuffleJob) -> pa.Schema:
    types = {c.name: pa.int32() if c.dtype == "category" else arrow_type(c) for c in job.schema}
    return pa.schema({_NUMBER: pa.int64(), OBS_NAMES: pa.string(), **types})


# -- collecting ----------------------------------------------------------------------------------------------------


def collect_block(job: ShuffleJob, target: int) -> BlockReceipt:
    """Read the rows of an output block from all parts, and stage them in their order; obsm goes into the dataset."""
    dataset, block = job.targets[target]
    output = job.outputs[dataset]
    name = f"collect-{block:06d}"
    return with_receipt(output.scratch, name, BlockReceipt, lambda: _collect_block(job, target, output, block))


def _collect_block(job: ShuffleJob, target: int, output: StudyJob, block: int) -> BlockReceipt:
    (pieces,) = job.cells.read(target, target + 1)
    cursor = _Cursor(pieces)
    order = job.permutation.order(target)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    arrivals = [_read_piece(job, cursor) for _ in iter(lambda: cursor.at_end, True)]
    origin = output.stage(block, "rows", "origin", [_arranged([a.rows for a in arrivals], places, 1).data])
    staged = {m.name: _collect_matrix(output, block, m, i, arrivals, places) for i, m in enumerate(job.matrices)}
    files = [
        write_obsm_rows(output, array, block, _arranged([a.obsm[i] for a in arrivals], places, array.width))
        for i, array in enumerate(job.obsm)
    ]
    return BlockReceipt(
        matrices={name: receipt for name, (receipt, _) in staged.items()},
        files=tuple(files),
        scratch=(origin, *(file for _, written in staged.values() for file in written)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Arrivals:
    """Rows that come from one part: their numbers, per matrix lengths, columns and values, and rows of each obsm."""

    rows: AnyArray
    matrices: list[tuple[Int64Array, AnyArray, AnyArray]]
    obsm: list[AnyArray]


class _Cursor:
    """Takes arrays off the front of bytes."""

    def __init__(self, data: AnyArray) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, dtype: np.dtype[Any], length: int) -> AnyArray:
        start, self._at = self._at, self._at + length * dtype.itemsize
        return self._data[start : self._at].view(dtype)


def _read_piece(job: ShuffleJob, cursor: _Cursor) -> _Arrivals:
    count = int(cursor.take(_ROW, 1)[0])
    rows = cursor.take(_ROW, count)
    index = np.dtype(staged_index(job.outputs[0].n_vars))
    matrices = []
    for dtype in job.dtypes:
        lengths = cursor.take(_LENGTH, count).astype(np.int64)
        nnz = int(lengths.sum())
        matrices.append((lengths, cursor.take(index, nnz), cursor.take(np.dtype(dtype), nnz)))
    return _Arrivals(rows, matrices, [cursor.take(np.dtype(a.dtype), count * a.width) for a in job.obsm])


def _arranged(pieces: Sequence[AnyArray], places: Int64Array, width: int) -> AnyArray:
    """Rows of one width, each at its place."""
    whole = np.concatenate(pieces)
    arranged = np.empty_like(whole).reshape(len(places), width)
    arranged[places] = whole.reshape(len(places), width)
    return arranged


def _collect_matrix(
    output: StudyJob, block: int, matrix: MatrixJob, number: int, arrivals: Sequence[_Arrivals], places: Int64Array
) -> tuple[MatrixReceipt, list[ScratchFile]]:
    lengths = np.concatenate([a.matrices[number][0] for a in arrivals])
    arranged = np.empty_like(lengths)
    arranged[places] = lengths
    indptr = np.concatenate([[0], np.cumsum(arranged)])
    begins = indptr[places]
    _, indices, data = arrivals[0].matrices[number]
    out = reused_empty(int(indptr[-1]), indices.dtype), reused_empty(int(indptr[-1]), data.dtype)
    first = 0
    for arrival in arrivals:
        of_rows, *arrays = arrival.matrices[number]
        for array, values in zip(out, arrays, strict=True):
            _move_rows(values, of_rows, begins[first : first + len(of_rows)], array)
        first += len(of_rows)
    staged = StagedMatrix(with_depth=matrix.name == "X")
    for start in range(0, len(lengths), RUN_ROWS):
        staged.add(_rows_of(*out, indptr[start : start + RUN_ROWS + 1], output.n_vars))
    return staged.receipt(), [output.stage(block, matrix.name, what, data) for what, data in staged.arrays()]


def _rows_of(indices: AnyArray, data: AnyArray, indptr: Int64Array, n_vars: int) -> MappedBlock:
    run = slice(int(indptr[0]), int(indptr[-1]))
    values = data[run]
    with np.errstate(invalid="ignore"):
        total = float(values.sum(dtype=np.float64))
    largest = float(np.abs(values).max(initial=0))
    return MappedBlock(values, indices[run], indptr - indptr[0], n_vars, total, total, largest)


# -- frames --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ShuffledFrames:
    """What the small files of a shuffled dataset are made from; ``measured`` has a row of genes per input."""

    id: str
    var: pd.DataFrame
    measured: BoolArray
    uns: Mapping[str, Any]
    matrices: tuple[CSRLayout, ...]


def write_shuffled_frames(job: ShuffleJob, number: int, frames: ShuffledFrames) -> FramesReceipt:
    """Write obs, var, uns, indptr and all metadata of an output dataset, and which genes each input measured."""
    name = f"frames-{number:06d}"
    return with_receipt(job.scratch, name, FramesReceipt, lambda: _write_frames(job, number, frames))


def _write_frames(job: ShuffleJob, number: int, frames: ShuffledFrames) -> FramesReceipt:
    output = job.outputs[number]
    obs = _read_obs(job, number, frames.id)
    files = encode_group(
        obs=obs,
        var=frames.var.assign(**{VAR_MEASURED: np.asarray(frames.measured.any(axis=0))}),
        uns=frames.uns,
        matrices=frames.matrices,
        indptr={m.name: staged_indptr(output, m.name) for m in frames.matrices},
        obsm=tuple(ObsmLayout(o.name, (output.n_obs, o.width), o.dtype, obsm_chunk_rows(output)) for o in job.obsm),
        codec=output.codec,
    )
    files["obs.parquet"] = encode_obs_parquet(obs, output.layout.block_rows)
    if job.origins:
        files[MEASURED_BY_SOURCE] = _encode_measured(job, frames)
    written = tuple(write_file(output.dataset, path, data) for path, data in files.items())
    return FramesReceipt(written, summarise(obs))


def _encode_measured(job: ShuffleJob, frames: ShuffledFrames) -> bytes:
    """Which genes each source measured: a column per source, a row per gene."""
    table = pa.table({i.id: mask for i, mask in zip(job.inputs, frames.measured, strict=True)})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _read_obs(job: ShuffleJob, number: int, dataset_id: str) -> pd.DataFrame:
    """Obs of an output dataset, its rows in their order, as it is stored."""
    blocks = range(len(job.outputs[number].blocks) - 1)
    staged = [np.frombuffer(job.outputs[number].staged(b, "rows", "origin").read(), dtype=_ROW) for b in blocks]
    origin = np.concatenate([np.zeros(0, dtype=_ROW), *staged])
    parts = pa.concat_tables(_decode_obs(job, number))
    arrived = parts.column(_NUMBER).to_numpy()
    # Both hold each row number once: the n-th smallest of one is that of the other.
    order = np.empty(len(origin), dtype=np.int64)
    order[np.argsort(origin)] = np.argsort(arrived)
    table = parts.take(pa.array(order))
    columns = {c.name: _restored(table.column(c.name), c) for c in job.schema}
    names = pd.Index(table.column(OBS_NAMES).to_pylist(), dtype=object)
    obs = pd.DataFrame(columns, columns=[c.name for c in job.schema]).set_axis(names, axis=0)
    return streamline_obs(obs.assign(**_origins(job, origin)), (), (), ("*",), dataset_id)


def _decode_obs(job: ShuffleJob, number: int) -> list[pa.Table]:
    """The pieces of obs of an output dataset, and before them a table without a row."""
    tables = [_obs_schema(job).empty_table()]
    for data in job.obs.read(number, number + 1):
        source = pa.BufferReader(pa.py_buffer(data))
        while source.tell() < source.size():
            with pa.ipc.open_stream(source) as reader:
                tables.append(reader.read_all())
    return tables


def _restored(values: pa.ChunkedArray, column: ObsColumn) -> pd.Series[Any]:
    if column.dtype != "category":
        return conform(values, column)
    codes = values.to_numpy().astype(np.int64)
    return pd.Series(pd.Categorical.from_codes(codes, dtype=category_dtype(column)))


def _origins(job: ShuffleJob, rows: AnyArray) -> dict[str, Any]:
    """Where each cell was, of its number among all inputs."""
    source = np.searchsorted(np.asarray(job.first_rows), rows, side="right") - 1
    # Of several inputs that begin at one row all but the last are empty.
    within = rows - np.asarray(job.first_rows, dtype=np.int64)[source]
    if not job.origins:
        return {SOURCE_ROW: within}
    ids = pd.Index([i.id for i in job.inputs], dtype=object)
    return {SOURCE_DATASET: pd.Categorical.from_codes(source, categories=ids), SOURCE_ROW: within}


# -- planning ------------------------------------------------------------------------------------------------------


def plan_shuffle(
    inputs: Sequence[tuple[StoreLocation, DatasetInfo]],
    outputs: Sequence[StoreLocation],
    scratch: StoreLocation,
    *,
    layout: Layout,
    n_vars: int,
    seed: int,
    origins: bool,
) -> ShuffleJob:
    """What the tasks of a shuffle need to know.

    Parameters
    ----------
    inputs
        Datasets on the same genes, with the directory of each.
    outputs
        Directories of the datasets to write, of which all get as many cells, to within one.
    scratch
        Where to put what is on its way.
    layout
        Of the outputs.
    n_vars
        Genes.
    seed
        Of the permutation.
    origins
        Whether obs tells the dataset, too, that a cell is from.

    Raises
    ------
    StreamlineError
        The inputs don't have the same matrices or dense arrays, or already say where their cells are from.
    SelectionError
        Obs columns of the inputs don't go together.
    SpecError
        There are more cells than can be shuffled together.
    """
    infos = [info for _, info in inputs]
    _check_alike(infos)
    total, number = sum(i.n_obs for i in infos), len(outputs)
    sizes = [total * (d + 1) // number - total * d // number for d in range(number)]
    matrices, dtypes = zip(*(_merged_matrix(infos, m.name) for m in infos[0].matrices), strict=True)
    jobs = tuple(
        StudyJob(
            scratch=scratch / f"dataset-{d:04d}",
            dataset=location,
            matrices=matrices,
            obsm=tuple(_merged_obsm(infos, a) for a in infos[0].obsm),
            blocks=layout.block_bounds(size),
            n_vars=n_vars,
            layout=layout,
            fingerprint=Fingerprint(0, "", ""),
        )
        for d, (location, size) in enumerate(zip(outputs, sizes, strict=True))
    )
    sources = tuple(Input(location, info.id, info.n_obs) for location, info in inputs)
    return ShuffleJob(scratch, sources, jobs, dtypes, merge_schema(infos), origins, seed)


def _check_alike(infos: Sequence[DatasetInfo]) -> None:
    first = infos[0]
    for info in infos:
        for what, wanted, found in (
            ("layers", {m.name for m in first.matrices}, {m.name for m in info.matrices}),
            ("dense arrays", {(a.name, a.width) for a in first.obsm}, {(a.name, a.width) for a in info.obsm}),
            ("values", {first.matrix["X"].kind}, {info.matrix["X"].kind}),
        ):
            if wanted != found:
                raise StreamlineError(
                    f"expected studies that are shuffled together to have the same {what}, got {sorted(wanted)} in "
                    f"{first.id!r} and {sorted(found)} in {info.id!r}; leave out what not all have, or say "
                    f"shuffle: within"
                )
        known = {c.name for c in info.columns} & {SOURCE_DATASET, SOURCE_ROW}
        if known:
            raise StreamlineError(
                f"expected no obs column {min(known)!r} in {info.id!r}, as shuffling makes one; give it another "
                f"name in obs:, or do not keep it"
            )


def _merged_matrix(infos: Sequence[DatasetInfo], name: str) -> tuple[MatrixJob, str]:
    """A matrix of all inputs, and a dtype that holds the values of each."""
    matrices = [info.matrix[name] for info in infos]
    dtype = np.result_type(*(np.dtype(m.dtype) for m in matrices))
    kinds = {m.kind for m in matrices}
    kind = kinds.pop() if len(kinds) == 1 else "other"
    return MatrixJob(name, name, kind, floats=any(np.dtype(m.dtype).kind == "f" for m in matrices)), dtype.name


def _merged_obsm(infos: Sequence[DatasetInfo], array: ObsmInfo) -> ObsmInfo:
    dtypes = [np.dtype(a.dtype) for info in infos for a in info.obsm if a.name == array.name]
    return replace(array, dtype=np.result_type(*dtypes).name)
