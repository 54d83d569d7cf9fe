"""Buckets of real servers: what is written and read, what goes wrong on the way, and what nobody gets to see."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest
from servers import ACCESS_KEY, SECRET_KEY, Fault, MissingError, Proxy, Servers

import daodask
from daodask import storage
from daodask.batches.schedule import Shuffled
from daodask.credentials import masked
from daodask.errors import CorruptStoreError, DependencyError, SpecError, StoreNotFoundError
from daodask.format.manifest import DatasetInfo
from daodask.snapshots import commit_snapshot
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata, coordinate_counts, random_store

Place = Callable[[str], StoreLocation]


@pytest.fixture(params=["gcs", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def proxy(kind: str, servers: Servers) -> Iterator[Proxy]:
    try:
        address = servers.address(kind)
    except MissingError as missing:
        pytest.skip(str(missing))
    with Proxy(address) as running:
        yield running


@pytest.fixture
def behind(proxy: Proxy, kind: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> StoreLocation:
    """Return an empty place that is reached through the proxy, on a file system that repeats soon."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *result: sleep(min(seconds, 0.01), *result))
    return StoreLocation.parse(place(kind).url, {"endpoint_url": proxy.address})


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault("status", 2, status=503), Fault("status", 1, status=429), Fault("status", 1, status=500)),
        *(Fault("truncated", 2), Fault("lost", 1)),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_what_goes_wrong_for_a_while_is_repeated(behind: StoreLocation, proxy: Proxy, fault: Fault) -> None:
    file, data = behind / "a", bytes(range(256)) * 64
    file.write(data)
    for read in (
        lambda: behind.read_ranges([("a", 5, 9000), ("a", 10_000, 10_010)]).tobytes(),
        file.read,
        lambda: behind.read_ends(["a"], 100)[0],
    ):
        expected = read()
        proxy.faults[:] = [Fault(fault.kind, fault.times, "GET", "", fault.status)]
        before = len(proxy.requests)
        assert read() == expected
        assert proxy.faults[0].times == 0
        assert len(proxy.requests) - before > fault.times
    proxy.faults[:] = [Fault(fault.kind, fault.times, status=fault.status)] if fault.kind != "truncated" else []
    file.write(b"again")
    assert file.read() == b"again"
    proxy.faults[:] = [Fault(fault.kind, fault.times, "GET", status=fault.status)]
    assert behind.list() == ("a",)


