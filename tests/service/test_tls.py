"""Test TLS without a proxy: handshakes, streams, clients that leave, and a certificate that changes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meari.service.process.tls import expiry_of
from meari.service.process.waiting import KEEP_SECONDS
from tests.drills.processes import workers_of
from tests.patience import PATIENCE, until
from tests.service.log.test_odd_clients import complaints, received, reset
from tests.service.metrics.exposition import Exposition
from tests.service.running import ROOT, Server, clean_environment, events, free_port, running_server
from tests.service.test_server import ENDLESS, metric, raw_post
from tests.service.test_start import SERVE, ended, without_log

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl was not found")
TLS_METRIC = "meari_tls_certificate_expiry_timestamp_seconds"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def make_certificate(folder: Path, name: str, days: int = 2) -> tuple[Path, Path]:
    """Make a certificate that signs itself, and its key."""
    folder.mkdir(exist_ok=True)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", str(days), "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"), "first")


@pytest.fixture(scope="module")
def server(letters: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings: dict[str, Any] = {"max_tokens": 1_000_000, "max_slots": 4, "log_level": "debug"}
    settings |= {"tls_certificate": files[0], "tls_key": files[1]}
    with running_server(tmp_path_factory.mktemp("tls"), bundles=letters, authority=files[0], **settings) as running:
        yield running
        running.terminate()
        assert running.wait() == 0
        assert complaints(running) == []


@contextlib.contextmanager
def secure(server: Server, certificate: Path) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=certificate)
    with server.connect() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        yield connection


class SingleFlight:
    """A TLS connection whose first bytes leave in the packet that ends the handshake: it is never seen idle before."""

    def __init__(self, plain: socket.socket, certificate: Path, first: bytes) -> None:
        self.plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=certificate)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(self._outgoing.read())
                self._incoming.write(plain.recv(65536))
        self.send(first)

    def send(self, data: bytes) -> None:
        if data:
            self._tls.write(data)
        self.plain.sendall(self._outgoing.read())

    def received(self) -> bytes:
        """Return all bytes received until the other side closes."""
        self._incoming.write(received(self.plain))
        answer = b""
        with contextlib.suppress(ssl.SSLZeroReturnError, ssl.SSLEOFError, ssl.SSLWantReadError):
            while piece := self._tls.read(65536):
                answer += piece
        return answer


def test_whole_and_streamed_answers_come_over_tls(server: Server) -> None:
    body = {"prompt": "w", "temperature": 0}
    whole = server.post("/generate", **body).json()["choices"][0]["text"]
    *pieces, _, done = events(server.post("/generate", **body, stream=True))
    assert "".join(json.loads(piece)["choices"][0]["text"] for piece in pieces) == whole
    assert done == "[DONE]"
    assert whole


def test_large_bodies_and_answers_come_over_tls(server: Server) -> None:
    text = "abc" * 20_000
    answer = server.post("/score", texts=[text, "abc"], tokens=True, top=3, add_end=False).json()["results"]
    assert [len(result["tokens"]) for result in answer] == [60_000, 3]


def test_connection_serves_successive_and_pipelined_requests(server: Server, files: tuple[Path, Path]) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with secure(server, files[0]) as connection:
        for _ in range(3):
            connection.sendall(ask)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        connection.sendall(ask * 2 + HEALTH)
        assert received(connection).count(b"HTTP/1.1 200 OK") == 3


def test_request_may_come_in_many_small_records(server: Server, files: tuple[Path, Path]) -> None:
    request = raw_post(b'{"text": "abc"}', b"Connection: close", path=b"/tokenize")
    with secure(server, files[0]) as connection:
        for byte in request:
            connection.sendall(bytes([byte]))
        assert received(connection).startswith(b"HTTP/1.1 200 OK")


def test_expect_header_gets_100_continue_over_tls(server: Server, files: tuple[Path, Path]) -> None:
    body = b'{"text": "abc"}'
    headers = [b"Expect: 100-continue", b"Connection: close", b"Content-Length: %d" % len(body)]
    with secure(server, files[0]) as connection:
        connection.sendall(raw_post(b"", *headers, path=b"/tokenize"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert received(connection).startswith(b"HTTP/1.1 200 OK")


def test_plain_http_on_the_port_gets_a_clear_answer(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(HEALTH)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"].startswith(
        "request: got bytes that are no TLS"
    )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_later_are_spoken(server: Server, files: tuple[Path, Path], version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=files[0])
    context.minimum_version = context.maximum_version = version
    with server.connect() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        connection.sendall(HEALTH)
        assert received(connection).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_older_versions_are_refused(server: Server) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with server.connect() as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_unfinished_handshakes_hold_no_thread(server: Server, files: tuple[Path, Path]) -> None:
    with contextlib.ExitStack() as stack:
        for begin in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"):
            for _ in range(150):
                stack.enter_context(server.connect()).sendall(begin)
        with secure(server, files[0]) as connection:
            connection.sendall(HEALTH)
            assert received(connection).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(("begin", "answer"), [(b"", b""), (HEALTH[:20], b"HTTP/1.1 429")], ids=["idle", "in a head"])
def test_connections_that_wait_give_way_where_memory_is_short(
    letters: Path, tmp_path: Path, files: tuple[Path, Path], begin: bytes, answer: bytes
) -> None:
    bounds = {"max_body_bytes": 65536, "max_inflight_bytes": 2**20}  # half of it: for 26 connections
    settings: dict[str, Any] = {"tls_certificate": files[0], "tls_key": files[1], **bounds}
    with (
        running_server(tmp_path, bundles=letters, authority=files[0], **settings) as server,
        contextlib.ExitStack() as stack,
    ):
        connections = []
        for _ in range(40):
            plain = stack.enter_context(server.connect())
            connections.append(SingleFlight(plain, files[0], begin))
        for connection in connections[:14]:
            connection.plain.settimeout(KEEP_SECONDS / 2)
            assert connection.received()[:12] == answer  # those that wait for longest
        for connection in connections[14:]:
            connection.send(HEALTH[len(begin) :])
            assert connection.received().startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("abrupt", [False, True])
def test_client_that_leaves_frees_its_slot(
    server: Server, files: tuple[Path, Path], stream: bool, abrupt: bool
) -> None:
    until(lambda: metric(server, "meari_running_sequences") == 0)
    body = json.dumps({**ENDLESS, "max_tokens": 1_000_000, "stream": stream}).encode()
    with secure(server, files[0]) as connection:
        connection.sendall(raw_post(body))
        until(lambda: metric(server, "meari_running_sequences") == 1)
        if abrupt:
            reset(connection)
    until(lambda: metric(server, "meari_running_sequences") == 0)


def test_half_closed_client_gets_its_answer_over_tls(server: Server, files: tuple[Path, Path]) -> None:
    """Close one half below TLS, as a client's system does; the first bytes of the answer are sent as probes."""
    with server.connect() as plain:
        connection = SingleFlight(
            plain, files[0], raw_post(json.dumps({"prompt": "w", "temperature": 0, "n": 4}).encode())
        )
        plain.shutdown(socket.SHUT_WR)
        answer = connection.received()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"HTTP/1.") == 1


