"""How fast batches come out of a bucket that is far away, beside the same store on a disk, and beside annbatch.

    python tests/benchmarks/bench_remote.py --folder stores

``stores`` is a folder that ``bench_batches.py --folder`` has left. Its stores are put into a GCS server on this machine
(fake-gcs-server, in memory), which is read through a proxy that delays each request and shares out a bandwidth. The
server, the proxy and the loader share this machine's processors: what they take is in the line without latency. Of each
rate the bounds are said: that of the disk, and that of the bandwidth, which is what a cell takes of the bytes that went
through the proxy (of an epoch that ended early, with those of windows that nobody got to see). Rates are of one epoch
after one that is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import BUCKET, Servers

WINDOW, BATCH = 16_384, 512
MB = 10**6
#: Bytes that a connection passes on at a time.
PIECE = 2**18


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


def ours(url: str, options: dict[str, Any], run_rows: int, memory: str) -> Epoch:
    import daodask
    from daodask.batches.schedule import Shuffled

    store = daodask.open_store(url, options=options)
    schedule = Shuffled(run_rows=run_rows, window_rows=WINDOW)
    loader = daodask.BatchLoader(store, BATCH, schedule=schedule, obs=["cell_type"], memory=memory)
    return lambda: (len(batch) for batch in loader)


def annbatch(url: str, options: dict[str, Any], run_rows: int, memory: str) -> Epoch:
    import anndata as ad
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"async.concurrency": 64})
    if "://" in url:
        store = zarr.storage.FsspecStore.from_url(url, storage_options=options, read_only=True)
        group = zarr.open_group(store, mode="r")
    else:
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        group = zarr.open_group(url, mode="r")

    def load(part: zarr.Group) -> ad.AnnData:
        return ad.AnnData(X=ad.io.sparse_dataset(part["X"]), obs=ad.io.read_elem(part["obs"])[["cell_type"]])

    loader = Loader(
        chunk_size=run_rows,
        preload_nchunks=WINDOW // run_rows,
        batch_size=BATCH,
        shuffle=True,
        preload_to_gpu=False,
    ).use_collection(DatasetCollection(group), load_adata=load)
    return lambda: (batch["X"].shape[0] for batch in loader)


LOADERS = {"daodask": ours, "annbatch": annbatch}


# -- measuring -------------------------------------------------------------------------------------------------------


def rate(epoch: Epoch, most_seconds: float) -> tuple[float, int]:
    """Cells a second of an epoch, or of its first windows, and how many cells they were."""
    began, cells = time.perf_counter(), 0
    for n in epoch():
        cells += n
        if cells % WINDOW == 0 and time.perf_counter() - began > most_seconds:
            break
    return cells / (time.perf_counter() - began), cells


def upload(folder: Path, url: str, endpoint: str) -> None:
    import fsspec

    fs = fsspec.filesystem("gs", endpoint_url=endpoint)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        fs.pipe_file(f"{url}/{path.relative_to(folder)}", path.read_bytes(), chunksize=2**31)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="with stores that bench_batches.py has left")
    parser.add_argument("--codec", default="lz4", help="of daodask's store there")
    parser.add_argument("--latency", type=float, nargs="*", default=[0, 10, 30, 100], help="of each request, in ms")
    parser.add_argument("--bandwidth", type=float, default=100, help="of the line, in MB/s; 0 for no limit")
    parser.add_argument("--runs", type=int, nargs="*", default=[512, 64])
    parser.add_argument("--memory", default="1GiB", help="of daodask's loader")
    parser.add_argument("--seconds", type=float, default=10, help="after which an epoch ends")
    parser.add_argument("--loaders", nargs="*", default=list(LOADERS))
    arguments = parser.parse_args()
    servers = Servers()
    os.environ.update(servers.environment)
    try:
        run(arguments, servers.address("gcs"))
    finally:
        servers.close()


def run(arguments: argparse.Namespace, address: str) -> None:
    folders = {"daodask": arguments.folder / f"daodask_{arguments.codec}", "annbatch": arguments.folder / "annbatch"}
    for name in arguments.loaders:
        if not folders[name].exists() or importlib.util.find_spec(name) is None:
            print(f"{name} is not installed, or {folders[name]} is not there: left out", file=sys.stderr)
            continue
        url = f"{BUCKET}/{name}"
        upload(folders[name], url, address)
        for run_rows in arguments.runs:
            measure(name, folders[name], f"gs://{url}", run_rows, arguments, address)


def measure(name: str, folder: Path, url: str, run_rows: int, arguments: argparse.Namespace, address: str) -> None:
    make, seconds = LOADERS[name], arguments.seconds
    epoch = make(str(folder), {}, run_rows, arguments.memory)
    rate(epoch, seconds)
    local, _ = rate(epoch, seconds)
    print(f"\n{name}, runs of {run_rows}, windows of {WINDOW:,}; on a disk {local:,.0f} cells/s")
    near = 0.0
    for latency in arguments.latency:
        with Proxy(address, latency / 1000, arguments.bandwidth * MB) as proxy:
            epoch = make(url, {"endpoint_url": proxy.address}, run_rows, arguments.memory)
            rate(epoch, 0)  # indexes and metadata
            before = proxy.passed
            found, cells = rate(epoch, seconds)
            per_cell = (proxy.passed - before) / cells
        near = near or found
        bound = min(local, arguments.bandwidth * MB / per_cell) if arguments.bandwidth else local
        limit = "the line" if bound < local else "the disk"
        shares = f"{found / local:>4.0%} of the disk, {found / near:>4.0%} of the first latency"
        through = f"{found / bound:.0%} of the {bound:,.0f} that {limit} lets through"
        print(
            f"  {latency:>4.0f} ms {found:>9,.0f} cells/s: {shares}; {per_cell / 1000:.1f} kB a cell; {through}",
            flush=True,
        )


if __name__ == "__main__":
    main()