def test_who_does_not_answer_is_asked_again(
    behind: StoreLocation, proxy: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_SILENCE", 0.3)
    (behind / "a").write(b"0123456789")
    soon = {"config_kwargs": {"read_timeout": 0.3}} if kind == "s3" else {}
    there = StoreLocation.parse(behind.url, {**dict(behind.options), **soon})
    for read in (
        lambda: there.read_ranges([("a", 2, 5), ("a", 7, 9)]).tobytes(),
        (there / "a").read,
        lambda: there.read_ends(["a"], 4)[0],
        there.list,
    ):
        expected = read()
        proxy.faults[:] = [Fault("silent", 1, "GET")]
        assert read() == expected
        assert proxy.faults[0].times == 0


def test_a_server_that_stays_away_is_an_os_error(behind: StoreLocation, proxy: Proxy, kind: str) -> None:
    (behind / "a").write(b"0123456789")
    proxy.faults[:] = [Fault("status", 1000, status=503)]
    for attempt in (
        (behind / "a").read,
        lambda: (behind / "a").read_range(2, 4),
        lambda: behind.read_ranges([("a", 2, 4)]),
        behind.list,
        lambda: (behind / "b").write(b"x"),
        lambda: (behind / "c").create(b"x"),
    ):
        with pytest.raises(OSError, match=r"failed, also when repeated|\b503\b|[Ss]ervice|request") as caught:
            attempt()
        assert not isinstance(caught.value, FileNotFoundError)
    proxy.faults.clear()
    assert behind.list() == ("a",)


def test_a_short_body_is_never_read_as_data(behind: StoreLocation, proxy: Proxy) -> None:
    data = bytes(range(1, 251))
    (behind / "a").write(data)
    proxy.faults[:] = [Fault("short", 1000, "GET")]
    with pytest.raises((CorruptStoreError, OSError), match="got|expected|IncompleteRead|failed"):
        behind.read_ranges([("a", 0, 200), ("a", 210, 220)])
    proxy.faults[:] = [Fault("truncated", 1000, "GET")]
    with pytest.raises(OSError, match="repeated|IncompleteRead|payload|Connection"):
        behind.read_ranges([("a", 0, 200)])


def test_a_range_behind_the_end_is_a_short_file(place: Place, kind: str) -> None:
    where = place(kind)
    (where / "a").write(b"0123456789")
    (where / "empty").write(b"")
    for path, start, stop in (("a", 5, 20), ("a", 10, 12), ("a", 50, 60), ("empty", 0, 5)):
        with pytest.raises(CorruptStoreError, match=f"expected bytes {start} to {stop}, got . of them; the file is sh"):
            where.read_ranges([(path, start, stop)])
    with pytest.raises(CorruptStoreError, match="expected a file at .*/b, found none"):
        where.read_ranges([("a", 0, 5), ("b", 0, 5)])
    assert where.read_ends(["a", "b", "empty"], 4) == [b"6789", None, b""]
    assert where.read_ends(["a"], 40) == where.read_ends(["a"]) == [b"0123456789"]


def test_a_commit_whose_answer_is_lost_is_there_once(behind: StoreLocation, proxy: Proxy) -> None:
    adata = coordinate_adata(7, 5)
    spec = {"features": {"name": "g", "reference": "union"}, "studies": [{"id": "a", "source": adata}]}
    methods = ("POST", "PUT")
    proxy.faults[:] = [Fault("lost", 1, method, "snapshots") for method in methods]
    # GCS names an object that is uploaded in the body, which the proxy does not look into.
    proxy.faults += [Fault("lost", 1, "POST", "ifGenerationMatch=0")]
    report = daodask.build_store(spec, behind, progress=False)
    assert sum(fault.times for fault in proxy.faults) < 3
    assert report.ok
    assert (behind / "snapshots").list() == ("00000001.json",)
    assert daodask.open_store(behind).n_obs == 7


# -- one PUT, seen whole or not at all ---------------------------------------------------------------------------------


def test_a_file_is_one_put(behind: StoreLocation, proxy: Proxy) -> None:
    data = os.urandom(2**20) * 110  # more than both libraries would put at once
    (behind / "shard").write(data)
    assert [method for method, _ in proxy.requests] in (["PUT"], ["POST"])
    assert (behind / "shard").read_range(len(data) - 5, len(data)) == data[-5:]


KILLED = """
import sys
from daodask.storage import StoreLocation
where = StoreLocation.parse(sys.argv[1], {"endpoint_url": sys.argv[2]})
where.exists()
print("ready", flush=True)
(where / "shard").write(bytes(200 * 2**20))
"""


def test_an_upload_that_is_killed_is_never_seen(
    behind: StoreLocation, proxy: Proxy, servers: Servers, kind: str
) -> None:
    command = [sys.executable, "-c", KILLED, behind.url, proxy.address]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 60
    while not any(method in ("PUT", "POST") for method, _ in proxy.requests):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    writer.kill()
    writer.communicate()
    direct = StoreLocation(behind.url)
    for _ in range(5):
        assert not (direct / "shard").exists()
        assert direct.list() == ()
        time.sleep(0.05)


def test_an_upload_that_is_cut_off_is_repeated(behind: StoreLocation, proxy: Proxy) -> None:
    proxy.faults[:] = [Fault("dropped", 1, method) for method in ("PUT", "POST")]
    (behind / "a").write(b"0123456789" * 1000)
    assert (behind / "a").read() == b"0123456789" * 1000


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_by_argument_over_configuration_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(url: str, **given: Any) -> dict[str, Any]:
        return storage._options(StoreLocation.parse(url, given))

    pool = {"max_pool_connections": 64}
    assert options("s3://b/a") == {"use_listings_cache": False, "config_kwargs": pool}
    assert options("gs://b/a", requests_timeout=3) == {"use_listings_cache": False, "requests_timeout": 3}
    assert options("gs://b/a")["requests_timeout"].sock_read == 60
    assert options("memory://b/a") == options("/b/a") == {}
    assert options("s3://b/a", config_kwargs={"connect_timeout": 3})["config_kwargs"] == {**pool, "connect_timeout": 3}
    assert options("s3://b/a", use_listings_cache=True)["use_listings_cache"] is True
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"use_listings_cache": True, "config_kwargs": {"max_pool_connections": 7}}
    )
    # What is configured is fsspec's to apply, but for what would hide it.
    assert options("s3://b/a") == {"config_kwargs": {"max_pool_connections": 7}}


