"""How fast a store's batches come and how well they are mixed: measured on the store itself, beside decoding alone."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daodask._cluster import default_workers
from daodask._format import human_bytes, human_count, plural, public_url
from daodask.arrays import Array, Encoded, open_array
from daodask.batches.loader import BatchLoader
from daodask.batches.plan import LoaderPlan
from daodask.batches.schedule import Cells, Epoch, Shuffled
from daodask.drive import Progress
from daodask.errors import SpecError
from daodask.gather import decode_all
from daodask.storage import StoreLocation
from daodask.store import Store

__all__ = ["BenchReport", "DecodeBound", "Pass", "Spread", "Waits", "bench_store", "run_pass", "wait_times"]

#: What a small model trains on, and how long it computes on that.
_BATCH_SIZE: Final = 512
_CONSUMER_SECONDS: Final = 0.002
_EPOCHS: Final = 5
_SECONDS: Final = 30.0
#: Passes that are not repeated: one to warm up, one for a consumer that computes.
_OTHER_PASSES: Final = 2
#: Encoded chunks that are held, to be decoded again and again, and of how many datasets.
_SAMPLE_BYTES: Final = 256 * 2**20
_SAMPLE_DATASETS: Final = 16
#: Chunks that a thread decodes at a time: so many that what Python takes for them doesn't count. With 8 the bound, and
#: not the loader, was a sixth slower.
_PIECE_CHUNKS: Final = 64


# -- what comes out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """Measurements of one figure: their median, the smallest, the largest, and how many there were."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one measurement."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, human: Callable[[float], str]) -> str:
        """The median, and the range in brackets where there is one."""
        middle, low, high = map(human, (self.median, self.low, self.high))
        return middle if self.repeats == 1 else f"{middle} ({low} to {high})"


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that a consumer waits, for each batch after the first window; after the first batch where that is all."""

    longest: float
    median: float
    batches: int

    @classmethod
    def of(cls, waits: Sequence[float], first_window: int) -> Waits | None:
        """Of the waits for all batches of an epoch, whose first window has so many; nothing where there is but one."""
        later = waits[first_window:] or waits[1:]
        return cls(max(later), statistics.median(later), len(later)) if later else None


@dataclass(frozen=True, slots=True, repr=False)
class BenchReport:
    """How fast a store's batches come, and how well they are mixed.

    Parameters
    ----------
    url, features
        The store and its feature space.
    n_obs, n_vars
        Cells and genes that were iterated over.
    batch_size, schedule, dense, obs, threads
        What the loader was asked for; ``obs`` are the columns that batches brought.
    plan
        What an epoch is, and its mixing by dataset and by those of the columns that are categorical.
    pass_cells
        Cells of the longest pass: an epoch, or its first windows where a whole one would have taken too long.
    cells
        Cells a second.
    read
        Bytes a second, compressed as they are in the store.
    decode
        Cells a second of :class:`DecodeBound`; nothing where the store has no value to decode.
    first_batch
        Seconds from making a loader to its first batch, while nothing of the store but its snapshot was read.
    waits
        For a batch, of a consumer that computes 2 ms on each; nothing where an epoch is one batch.
    seconds
        All that this took.
    """

    url: str
    features: str
    n_obs: int
    n_vars: int
    batch_size: int
    schedule: str
    dense: bool
    obs: tuple[str, ...]
    threads: int
    plan: LoaderPlan
    pass_cells: int
    cells: Spread
    read: Spread
    decode: Spread | None
    first_batch: Spread
    waits: Waits | None
    seconds: float

    @property
    def share(self) -> float | None:
        """How much of the speed of decoding alone the batches reach."""
        return self.cells.median / self.decode.median if self.decode else None

    def to_json(self) -> str:
        """The report as JSON text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mixing = [{**dataclasses.asdict(m), "share": m.share} for m in self.plan.mixing]
        plan = {f.name: getattr(self.plan, f.name) for f in dataclasses.fields(self.plan)}
        plan |= {"schedule": self.schedule, "mixing": mixing}
        return json.dumps({**values, "share": self.share, "plan": plan}, default=dataclasses.asdict, indent=2)

    def __repr__(self) -> str:
        cells, genes = plural(self.n_obs, "cell"), plural(self.n_vars, "gene")
        return "\n".join(
            [f"{self.url}: {self.features}, {cells} × {genes}", *(f"  {n:<9} {text}" for n, text in self._lines())]
        )

    def _lines(self) -> Iterator[tuple[str, str]]:
        kind, columns = "dense" if self.dense else "CSR", ", ".join(self.obs) or "no obs"
        window, budget = human_bytes(self.plan.window_bytes), human_bytes(self.plan.memory)
        yield "batches", f"{human_count(self.batch_size)} cells, {kind}, with {columns}; {self.schedule}"
        yield "memory", f"{window} a window, {self.plan.read_ahead} read ahead, budget {budget}"
        times = f"{self.cells.repeats} times " if self.cells.repeats > 1 else ""
        yield "measured", f"{times}{plural(self.pass_cells, 'cell', self.n_obs)}, on {plural(self.threads, 'thread')}"
        yield "speed", f"{self.cells.text(_count)} cells/s"
        yield "read", f"{self.read.text(_bytes)} a second, compressed"
        if self.decode is not None:
            yield "decode", f"{self.decode.text(_count)} cells/s when nothing else is done; {self.share:.0%} reached"
        yield "first", f"batch after {self.first_batch.text(_time)}"
        if self.waits is not None:
            waits = f"{_time(self.waits.longest)} at most, {_time(self.waits.median)} in the middle"
            yield "waits", f"{waits}, where each batch is computed on for {_time(_CONSUMER_SECONDS)}"
        for m in self.plan.mixing:
            yield "mixing", f"{m.column}: {m.entropy:.2f} of {m.independent:.2f} bits a batch ({m.share:.1%})"


