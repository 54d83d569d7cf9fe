"""How fast ranges of a file in a bucket are read through obstore, against fsspec's own clients (s3fs, gcsfs).

    python tests/benchmarks/bench_obstore.py

The servers are those of the tests, on this machine: SeaweedFS and moto for S3, fake-gcs-server for GCS; those that are
not installed are left out. Ranges are as of a window of a shuffled epoch: many, of some 100 kB, from all over a file,
asked for in a few calls. Each request is delayed as ``bench_remote.py`` has it. Rates are medians, with both clients in
turn, of as many rounds as there is time for. moto is the limit itself: it is one process of Python, and closes each
connection. What does not depend on the server is the processor time of the client, which is said beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench_remote import MB, Proxy
from servers import BUCKET, MissingError, Servers

from daodask.storage import StoreLocation

FILE = "ranges.bin"
#: The protocol that obstore is registered for, beside that of fsspec's client.
PROTOCOLS = {"gcs": ("gcs", "gs"), "s3": ("s3", "s3a"), "seaweed": ("s3", "s3a")}


def options_of(kind: str, server: str, address: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What fsspec's client is opened with, and obstore."""
    if kind != "gcs":
        os.environ["AWS_ENDPOINT_URL_S3"] = address  # which obstore takes before any option
        return {"endpoint_url": address}, {"config": {"endpoint": address}, "client_options": {"allow_http": True}}
    account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": ""}
    os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"] = json.dumps({**account, "private_key_id": ""})
    # The server knows itself by its own name only; the other header keeps fsspec from taking what it opened before.
    headers = {"host": server.removeprefix("http://"), "x-line": address}
    return {"endpoint_url": address}, {"client_options": {"allow_http": True, "default_headers": headers}}


def measure(
    place: StoreLocation, ranges: list[tuple[str, int, int]], expected: np.ndarray, most: int
) -> tuple[float, float]:
    """Seconds of wall clock and of this process's processors that one call takes."""
    began, processor = time.perf_counter(), time.process_time()
    for start in range(0, len(ranges), most):
        place.read_ranges(ranges[start : start + most])
    seconds = time.perf_counter() - began, time.process_time() - processor
    if not np.array_equal(place.read_ranges(ranges[:1]), expected):
        raise RuntimeError(f"{place}: read what was not written")
    return seconds


def compare(kind: str, server: str, data: bytes, arguments: argparse.Namespace) -> None:
    own, other = PROTOCOLS[kind]
    (StoreLocation.parse(f"{own}://{BUCKET}", {"endpoint_url": server}) / FILE).write(data)
    size = arguments.kilobytes * 1000
    starts = np.random.default_rng(0).integers(len(data) - size, size=arguments.ranges).tolist()
    ranges = [(FILE, start, start + size) for start in starts]
    expected = np.frombuffer(data[starts[0] : starts[0] + size], dtype=np.uint8)
    for latency in arguments.latency:
        with Proxy(server, latency / 1000, 0) as proxy:
            clients = {
                name: StoreLocation.parse(f"{name}://{BUCKET}", options)
                for name, options in zip((own, other), options_of(kind, server, proxy.address), strict=True)
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
            for place in clients.values():
                measure(place, ranges[: arguments.at_once], expected, arguments.at_once)  # connections
            began = time.monotonic()
            while not found[other] or time.monotonic() - began < arguments.seconds:
                for name, place in clients.items():
                    found[name].append(measure(place, ranges, expected, arguments.at_once))
        (wall, cpu), (wall_ob, cpu_ob) = (
            (statistics.median(w for w, _ in found[name]), statistics.median(c for _, c in found[name]))
            for name in (own, other)
        )
        names = {"s3": "s3fs", "gcs": "gcsfs"}
        volume, per_request = size * len(ranges) / MB, 1e3 / len(ranges)
        print(
            f"{kind:<8} {latency:>3.0f} ms: {names[own]} {volume / wall:>6,.0f} MB/s, "
            f"obstore {volume / wall_ob:>6,.0f} MB/s: "
            f"{wall / wall_ob:.1f} times as fast; "
            f"{cpu * per_request:.2f} and {cpu_ob * per_request:.2f} ms of processor a request",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="*", default=["seaweed", "gcs", "s3"])
    parser.add_argument("--latency", type=float, nargs="*", default=[0, 30], help="of each request, in ms")
    parser.add_argument("--megabytes", type=int, default=64, help="of the file")
    parser.add_argument("--kilobytes", type=int, default=100, help="of a range")
    parser.add_argument("--ranges", type=int, default=256)
    parser.add_argument("--at-once", type=int, default=64, help="ranges of a call")
    parser.add_argument("--seconds", type=float, default=5, help="of the rounds of a server and latency")
    arguments = parser.parse_args()
    servers = Servers()
    os.environ.update(servers.environment)
    import obstore.fsspec

    obstore.fsspec.register("gs")
    obstore.fsspec.register("s3a")
    data = np.random.default_rng(1).integers(256, size=arguments.megabytes * MB, dtype=np.uint8).tobytes()
    try:
        for kind in arguments.servers:
            try:
                server = servers.address(kind)
            except MissingError as error:
                print(f"{kind}: left out, {error}")
                continue
            compare(kind, server, data, arguments)
    finally:
        servers.close()


if __name__ == "__main__":
    main()