def test_an_endpoint_by_argument_by_environment_and_by_configuration(
    servers: Servers, place: Place, proxy: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = place(kind)
    (where / "a").write(b"by environment")
    by_argument = StoreLocation.parse(where.url, {"endpoint_url": proxy.address})
    assert (by_argument / "a").read() == b"by environment"
    n_requests = len(proxy.requests)
    assert n_requests > 0
    protocol = where.url.partition("://")[0]
    monkeypatch.setitem(fsspec.config.conf, protocol, {"endpoint_url": proxy.address, "use_listings_cache": False})
    storage._file_system.cache_clear()
    fsspec.filesystem(protocol).clear_instance_cache()
    assert (StoreLocation(where.url) / "a").read() == b"by environment"
    assert len(proxy.requests) > n_requests
    storage._file_system.cache_clear()


def test_what_others_write_is_seen(place: Place, kind: str) -> None:
    where = place(kind)
    (where / "a").write(b"x")
    assert where.list() == ("a",)
    assert not (where / "b").exists()
    other, path = fsspec.core.url_to_fs(where.url, use_listings_cache=True, skip_instance_cache=True)
    other.pipe_file(f"{path}/b", b"y")
    assert (where / "b").exists()
    assert where.list() == ("a", "b")
    assert [file.path for file in where.files()] == ["a", "b"]
    other.rm(f"{path}/a")
    assert not (where / "a").exists()
    with pytest.raises(StoreNotFoundError, match="expected a file at"):
        (where / "a").read()


class Slow(Fault):
    """Makes each request take a while, and knows how many were under way at once."""

    def __init__(self, seconds: float) -> None:
        super().__init__("none")
        self.seconds, self.now, self.most, self.lock = seconds, 0, 0, threading.Lock()

    def meets(self, method: str, path: str) -> bool:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return False


def test_many_requests_are_under_way_at_once(behind: StoreLocation, proxy: Proxy) -> None:
    (behind / "a").write(bytes(10_000))
    # Long enough that a busy machine has sent the last of them before the first is answered.
    slow = Slow(1)
    proxy.faults[:] = [slow]
    behind.read_ranges([("a", 20 * i, 20 * i + 10) for i in range(128)])
    # More than the ten connections that S3's client has by default, and no more than it should be.
    assert 10 < slow.most <= 64


@pytest.mark.parametrize("kind", ["gcs"], indirect=True)
def test_what_a_window_needs_is_asked_for_at_once(behind: StoreLocation, proxy: Proxy) -> None:
    random_store(StoreLocation(behind.url), (40,) * 12, block_rows=16)
    store = daodask.open_store(behind)
    slow = Slow(0.05)
    proxy.faults[:] = [slow]
    loader = daodask.BatchLoader(store, 480, schedule="full", obs=["row"], threads=1)
    (batch,) = loader
    assert (coordinate_counts(batch.index, 32) != batch.X).nnz == 0
    # Of twelve datasets the values and indices, in one thread that decodes.
    assert slow.most >= 8


def test_what_is_fetched_ahead_is_within_the_memory(place: Place) -> None:
    loaders = []
    for kind in ("local", "memory"):
        store = random_store(place(kind), (200,), block_rows=16)
        schedule = Shuffled(run_rows=8, window_rows=32)
        loaders.append(daodask.BatchLoader(store, 8, schedule=schedule, memory=2**20))
    here, there = loaders
    assert here._window_bytes == there._window_bytes
    assert here._fetched_bytes == 0
    assert there._fetched_bytes == 32 * there.store.dataset_infos[0].nbytes // 200 > 0
    both = 2 * there._window_bytes
    assert here.copy(memory=both)._read_ahead == 0
    with pytest.raises(SpecError, match="expected two windows within memory"):
        there.copy(memory=both)._read_ahead  # noqa: B018


# -- nobody gets to see credentials ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("s3://b/a", {"key": "AKIA", "secret": "swordfish"}, "key, secret"),
        ("s3://b/a", {"client_kwargs": {"aws_secret_access_key": "swordfish"}}, "client_kwargs.aws_secret_access_key"),
        ("gs://b/a", {"token": "ya29.swordfish"}, "token"),
        ("gs://b/a", {"token": {"type": "service_account", "private_key": "swordfish"}}, "token"),
        ("abfs://b/a", {"account_key": "swordfish"}, "account_key"),
        ("abfs://b/a", {"sas_token": "swordfish"}, "sas_token"),
        ("abfs://b/a", {"connection_string": "AccountKey=swordfish"}, "connection_string"),
        ("https://h/a", {"client_kwargs": {"headers": {"Authorization": "swordfish"}}}, "headers.Authorization"),
        ("simplecache::s3://b/a", {"s3": {"secret": "swordfish"}}, "s3.secret"),
        ("https://user:swordfish@h/a.h5ad", {}, "a password before the host"),
        ("https://h/a.h5ad?X-Amz-Signature=swordfish&x=1", {}, "X-Amz-Signature="),
        ("https://h/a.h5ad?sig=swordfish", {}, "sig="),
    ],
)
def test_credentials_are_refused(url: str, options: dict[str, Any], named: str) -> None:
    for make in (lambda: StoreLocation.parse(url, options), lambda: StoreLocation(url, tuple(options.items()))):
        with pytest.raises(SpecError, match="expected no credentials") as caught:
            make()
        assert named in str(caught.value)
        assert "swordfish" not in str(caught.value)
        assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (
            "s3://b/a",
            {"anon": True, "endpoint_url": "http://h:1", "client_kwargs": {"region_name": "x"}, "secret": None},
        ),
        ("s3://b/a", {"s3_additional_kwargs": {"SSEKMSKeyId": "alias/x"}, "profile": "work"}),
        ("gs://b/a", {"token": "google_default", "project": "p", "requester_pays": True}),
        ("gs://b/a", {"token": "/secrets/key.json"}),
        ("https://h/a.h5ad?version=3&download=1", {}),
        ("/data/a@b/x?token=y", {}),
        ("memory://a", {}),
    ],
)
def test_what_is_no_credential_is_taken(url: str, options: dict[str, Any]) -> None:
    location = StoreLocation.parse(url, options)
    assert dict(location.options) == options
    assert masked(location.url) == url