def _count(value: float) -> str:
    return human_count(round(value))


def _bytes(value: float) -> str:
    return human_bytes(round(value))


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


# -- the bound ---------------------------------------------------------------------------------------------------------


class DecodeBound:
    """Decompression and checksums of X alone: what no loader passes on as many threads.

    Parameters
    ----------
    store
        Chunks of its selected datasets are read here, and held (computes).
    most_bytes
        How much is held: every chunk where that is enough, else a random choice.
    seed
        Of that choice.

    Attributes
    ----------
    cells
        How many cells the chunks are, by their datasets' mean number of non-zeros; 0 where there is none to decode.
    """

    def __init__(self, store: Store, *, most_bytes: int = _SAMPLE_BYTES, seed: int = 0) -> None:
        self._pieces: list[tuple[Array, Encoded]] = []
        self.cells = 0.0
        generator = np.random.default_rng(seed)
        infos = [info for i in store.selection.datasets if (info := store.snapshot.dataset[i]).matrix["X"].nnz]
        nnz = np.array([info.matrix["X"].nnz for info in infos], dtype=float)
        # A few datasets, the rather the larger they are, each with its share of the bytes.
        n_chosen = min(len(infos), _SAMPLE_DATASETS)
        chosen = generator.choice(len(infos), n_chosen, replace=False, p=nnz / nnz.sum()) if infos else ()
        for i in sorted(chosen):
            n = self._hold(store.location / infos[i].path, most_bytes * nnz[i] / nnz[chosen].sum(), generator)
            self.cells += infos[i].n_obs * n / float(nnz[i])

    def _hold(self, dataset: StoreLocation, most_bytes: float, generator: np.random.Generator) -> int:
        """Read chunks of a dataset, and return how many of its elements are in them."""
        arrays = [open_array(dataset, f"X/{name}") for name in ("indices", "data")]
        spec = arrays[0].spec
        if spec is None or arrays[1].spec is None:  # zarr-python alone knows what its chunks are
            return 0
        n_chunks, n_elements = -(-spec.length // spec.chunk_length), 0
        for first in generator.permutation(np.arange(0, n_chunks, _PIECE_CHUNKS)).tolist():
            if most_bytes <= 0:
                break
            last = min(first + _PIECE_CHUNKS, n_chunks)
            pieces = [(array, array.fetch(range(first, last))) for array in arrays]
            most_bytes -= sum(len(encoded.data) for _, encoded in pieces)
            n_elements += min(last * spec.chunk_length, spec.length) - first * spec.chunk_length
            self._pieces += pieces
        return n_elements

    def decode(self, threads: int = 0) -> float:
        """Decode each chunk once, by default on as many threads as there are processors; returns :attr:`cells`."""
        with ThreadPoolExecutor(threads or default_workers()) as executor:
            list(executor.map(lambda piece: decode_all(*piece), self._pieces))
        return self.cells


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Meter:
    """Bytes read so far."""

    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class _Metered(StoreLocation):
    """A location that counts what is read from below it; a new one finds nothing of it in any cache."""

    meter: _Meter = field(default_factory=_Meter)

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, relative: str) -> StoreLocation:
        return _Metered(f"{self.url}/{relative}", self.options, self.meter)

    @property
    def is_local(self) -> bool:
        """Said not to be, so that every byte comes through here."""
        return False

    def read(self) -> bytes:
        data = StoreLocation.read(self)
        self.meter.nbytes += len(data)
        return data

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> npt.NDArray[np.uint8]:
        data = StoreLocation.read_ranges(self, ranges)
        self.meter.nbytes += len(data)
        return data


