"""A real S3 server for tests, and a proxy before it that makes it fail.

SeaweedFS comes as the program `weed` in a wheel. It runs as one process on free ports of the loopback interface.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

KEY, SECRET = "AKIDOFTHETESTS0001", "the-secret-of-the-tests"
READY_SECONDS = 60.0
CHUNK = 1 << 16

Mode = Literal["pass", "busy", "denied", "silent"]
_FAULTS = {
    "busy": (503, "SlowDown", "Please reduce your request rate."),
    "denied": (403, "AccessDenied", "Access Denied"),
}


class ObjectStore:
    """A SeaweedFS server with one identity that may do everything; as a context manager it runs for the block.

    Args:
        folder: for its data and its log; may hold those of an earlier one.
        host: the address that it listens on.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1") -> None:
        self._folder = folder
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None
        # Unless told, a service takes a second port that is 10000 above its first, taken or not.
        names = [f"{name}.port{suffix}" for name in ("s3", "master", "volume", "filer") for suffix in ("", ".grpc")]
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.url = f"http://{host}:{self._ports['s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def client(self, url: str = "") -> Any:
        """A client that knows nothing of the code under test; with the address of a proxy, one that goes through it."""
        return get_session().create_client(
            "s3",
            endpoint_url=url or self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=20
            ),
        )

    def start(self) -> None:
        """Starts it, on the same ports and with the same data as before, and waits until it takes a file."""
        data = self._folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        identities = self._folder / "identities.json"
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities.write_text(
            json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]})
        )
        command = [
            *(str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "server"),
            *(f"-dir={data}", f"-ip={self._host}", f"-ip.bind={self._host}", "-s3", f"-s3.config={identities}"),
            *(f"-{name}={port}" for name, port in self._ports.items()),
            # Volumes grow as they are filled. After a restart, the master waits one election long.
            *(
                "-volume.max=300",
                "-master.volumeSizeLimitMB=64",
                "-volume.preStopSeconds=0",
                "-master.electionTimeout=1s",
            ),
            # Nothing else is started, nothing leaves the machine, and a bucket that is missing stays so.
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-s3.autoCreateBucket=false"),
        ]
        with (self._folder / "log").open("ab") as log:
            # Its home is where it looks for settings.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(self._folder)}
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        client, end = self.client(), time.monotonic() + READY_SECONDS
        while True:
            try:
                if "ready" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket="ready")
                # Buckets are known before the volumes are that hold the files.
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                client.get_object(Bucket="ready", Key="ready")["Body"].read()
                return
            except (BotoCoreError, ClientError) as error:
                assert self._process
                if self._process.poll() is not None or time.monotonic() > end:
                    log = (self._folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"weed did not start ({error}):\n{log[-3000:]}") from error
                time.sleep(0.1)

    def stop(self) -> None:
        """Ends it at once, as a power cut does; its data stay."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        for name, port in self._ports.items():
            Path(f"/tmp/seaweedfs-{name.replace('.port', '').replace('.', '-')}-{port}.sock").unlink(missing_ok=True)

    def create_bucket(self, name: str) -> None:
        """Creates a bucket."""
        self.client().create_bucket(Bucket=name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class FaultyProxy:
    """Stands before a store and fails when it is told to; as a context manager it runs for the block.

    Args:
        store: the store.
        delay: seconds that each request waits before it is handed on.

    Attributes:
        mode: `pass` hands on; `busy` answers 503 and `denied` answers 403, the store is not asked; `silent` takes a
            request and never answers. May be set at any time, for the requests that come from then on.
        lose_answers: how many of the next requests are handed on and then break off instead of being answered.
        faults: how many requests met a mode other than `pass`.
        seen: method and path of every request that was handed on, in the order in which they were answered.
    """

    def __init__(self, store: ObjectStore, delay: float = 0.0) -> None:
        self.mode: Mode = "pass"
        self.lose_answers = 0
        self.faults = 0
        self.seen: list[str] = []
        self._store, self._delay = store, delay
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {**store.environment, "AWS_ENDPOINT_URL": self.url}

    def meet(self) -> Mode:
        """The mode that a request meets, which is counted if it is a fault."""
        mode = self.mode
        if mode != "pass":
            with self._lock:
                self.faults += 1
        return mode

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the store, after the delay."""
        time.sleep(self._delay)
        target = urlsplit(self._store.url)
        assert target.hostname
        return http.client.HTTPConnection(target.hostname, target.port or 80, timeout=60)

    def loses(self, request: str) -> bool:
        """Notes a request that the store has answered; returns whether its answer is to be lost."""
        with self._lock:
            self.seen.append(request)
            lost = self.lose_answers > 0
            self.lose_answers -= lost
        return lost

    def wait(self) -> None:
        """Waits until the proxy ends."""
        self._end.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """The server of a proxy."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, proxy: FaultyProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client to a proxy."""

    server: _Server
    protocol_version = "HTTP/1.1"
    # A client that keeps its connection and says nothing.
    timeout = 60
    # The body and what stands before it are two packets, of which the second would wait for an answer.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        mode = self.server.proxy.meet()
        if mode == "silent":
            self.server.proxy.wait()
            self.close_connection = True
        elif mode == "pass":
            self._hand_on()
        else:
            self._refuse(*_FAULTS[mode])

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _refuse(self, status: int, code: str, message: str) -> None:
        # The next request of the connection comes after the rest of this one.
        for _ in self._body():
            pass
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def _hand_on(self) -> None:
        upstream = self.server.proxy.connect()
        try:
            self._send_request(upstream)
            answer = upstream.getresponse()
            if self.server.proxy.loses(f"{self.command} {self.path}"):
                self.close_connection = True
            else:
                self._send_answer(answer)
        except (OSError, http.client.HTTPException):
            # The store is gone, or the client: the other side sees a connection that breaks.
            self.close_connection = True
        finally:
            upstream.close()

    def _send_request(self, upstream: http.client.HTTPConnection) -> None:
        # The signature covers the header Host: everything goes on as it came.
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.putheader("Connection", "close")
        upstream.endheaders()
        for chunk in self._body():
            upstream.send(chunk)

    def _send_answer(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while self.command != "HEAD" and (chunk := answer.read1(CHUNK)):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if answer.chunked else chunk)
        if answer.chunked and self.command != "HEAD":
            self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> Iterator[bytes]:
        """What follows the headers, as it stands on the wire."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while True:
                line = self.rfile.readline()
                yield line
                size = int(line.split(b";")[0], 16)
                yield self.rfile.read(size + 2)
                if size == 0:
                    return
        left = int(self.headers.get("Content-Length", 0))
        while left and (chunk := self.rfile.read(min(left, CHUNK))):
            left -= len(chunk)
            yield chunk

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """One server for all tests that need one; each makes its own bucket."""
    folder = Path(tempfile.mkdtemp(prefix="lungseg-store-"))
    try:
        with ObjectStore(folder) as store:
            yield store
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(socket.socket())
            sockets[-1].bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
