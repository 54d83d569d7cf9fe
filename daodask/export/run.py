"""Taking a selection out of a store: into one h5ad, one AnnData zarr, or another store."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from daodask._format import human_bytes, human_count, plural, public_url
from daodask.build.known import members_of
from daodask.build.report import BuildReport
from daodask.build.shuffling import ShuffleSpec
from daodask.drive import Progress, drive
from daodask.errors import SpecError, UnknownNameError, suggest
from daodask.export.content import Content, content_of
from daodask.export.datasets import spec_of
from daodask.export.h5ad import write_h5ad
from daodask.export.zarr import Written, export_zarr
from daodask.format.codecs import CODECS
from daodask.format.spec import DEFAULT_BLOCK_ROWS, SNAPSHOTS, Layout
from daodask.progress import ProgressLike, open_progress
from daodask.runners import open_runner
from daodask.storage import StoreLocation
from daodask.store import Store

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["FORMATS", "ExportReport", "export_store"]

#: Kinds of targets.
FORMATS: Final = ("h5ad", "zarr", "store")
#: How cells of another store are shuffled.
SHUFFLES: Final = ("none", "within", "global")
#: Raw bytes of a shard of an AnnData zarr, which bounds the memory of a task.
_SHARD_BYTES: Final = 32 * 2**20
_ROOT: Final = "zarr.json"


@dataclass(frozen=True, slots=True, repr=False)
class ExportReport:
    """What an export wrote.

    Parameters
    ----------
    target
        URL of the file or store.
    format
        ``"h5ad"``, ``"zarr"`` or ``"store"``.
    n_obs, n_vars, nnz
        Cells, genes and non-zeros of X.
    nbytes
        Bytes written.
    seconds
        Wall time.
    build
        Of a store: what became of each dataset.
    """

    target: str
    format: str
    n_obs: int
    n_vars: int
    nnz: int
    nbytes: int
    seconds: float
    build: BuildReport | None = None

    @property
    def ok(self) -> bool:
        """Whether all that was selected is there."""
        return self.build is None or self.build.ok

    def headline(self) -> str:
        """One line."""
        if self.build is not None:
            return self.build.headline()
        size = f"{plural(self.n_obs, 'cell')} x {plural(self.n_vars, 'gene')}, {human_count(self.nnz)} non-zeros"
        return f"{public_url(self.target)}: {size}, {human_bytes(self.nbytes)}, in {self.seconds:.1f} s"

    def __repr__(self) -> str:
        return repr(self.build) if self.build is not None else self.headline()


def export_store(
    store: Store,
    target: str | os.PathLike[str] | StoreLocation,
    *,
    format: str | None = None,  # noqa: A002  as the command line has it
    layers: Sequence[str] | None = None,
    dtype: str | None = None,
    codec: str | None = None,
    block_rows: int = DEFAULT_BLOCK_ROWS,
    by_gene: Sequence[str] | None = None,
    shuffle: str = "none",
    seed: int = 0,
    overwrite: bool = False,
    client: Client | None = None,
    threads: int = 1,
    options: Mapping[str, Any] | None = None,
    progress: ProgressLike = "auto",
) -> ExportReport:
    """Write the cells and genes that a store shows to one h5ad, one AnnData zarr or another store (computes).

    A file holds what :meth:`Store.to_anndata` returns, but that text of which some is missing is a categorical, as no
    AnnData file has missing text. Another store gets a dataset for each dataset that has a selected cell, and a feature
    space of another name where genes are selected.

    Parameters
    ----------
    store
        What to write: a store, or a subset of one.
    target
        Path or URL. An h5ad file is written beside it, or on a temporary file of this machine where it is a URL, and
        appears when it is whole; so does a zarr on a local disk. In an object store, the metadata that makes it a group
        comes last.
    format
        ``"h5ad"``, ``"zarr"`` or ``"store"``; by default told by the suffix of the target, without one a store.
    layers
        Names of the layers to write; by default all: of a file, those that every selected dataset has.
    dtype
        Of X and layers. Files: by default as the store serves them (float32, or float64 where that would round),
        ``"stored"`` (small integers), ``"float32"`` or ``"float64"``. A store: as small as is exact, or ``"float32"``.
    codec
        Of the arrays. h5ad: ``"none"`` (default) or ``"gzip"``; others ``"lz4"`` (default), ``"lz4hc"``, ``"zstd"``,
        ``"zstd-delta"`` or ``"none"``, as of a build.
    block_rows
        Cells that are read at once, and those of a block of another store.
    by_gene
        Of another store alone: patterns of the matrices (``"X"``, ``"layers/*"``) to store by gene, too; by default
        those of which some selected dataset has a copy by gene.
    shuffle, seed
        Of another store alone: ``"within"`` each dataset, or ``"global"``, over all of them, as a build does it.
    overwrite
        Put a file in the place of what is there; in a store, datasets in the place of those of the same id that are
        others. A store's other datasets stay in any case.
    client
        A Dask client; its workers read, and write what isn't one file.
    threads
        Threads to work with where there is no client.
    options
        fsspec options for the target. Credentials are refused, as these travel to workers: leave them to the
        environment.
    progress
        As :func:`build_store` takes it.

    Returns
    -------
    ExportReport
        Of a store, with a dataset that was refused or failed in it; files are whole, or there is an error.

    Raises
    ------
    SpecError
        There is something at the target, or an argument can't be meant.
    UnknownNameError
        There is no such layer.

    Notes
    -----
    Memory, beside obs as a whole (as :meth:`Store.to_anndata` has it) and 8 bytes a cell and matrix: of an h5ad, as
    many blocks of all matrices as threads and one more; of a zarr, for each thread one shard of 32 MiB of values with
    its column numbers, compressed and not; of a store, that of a build, and a row number a cell where cells are
    selected.
    """
    location = StoreLocation.parse(target, options)
    kind = _kind(location, format)
    if block_rows < 1:
        raise SpecError(f"block_rows: expected at least 1, got {block_rows}")
    if by_gene is not None and kind != "store":
        raise SpecError(f"by_gene: expected none for {kind}, got {by_gene!r}; export to a store")
    shuffled = _shuffle(kind, shuffle, seed)
    job = _Job(store, location, layers, dtype, codec, block_rows, by_gene, shuffled, overwrite, client, threads)
    began = time.monotonic()
    with open_progress(progress) as shown:
        if kind == "store":
            build = _to_store(job, shown)
            return _report(job, kind, *_stored(location, build), began, build)
        nnz, nbytes = _to_h5ad(job, shown) if kind == "h5ad" else _to_zarr(job, shown)
    return _report(job, kind, nnz, nbytes, began)


@dataclass(frozen=True, slots=True)
class _Job:
    """What was asked for."""

    store: Store
    target: StoreLocation
    layers: Sequence[str] | None
    dtype: str | None
    codec: str | None
    block_rows: int
    by_gene: Sequence[str] | None
    shuffle: ShuffleSpec
    overwrite: bool
    client: Client | None
    threads: int


def _shuffle(kind: str, shuffle: str, seed: int) -> ShuffleSpec:
    if shuffle not in SHUFFLES:
        raise SpecError(f"shuffle: expected one of {', '.join(SHUFFLES)}, got {shuffle!r}")
    if shuffle != "none" and kind != "store":
        raise SpecError(f"shuffle: expected none for {kind}, got {shuffle!r}; export to a store, and that to a file")
    if seed < 0:
        raise SpecError(f"seed: expected at least 0, got {seed}")
    return ShuffleSpec(shuffle, seed)


def _kind(target: StoreLocation, given: str | None) -> str:
    if given is not None:
        if given not in FORMATS:
            raise SpecError(f"format: expected one of {', '.join(FORMATS)}, got {given!r}; {suggest(given, FORMATS)}")
        return given
    return next((kind for kind in ("h5ad", "zarr") if target.name.lower().endswith(f".{kind}")), "store")


def _report(
    job: _Job, kind: str, nnz: int, nbytes: int, began: float, build: BuildReport | None = None
) -> ExportReport:
    seconds = time.monotonic() - began
    return ExportReport(job.target.url, kind, *job.store.shape, nnz, nbytes, seconds, build)


def _check_free(job: _Job) -> None:
    if job.target.exists() and not job.overwrite:
        raise SpecError(
            f"expected nothing at {job.target}, found something; give another target, or overwrite it (--overwrite, "
            f"overwrite=True)"
        )
    if job.target.list() and SNAPSHOTS in job.target.list():
        raise SpecError(f"expected no store at {job.target}, which a file would take the place of; give another target")


def _layout(job: _Job, shard_bytes: int) -> Layout:
    codec = job.codec or Layout().codec
    if codec not in CODECS:
        raise SpecError(f"codec: expected one of {', '.join(CODECS)}, got {codec!r}; {suggest(codec, CODECS)}")
    return Layout(block_rows=job.block_rows, codec=codec, shard_bytes=shard_bytes)


# -- h5ad ----------------------------------------------------------------------------------------------------------


def _to_h5ad(job: _Job, progress: Progress | None) -> tuple[int, int]:
    _check_free(job)
    content = content_of(job.store, job.layers, job.dtype)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(job.target.name, "copy", done, total)

    with _whole_file(job.target) as path:
        nnz = write_h5ad(
            path,
            job.store,
            content,
            block_rows=job.block_rows,
            codec=job.codec or "none",
            client=job.client,
            threads=job.threads,
            progress=tell,
        )
        nbytes = os.path.getsize(path)
    return nnz, nbytes


@contextlib.contextmanager
def _whole_file(target: StoreLocation) -> Iterator[str]:
    """A path to write to: what is there at the end becomes the target, unless there was an error."""
    if target.is_local:
        os.makedirs(os.path.dirname(target.path), exist_ok=True)
        path = _beside(target)
        try:
            yield path
            _flush(path)
            os.replace(path, target.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return
    with tempfile.TemporaryDirectory(prefix="daodask-export-") as directory:
        path = os.path.join(directory, "export")
        yield path
        target.fs.put_file(path, target.path)


def _beside(target: StoreLocation) -> str:
    directory, name = os.path.split(target.path)
    return os.path.join(directory, f".{name}.{secrets.token_hex(4)}.tmp")


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- zarr ----------------------------------------------------------------------------------------------------------


def _to_zarr(job: _Job, progress: Progress | None) -> tuple[int, int]:
    _check_free(job)
    layout = _layout(job, _SHARD_BYTES)
    content = content_of(job.store, job.layers, job.dtype)
    if job.target.is_local:
        path = _beside(job.target)
        try:
            written = _write_zarr(job, StoreLocation(path, job.target.options), content, layout, progress)
            (StoreLocation(path) / _ROOT).write(written.root)
            _put_in_place(path, job.target.path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return written.nnz, written.nbytes
    job.target.remove()
    try:
        written = _write_zarr(job, job.target, content, layout, progress)
    except BaseException:
        # Without root metadata it is no group; neither should it stay.
        job.target.remove()
        raise
    (job.target / _ROOT).write(written.root)
    return written.nnz, written.nbytes


def _write_zarr(
    job: _Job, target: StoreLocation, content: Content, layout: Layout, progress: Progress | None
) -> Written:
    with open_runner(job.client, job.threads) as runner:
        genes = job.store.selection.genes
        shared = genes if genes is None else runner.share(genes)
        name = job.target.name
        result = drive({name: export_zarr(target, job.store, content, layout, shared)}, runner, progress)[name]
    if isinstance(result, Exception):
        raise result
    return result


def _put_in_place(path: str, target: str) -> None:
    """Rename a directory; one that is in its place goes first, and comes back where that fails."""
    if not os.path.lexists(target):
        os.rename(path, target)
        return
    old = f"{path}.old"
    os.rename(target, old)
    try:
        os.rename(path, target)
    except OSError:
        os.rename(old, target)
        raise
    if os.path.isdir(old):
        shutil.rmtree(old)
    else:
        os.unlink(old)


# -- store ---------------------------------------------------------------------------------------------------------


def _by_gene(job: _Job) -> tuple[str, ...]:
    """Patterns of the matrices to store by gene, too."""
    infos = [job.store.snapshot.dataset[name] for name in job.store.selection.datasets]
    matrices = [m for info in infos for m in info.matrices]
    if job.by_gene is None:
        return tuple(sorted({m.name for m in matrices if m.by_gene}))
    names = sorted({m.name for m in matrices})
    for pattern in job.by_gene:
        if not fnmatch.filter(names, pattern):
            raise UnknownNameError(f"no selected dataset has a matrix {pattern!r}; {suggest(pattern, names)}")
    return tuple(job.by_gene)


def _to_store(job: _Job, progress: Progress | None) -> BuildReport:
    from daodask.build.run import build_store

    if job.target.url == job.store.location.url:
        raise SpecError(f"expected another place than the store's own, {job.target}; give another target")
    if job.dtype not in (None, "float32"):
        raise SpecError(f"dtype: expected float32 or none at all for a store, got {job.dtype!r}")
    layout = replace(_layout(job, Layout().shard_bytes), by_gene=_by_gene(job))
    return build_store(
        spec_of(job.store, layout, job.layers, job.dtype, job.shuffle),
        job.target,
        client=job.client,
        threads=job.threads,
        replace=job.overwrite,
        progress=progress,
    )


def _stored(target: StoreLocation, build: BuildReport) -> tuple[int, int]:
    """Non-zeros of X and bytes of the datasets that these studies are in."""
    from daodask.snapshots import latest_snapshot

    snapshot = latest_snapshot(target)
    if snapshot is None:
        return 0, 0
    ids = {study.id for study in build.studies if study.ok}
    datasets = [d for d in snapshot.datasets if d.id in ids or not ids.isdisjoint(members_of(d))]
    return sum(d.matrix["X"].nnz for d in datasets), sum(d.nbytes for d in datasets)