def test_a_masked_url_says_where_but_not_how() -> None:
    assert masked("https://u:p@h/a?x=1&X-Goog-Signature=abc&sig=d") == "https://…@h/a?x=1&X-Goog-Signature=…&sig=…"


def test_nothing_that_travels_or_is_shown_has_a_credential(
    place: Place, client: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The secret is in the environment, where s3fs finds it; tasks, logs, reports and snapshots are searched for it."""
    where, sent = place("s3"), []
    secrets = [SECRET_KEY.encode(), ACCESS_KEY.encode()]
    submit = client.submit
    monkeypatch.setattr(client, "submit", lambda *args, **kw: sent.append(pickle_of(args)) or submit(*args, **kw))
    with caplog.at_level(logging.DEBUG):
        adata = coordinate_adata(40, 8)
        adata.write_h5ad(tmp_path / "study.h5ad")
        (where / "study.h5ad").write((tmp_path / "study.h5ad").read_bytes())
        spec = {
            "features": {"name": "g", "reference": "union"},
            "layout": {"block_rows": 16},
            "studies": [{"id": "a", "source": (where / "study.h5ad").url}],
        }
        report = daodask.build_store(spec, where / "store", client=client, progress=False)
        assert report.ok, str(report)
        store = daodask.open_store(where / "store")
        loader = daodask.BatchLoader(store, 8, client=client)
        assert sum(len(batch) for batch in loader) == 40
        lost = (where / "store") / "lost"
        with pytest.raises(StoreNotFoundError) as caught:
            lost.read()
    shown = [str(report), report._repr_html_(), repr(store), store._repr_html_(), repr(loader), str(caught.value)]
    shown += [repr(where), str(where), (where / "store/snapshots/00000001.json").read().decode()]
    graphs = [pickle_of(dict(x.dask)) for x in (store.X, store.obs)]
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith("botocore")]
    assert len(sent) > 5
    for secret in secrets:
        assert not any(secret in data for data in (*sent, *graphs, pickle.dumps(store), pickle.dumps(where)))
        assert not any(secret.decode() in text for text in (*shown, *ours))


def pickle_of(value: Any) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value)
    return data


# -- how many requests -------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(behind: StoreLocation, proxy: Proxy) -> Callable[[], list[str]]:
    """Return what tells the requests since it was last asked: what each was about, without tokens, sorted."""
    prefix = behind.url.partition("://")[2].partition("/")[2]

    def since() -> list[str]:
        found = []
        for method, path in proxy.requests:
            text = unquote(path)
            name = re.sub(r"\.[0-9a-f]{12}/", "/", text.partition(f"{prefix}/")[2].partition("?")[0])
            listing = "list-type=2" in text or ("prefix=" in text and method == "GET")
            found.append("write" if method in ("PUT", "POST") else "list" if listing else name)
        proxy.requests.clear()
        return sorted(found)

    return since


def test_requests_are_as_few_as_is_said(behind: StoreLocation, requests: Callable[[], list[str]]) -> None:
    random_store(StoreLocation(behind.url), (70, 33), block_rows=16)
    store = daodask.open_store(behind)
    assert requests() == ["list", "snapshots/00000001.json"]
    # Of each dataset that the snapshot can't decide: the footer of its obs table, once, and the column.
    store.subset("row >= 90")
    assert requests() == ["datasets/study1/obs.parquet"] * 2
    store.subset("row >= 91")
    assert requests() == ["datasets/study1/obs.parquet"]
    store.subset("row >= 92 and cell_type == 'B cell'")
    assert requests() == ["datasets/study1/obs.parquet"]  # the columns are neighbours
    assert len(store.var) == 32
    assert [name.partition("/")[0] for name in requests()] == ["features"]
    loader = daodask.BatchLoader(store, 16, obs=["cell_type", "row"], schedule="sequential")
    for _ in loader:
        pass
    # Of each dataset its metadata; of each shard of a matrix its index and, in a window, each run of neighbours; of
    # bounds and columns the chunks, once.
    once = ["obs/cell_type/codes/c/0", "obs/row/c/0", "zarr.json"]
    twice = ["X/data/c/0", "X/indices/c/0", "X/indptr/c/0"]
    assert requests() == sorted(f"datasets/{d}/{p}" for d in ("study0", "study1") for p in [*once, *twice, *twice])
    for _ in loader:
        pass
    assert requests() == sorted(f"datasets/{d}/X/{p}/c/0" for d in ("study0", "study1") for p in ("data", "indices"))


def test_a_commit_is_three_requests(behind: StoreLocation, requests: Callable[[], list[str]]) -> None:
    dataset = DatasetInfo("a", "datasets/a.0", "f", 0, (0,), ())
    commit_snapshot(behind, lambda newest: replace(newest, datasets=(dataset,)))
    requests()
    commit_snapshot(behind, lambda newest: replace(newest, datasets=()))
    assert requests() == ["list", "snapshots/00000001.json", "write"]


# -- other clients -----------------------------------------------------------------------------------------------------


def test_obstore_reads_what_was_written(servers: Servers, place: Place) -> None:
    obstore = pytest.importorskip("obstore.fsspec", reason="pip install 'daodask[obstore]'")
    where = place("s3")
    random_store(where, (70, 0, 33), block_rows=16)
    (where / "empty").write(b"")
    obstore.register("s3a")
    try:
        options = {"config": {"endpoint": servers.address("s3")}, "client_options": {"allow_http": True}}
        there = StoreLocation.parse(where.url.replace("s3://", "s3a://"), options)
        assert type(there.fs).__module__ == "obstore.fsspec"
        store = daodask.open_store(there)
        expected = coordinate_counts(np.arange(103), 32)
        assert (store.X.compute() != expected).nnz == 0
        assert store.obs["row"].compute().tolist() == list(range(103))
        assert store.subset("row >= 90").n_obs == 13
        for batch in daodask.BatchLoader(store, 16, obs=["row", "note"]):
            assert (expected[batch.index] != batch.X).nnz == 0
            assert batch.obs["row"].tolist() == batch.index.tolist()
        assert daodask.validate_store(there).ok
        assert there.read_ends(["empty", "absent"], 5) == [b"", None]
        with pytest.raises(CorruptStoreError, match="expected files? "):
            there.read_ranges([("absent", 0, 5)])
        # It would write over what is there, and not say so.
        with pytest.raises(DependencyError, match="obstore's, which is for reading"):
            daodask.remove_datasets(there, "study0")
        assert daodask.open_store(where).n_obs == 103
    finally:
        fsspec.register_implementation("s3a", "s3fs.S3FileSystem", clobber=True)
        storage._file_system.cache_clear()