def _metered(store: Store) -> tuple[Store, _Meter]:
    location = _Metered(store.location.url, store.location.options)
    return replace(store, location=location), location.meter


@dataclass(frozen=True, slots=True)
class Pass:
    """An epoch, or its first windows: its cells, how long it took, and what it read where that is metered."""

    cells: int
    seconds: float
    nbytes: int = 0

    @property
    def rate(self) -> float:
        """Cells a second."""
        return self.cells / self.seconds


def run_pass(loader: BatchLoader, *, seconds: float = math.inf, meter: _Meter | None = None) -> Pass:
    """Iterate over an epoch (computes).

    Parameters
    ----------
    loader
        With a schedule that needs no labels.
    seconds
        Once they are over, the pass ends with the window that is being handed out: as a window's batches come all at
        once, anything between would say too much or too little.
    meter
        Of the loader's store.
    """
    meter = meter or _Meter()
    per_window = _first_window(loader)
    gc.collect()
    cells, before, began = 0, meter.nbytes, time.perf_counter()
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        for number, batch in enumerate(batches, start=1):
            cells += len(batch)
            if number % per_window == 0 and time.perf_counter() - began > seconds:
                break
        # What is being read ahead by now, and awaited when the iterator is closed, does not count.
        return Pass(cells, time.perf_counter() - began, meter.nbytes - before)


def _first_window(loader: BatchLoader) -> int:
    """Batches of the first window, which is as large as any."""
    cells, epoch = Cells(loader.store.n_obs), Epoch(loader.seed, loader.epoch)
    return next(iter(loader.schedule.windows(cells, loader.batch_size, epoch))).n_batches


def wait_times(batches: Iterable[Any], *, seconds: float = math.inf) -> list[float]:
    """Seconds that each batch was waited for by a consumer that computes 2 ms on each (computes).

    Parameters
    ----------
    batches
        A loader, or part of an epoch.
    seconds
        After which no further batch is asked for.
    """
    values, waits = np.ones(1 << 16, dtype=np.float32), []
    end = time.perf_counter() + seconds
    began = time.perf_counter()
    for _ in batches:
        now = time.perf_counter()
        waits.append(now - began)
        if now > end:
            break
        # Outside of the interpreter, as a framework computes.
        while time.perf_counter() < now + _CONSUMER_SECONDS:
            np.sqrt(values, out=values)
        began = time.perf_counter()
    return waits


