"""How fast batches come out of a bucket that is far away, beside the same store on a disk, and beside annbatch.

    python tests/benchmarks/bench_remote.py --folder stores

Stores that ``stores`` lacks are made there first, of the cells of ``bench_batches.py``. They are put into a GCS server
on this machine (fake-gcs-server, in memory), which is read through a proxy that delays each request and shares out a
bandwidth among all connections. Server, proxy and loader share this machine's processors: what they take is in the line
without latency, and the loader's own share is said as microseconds of processor time a cell.

Of each rate the bound is said: that of the disk, or that of the line, which is its bandwidth by the bytes that a cell
took of what went through the proxy (of epochs that ended early, with those of windows that nobody got to see). Rates
are medians of epochs, from the call for the first batch on, after an epoch that is not counted. annbatch reads through
zarr's ``FsspecStore`` and its ``ObjectStore``: ``pip install 'annbatch[zarrs]==0.3.1' obstore numba`` (Python 3.12 or
newer); without it, it is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import BUCKET, Servers

WINDOW, BATCH = 16_384, 512
MB = 10**6
#: Bytes that a connection passes on at a time.
PIECE = 2**18
#: Of daodask's stores, by their names after ``daodask_``.
LAYOUTS = {
    "lz4": {"codec": "lz4"},
    "delta": {"codec": "zstd-delta"},
    "delta_16": {"codec": "zstd-delta", "chunk_rows": 16},
}


# -- what is between -------------------------------------------------------------------------------------------------


class Line:
    """A line of some latency and bandwidth, which all connections share."""

    def __init__(self, latency: float, bandwidth: float, passed: Any) -> None:
        self.latency, self.bandwidth, self.passed, self.free = latency, bandwidth, passed, 0.0

    async def requests(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Pass on what a client sends, late."""
        while data := await source.read(PIECE):
            await asyncio.sleep(self.latency)
            target.write(data)
            await target.drain()
        target.close()

    async def answers(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Pass on what the server sends, no faster than the line is."""
        while data := await source.read(PIECE):
            self.passed.value += len(data)
            if self.bandwidth:
                now = time.perf_counter()
                self.free = max(self.free, now) + len(data) / self.bandwidth
                await asyncio.sleep(self.free - now)
            target.write(data)
            await target.drain()
        target.close()


def run_proxy(target: str, latency: float, bandwidth: float, passed: Any, port: Any) -> None:
    """Serve until the process is ended."""
    host, _, number = target.removeprefix("http://").partition(":")
    line = Line(latency, bandwidth, passed)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(host, int(number), limit=PIECE)
        await asyncio.gather(line.requests(reader, to_there), line.answers(there, writer), return_exceptions=True)

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=PIECE, backlog=512)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(serve())


class Proxy:
    """The proxy in a process of its own."""

    def __init__(self, target: str, latency: float, bandwidth: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._passed, self._port = context.Value("q", 0), context.Value("i", 0)
        arguments = (target, latency, bandwidth, self._passed, self._port)
        self._process = context.Process(target=run_proxy, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        while not self._port.value:
            if not self._process.is_alive():
                raise RuntimeError(f"the proxy did not start: exit code {self._process.exitcode}")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port.value}"

    @property
    def passed(self) -> int:
        """Bytes of answers so far."""
        return int(self._passed.value)


# -- loaders: each returns a function that runs an epoch and yields the number of cells of each batch ----------------

Epoch = Callable[[], Iterator[int]]


@dataclass(frozen=True)
class Place:
    """Where a store is: in a folder, or in the bucket, which is found at an address for a server of another name."""

    folder: Path
    address: str = ""
    server: str = ""

    @property
    def url(self) -> str:
        return f"gs://{BUCKET}/{self.folder.name}" if self.address else str(self.folder)


def ours(place: Place, run_rows: int, memory: str) -> Epoch:
    import daodask
    from daodask.batches.schedule import Shuffled

    store = daodask.open_store(place.url, options={"endpoint_url": place.address} if place.address else {})
    schedule = Shuffled(run_rows=run_rows, window_rows=WINDOW)
    loader = daodask.BatchLoader(store, BATCH, schedule=schedule, obs=["cell_type"], memory=memory)
    return lambda: (len(batch) for batch in loader)


def annbatch_fsspec(place: Place, run_rows: int, memory: str) -> Epoch:
    import zarr

    if not place.address:
        return _annbatch(zarr.storage.LocalStore(place.url, read_only=True), run_rows, "zarrs.ZarrsCodecPipeline")
    options = {"endpoint_url": place.address}
    return _annbatch(zarr.storage.FsspecStore.from_url(place.url, storage_options=options, read_only=True), run_rows)


def annbatch_object(place: Place, run_rows: int, memory: str) -> Epoch:
    import zarr
    from obstore.store import GCSStore

    if not place.address:
        return annbatch_fsspec(place, run_rows, memory)
    account = {"gcs_base_url": place.address, "disable_oauth": True, "client_email": "", "private_key": ""}
    store = GCSStore(
        BUCKET,
        prefix=place.folder.name,
        service_account_key=json.dumps({**account, "private_key_id": ""}),
        client_options={"allow_http": True, "default_headers": {"host": place.server.removeprefix("http://")}},
    )
    return _annbatch(zarr.storage.ObjectStore(store, read_only=True), run_rows)


def _annbatch(store: Any, run_rows: int, pipeline: str = "") -> Epoch:
    import anndata as ad
    import zarr
    from annbatch import DatasetCollection, Loader

    default = "zarr.core.codec_pipeline.BatchedCodecPipeline"
    zarr.config.set({"async.concurrency": 64, "codec_pipeline.path": pipeline or default})

    def load(part: zarr.Group) -> ad.AnnData:
        return ad.AnnData(X=ad.io.sparse_dataset(part["X"]), obs=ad.io.read_elem(part["obs"])[["cell_type"]])

    loader = Loader(
        chunk_size=run_rows,
        preload_nchunks=WINDOW // run_rows,
        batch_size=BATCH,
        shuffle=True,
        preload_to_gpu=False,
    ).use_collection(DatasetCollection(zarr.open_group(store, mode="r")), load_adata=load)
    return lambda: (batch["X"].shape[0] for batch in loader)


@dataclass(frozen=True)
class Contender:
    """A loader, with the folder that its store is in."""

    title: str
    folder: str
    make: Callable[[Place, int, str], Epoch]


OURS = (
    Contender("daodask, lz4", "daodask_lz4", ours),
    Contender("daodask, zstd-delta", "daodask_delta", ours),
    Contender("daodask, zstd-delta, chunk_rows: 16", "daodask_delta_16", ours),
)
PEERS = (
    Contender("annbatch, FsspecStore", "annbatch", annbatch_fsspec),
    Contender("annbatch, ObjectStore", "annbatch", annbatch_object),
)


# -- stores ----------------------------------------------------------------------------------------------------------


def prepare(folder: Path, contender: Contender, cells: int) -> bool:
    """Make a contender's store, unless it is there; whether it can be read here."""
    if contender.folder == "annbatch" and importlib.util.find_spec("annbatch") is None:
        return False
    if (folder / contender.folder).exists():
        return True
    from bench_batches import synthetic

    import daodask

    source = folder / f"cells{cells}_2000.h5ad"
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        synthetic(cells, 2_000, source)
    if contender.folder == "annbatch":
        from annbatch import DatasetCollection

        DatasetCollection(folder / contender.folder).add_adatas([source], shuffle=True)
        return True
    spec = {
        "features": {"name": "all", "reference": "union"},
        "studies": [{"id": "synthetic", "source": str(source), "keep": "all"}],
        "layout": LAYOUTS[contender.folder.removeprefix("daodask_")],
    }
    daodask.build_store(spec, folder / contender.folder, threads=2, progress=False)
    return True


def upload(folder: Path, endpoint: str) -> None:
    import fsspec

    fs = fsspec.filesystem("gs", endpoint_url=endpoint)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            where = f"{BUCKET}/{folder.name}/{path.relative_to(folder)}"
            fs.pipe_file(where, path.read_bytes(), chunksize=2**31)


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Rate:
    """Cells a second, over how many cells, and seconds of this process's processor time for each."""

    speed: float
    cells: int
    processor: float


def rate(epoch: Epoch, most_seconds: float) -> Rate:
    """Of an epoch, or of its first windows."""
    began, processor, cells = time.perf_counter(), time.process_time(), 0
    for n in epoch():
        cells += n
        if cells % WINDOW == 0 and time.perf_counter() - began > most_seconds:
            break
    return Rate(cells / (time.perf_counter() - began), cells, (time.process_time() - processor) / cells)


def lines(text: str) -> tuple[float, float]:
    """Latency in ms and bandwidth in MB/s of a line, as ``30/100``."""
    latency, _, bandwidth = text.partition("/")
    return float(latency), float(bandwidth or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for stores; those that are there are used")
    parser.add_argument("--cells", type=int, default=100_000, help="of stores that are made")
    parser.add_argument(
        "--lines",
        type=lines,
        nargs="*",
        default=[(0, 100), (10, 100), (30, 100), (100, 100), (0, 0), (30, 0)],
        help="latency of each request in ms / bandwidth in MB/s, 0 for no limit",
    )
    parser.add_argument("--others", type=lines, nargs="*", default=[(30, 100), (30, 0)], help="lines of the others")
    parser.add_argument("--runs", type=int, nargs="*", default=[512, 64])
    parser.add_argument("--memory", default="1GiB", help="of daodask's loader")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each, two or more")
    parser.add_argument("--seconds", type=float, default=15, help="after which an epoch ends")
    arguments = parser.parse_args()
    servers = Servers()
    os.environ.update(servers.environment)
    try:
        run(arguments, servers.address("gcs"))
    finally:
        servers.close()


def run(arguments: argparse.Namespace, server: str) -> None:
    uploaded: set[str] = set()
    rates: dict[tuple[float, float, int], dict[str, float]] = {}
    for contender in (*OURS, *PEERS):
        if not prepare(arguments.folder, contender, arguments.cells):
            print(f"\n{contender.title}: not installed, left out")
            continue
        if contender.folder not in uploaded:
            uploaded.add(contender.folder)
            upload(arguments.folder / contender.folder, server)
        for run_rows in arguments.runs:
            for line, found in measure(contender, run_rows, arguments, server):
                known = rates.setdefault((*line, run_rows), {})
                if contender in OURS:
                    known[contender.title] = found.speed
                    continue
                for title, speed in known.items():
                    print(f"         {title}: {speed / found.speed:.1f} times as fast", flush=True)


def measure(
    contender: Contender, run_rows: int, arguments: argparse.Namespace, server: str
) -> Iterator[tuple[tuple[float, float], Rate]]:
    folder, seconds = arguments.folder / contender.folder, arguments.seconds
    epoch = contender.make(Place(folder), run_rows, arguments.memory)
    rate(epoch, seconds)
    local = rate(epoch, seconds).speed
    print(f"\n{contender.title}; runs of {run_rows}, windows of {WINDOW:,}; on a disk {local:,.0f} cells/s", flush=True)
    for latency, bandwidth in arguments.lines if contender is OURS[0] else arguments.others:
        with Proxy(server, latency / 1000, bandwidth * MB) as proxy:
            epoch = contender.make(Place(folder, proxy.address, server), run_rows, arguments.memory)
            rate(epoch, 0)  # indexes and metadata
            before = proxy.passed
            rates = [rate(epoch, seconds) for _ in range(arguments.repeats)]
            per_cell = (proxy.passed - before) / sum(found.cells for found in rates)
        found, (low, *_, high) = statistics.median_low(rates), sorted(rates)
        line = bandwidth * MB / per_cell if bandwidth else float("inf")
        bound, limit = min((line, "the line"), (local, "the disk"))
        print(
            f"  {latency:>4.0f} ms, {f'{bandwidth:.0f} MB/s' if bandwidth else 'no limit':>8}: {found.speed:>8,.0f} "
            f"cells/s ({low.speed:,.0f} to {high.speed:,.0f}), {found.speed / bound:.0%} of the {bound:,.0f} of "
            f"{limit}; {per_cell / 1000:.2f} kB and {found.processor * 1e6:.0f} µs a cell",
            flush=True,
        )
        yield (latency, bandwidth), found


if __name__ == "__main__":
    main()