def end_of(certificate: Path) -> float:
    """Return the end of a certificate's validity in Unix seconds, as OpenSSL reads it."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(certificate)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return ssl.cert_time_to_seconds(text.strip().removeprefix("notAfter="))


def test_expiry_of_certificates_is_that_of_the_first_to_expire(tmp_path: Path) -> None:
    """20,000 days from now a certificate has another form of time, because two digits of the year no longer do."""
    long, short = (make_certificate(tmp_path / name, name, days)[0] for name, days in (("a", 20_000), ("b", 3)))
    assert expiry_of(long.read_text()) == end_of(long)
    assert expiry_of(long.read_text() + "text between\n" + short.read_text()) == end_of(short)
    whole = short.read_text()
    assert expiry_of("") is None
    assert expiry_of(whole[:60] + "\n-----END CERTIFICATE-----") is None


def subject(server: Server, authority: Path) -> str:
    """Return the name in the certificate that a new connection gets."""
    with secure(server, authority) as connection:
        connection.sendall(HEALTH)
        assert received(connection).startswith(b"HTTP/1.1 200 OK")
        found: Any = connection.getpeercert()
    return str(found["subject"][0][0][1])


def asked(server: Server, authority: Path, request: bytes) -> bytes:
    """Return the answer to a request on a new connection."""
    with secure(server, authority) as connection:
        connection.sendall(request)
        return received(connection)


def test_new_certificate_is_taken_over_without_a_restart(letters: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    files = make_certificate(used, "first")
    others = [make_certificate(tmp_path / name, name, days) for name, days in (("second", 20), ("third", 9))]
    settings: dict[str, Any] = {"tls_certificate": files[0], "tls_key": files[1]}
    authority = tmp_path / "authority.pem"
    authority.write_bytes(b"".join(path.read_bytes() for path, _ in [files, *others]))

    def expiry(running: Server) -> float:
        found = Exposition(running.client.get("/metrics").text).families
        return found[TLS_METRIC].samples[0].value if TLS_METRIC in found else 0.0

    with (
        running_server(tmp_path, bundles=letters, authority=authority, **settings) as server,
        secure(server, authority) as old,
    ):
        assert subject(server, authority) == "first"
        until(lambda: expiry(server) == end_of(files[0]))
        for source, target in zip(others[0], files, strict=True):
            shutil.copy(source, tmp_path / "new")
            (tmp_path / "new").replace(target)
        until(lambda: subject(server, authority) == "second")
        until(lambda: expiry(server) == end_of(others[0][0]))
        files[0].write_text("broken", "utf-8")
        until(lambda: "the old ones stay" in server.log)
        assert subject(server, authority) == "second"
        assert expiry(server) == end_of(others[0][0]), "of the certificate that is used"
        shutil.copy(others[1][1], files[1])
        shutil.copy(others[1][0], files[0])
        until(lambda: subject(server, authority) == "third")
        old.sendall(HEALTH)
        assert received(old).startswith(b"HTTP/1.1 200 OK")
    assert "Traceback" not in server.log


def test_worker_that_takes_another_ones_place_has_the_certificate_that_the_others_have(
    letters: Path, tmp_path: Path
) -> None:
    files = make_certificate(tmp_path / "used", "first")
    second = make_certificate(tmp_path / "second", "second")
    authority = tmp_path / "authority.pem"
    authority.write_bytes(files[0].read_bytes() + second[0].read_bytes())
    settings: dict[str, Any] = {"tls_certificate": files[0], "tls_key": files[1], "workers": 2}
    with running_server(tmp_path, bundles=letters, authority=authority, **settings) as server:
        for source, target in zip(second, files, strict=True):
            shutil.copy(source, target)
        until(lambda: subject(server, authority) == "second")
        until(lambda: server.log.count("new connections get the certificate") >= 3)  # both workers, and the master
        files[1].write_text("broken", "utf-8")
        killed = set(workers_of(server.process.pid))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(workers_of(server.process.pid)) - killed) == 2)
        until(lambda: b'"ready":2,' in asked(server, authority, HEALTH.replace(b"healthz", b"readyz")))
        assert {subject(server, authority) for _ in range(8)} == {"second"}
        before = workers_of(server.process.pid)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "nothing was reloaded: MEARI_TLS_CERTIFICATE" in server.log)
        assert workers_of(server.process.pid) == before
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls_certificate": "c.pem"}, "MEARI_TLS_KEY: missing, expected a file, because MEARI_TLS_CERTIFICATE is set"),
        ({"tls_key": "k.pem"}, "MEARI_TLS_CERTIFICATE: missing, expected a file, because MEARI_TLS_KEY is set"),
        ({"tls_certificate": "/c.pem", "tls_key": "/k.pem"}, "No such file or directory; expected a certificate and"),
    ],
)
def test_start_without_a_usable_certificate_is_refused(letters: Path, settings: dict[str, str], says: str) -> None:
    done = ended(SERVE, bundles=letters, **settings)
    assert done.returncode == 2
    assert says in " ".join(without_log(done.stderr))


def test_key_of_another_certificate_is_refused_at_the_start(letters: Path, tmp_path: Path) -> None:
    first, second = make_certificate(tmp_path / "one", "one"), make_certificate(tmp_path / "two", "two")
    done = ended(SERVE, bundles=letters, tls_certificate=first[0], tls_key=second[1])
    assert done.returncode == 2
    assert f"MEARI_TLS_CERTIFICATE {first[0]}, MEARI_TLS_KEY {second[1]}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_client_commands_trust_the_authority_of_the_environment(server: Server, files: tuple[Path, Path]) -> None:
    command = [*SERVE[:-1], "models", "--server", f"https://127.0.0.1:{server.port}"]
    environment = clean_environment(port=free_port())

    def asked(**further: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=environment | further, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    trusting = asked(SSL_CERT_FILE=str(files[0]))
    assert trusting.returncode == 0, trusting.stderr
    assert "letters" in trusting.stdout
    wary = asked()
    assert wary.returncode != 0
    assert "certificate" in wary.stderr
    assert "Traceback" not in wary.stderr


def test_health_check_of_the_image_passes_with_tls(server: Server, files: tuple[Path, Path]) -> None:
    [check] = [
        line
        for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines()
        if line.strip().startswith('CMD ["python"')
    ]
    words = json.loads(check.strip().removeprefix("CMD "))
    environment = clean_environment(port=server.port, tls_certificate=files[0])
    subprocess.run([sys.executable, *words[1:]], env=environment, check=True, timeout=PATIENCE)