def bench_store(
    store: Store,
    *,
    batch_size: int = _BATCH_SIZE,
    schedule: Shuffled | None = None,
    dense_genes: int = 0,
    obs: Sequence[str] = (),
    memory: int | str = "1GiB",
    threads: int = 0,
    epochs: int = _EPOCHS,
    seconds: float = _SECONDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure how fast a store's batches come, and how well they are mixed (computes).

    Passes over the batches and over :class:`DecodeBound` take turns, after one that is not counted: it compiles the
    kernels, and leaves of the files what the operating system keeps in memory.

    Parameters
    ----------
    store
        The cells to iterate over.
    batch_size, schedule, memory, threads, seed
        As :class:`~daodask.BatchLoader` takes them.
    dense_genes
        Hand out dense batches of so many genes, drawn at random; 0: CSR batches of the store's genes.
    obs
        Columns that batches bring; by default ``cell_type``, or the first categorical column that there is.
    epochs
        Passes at most.
    seconds
        To stay within, but for the ends of windows.
    progress
        Called with ``("bench", "pass", done, total)``.

    Raises
    ------
    SpecError
        There are no cells, fewer genes than were asked for, or a window does not fit the memory.
    UnknownNameError
        There is no such obs column.
    """
    began = time.perf_counter()
    schedule = schedule or Shuffled()
    obs = tuple(obs) or _label_column(store)
    cells = _chosen_genes(store, dense_genes, seed)
    if not cells.n_obs:
        raise SpecError(f"{public_url(store.location.url)}: expected cells to iterate over, found none")

    def make() -> tuple[BatchLoader, _Meter]:
        metered, meter = _metered(cells)
        options: dict[str, Any] = {"obs": obs, "dense": dense_genes > 0, "memory": memory, "threads": threads}
        return BatchLoader(metered, batch_size, schedule=schedule, seed=seed, **options), meter

    loader, meter = make()
    labels = [column for column in obs if str(store.obs_dtypes[column]) == "category" and column != "dataset"]
    plan = loader.plan(["dataset", *labels])
    a_pass = seconds / (epochs + _OTHER_PASSES)
    run_pass(loader, seconds=a_pass)
    bound = DecodeBound(cells, seed=seed)
    passes: list[Pass] = []
    firsts: list[float] = []
    decoded: list[float] = []
    while not passes or (len(passes) < epochs and time.perf_counter() - began < seconds - a_pass):
        firsts.append(_first_batch(make))
        passes.append(run_pass(loader, seconds=a_pass, meter=meter))
        decoded.append(_decode_rate(bound, threads))
        if progress is not None:
            progress("bench", "pass", len(passes), epochs)
    first_window = _first_window(loader)
    gc.collect()
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        waits = wait_times(batches, seconds=a_pass)
    return BenchReport(
        url=public_url(store.location.url),
        features=store.feature_space.name,
        n_obs=cells.n_obs,
        n_vars=cells.n_vars,
        batch_size=batch_size,
        schedule=repr(schedule),
        dense=dense_genes > 0,
        obs=obs,
        threads=threads or default_workers(),
        plan=plan,
        pass_cells=max(p.cells for p in passes),
        cells=Spread.of([p.rate for p in passes]),
        read=Spread.of([p.nbytes / p.seconds for p in passes]),
        decode=Spread.of(decoded) if bound.cells else None,
        first_batch=Spread.of(firsts),
        waits=Waits.of(waits, first_window),
        seconds=time.perf_counter() - began,
    )


def _label_column(store: Store) -> tuple[str, ...]:
    labels = [c.name for c in store.obs_schema if c.dtype == "category"]
    return ("cell_type",) if "cell_type" in labels else tuple(labels[:1])


def _chosen_genes(store: Store, n_genes: int, seed: int) -> Store:
    if not n_genes:
        return store
    if n_genes > store.n_vars:
        raise SpecError(f"expected at most {plural(store.n_vars, 'gene')}, which the store has, got {n_genes:,}")
    return store[:, np.sort(np.random.default_rng(seed).choice(store.n_vars, n_genes, replace=False))]


def _first_batch(make: Callable[[], tuple[BatchLoader, _Meter]]) -> float:
    gc.collect()
    began = time.perf_counter()
    loader, _ = make()
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        next(batches)
        return time.perf_counter() - began


def _decode_rate(bound: DecodeBound, threads: int) -> float:
    began = time.perf_counter()
    return bound.decode(threads) / (time.perf_counter() - began)
