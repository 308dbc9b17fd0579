"""The process: the address it listens on, and how it ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from pathlib import Path

import httpx
import pytest

from serving import Server, connect, serving, wait_for


def test_the_hosts_go_with_the_address_it_listens_on(tiny_model: Path, tmp_path: Path) -> None:
    def answered(url: str, host: str) -> int:
        return httpx.post(f"{url}/embed", json={"inputs": "a"}, headers={"host": host}).status_code

    with serving(tiny_model, tmp_path / "here") as here:
        assert answered(here.url, "evil.example") == 400
        refused = httpx.get(f"{here.url}/v1/models", headers={"host": "evil.example"}).json()["error"]
        assert (refused["code"], "--allowed-hosts" in refused["message"]) == ("invalid_host", True)
    with serving(tiny_model, tmp_path / "mapped", "--host", "::ffff:127.0.0.1") as mapped:
        assert mapped.url.startswith("http://[::ffff:127.0.0.1]:")
        url = mapped.url.replace("[::ffff:127.0.0.1]", "127.0.0.1")
        assert [answered(url, host) for host in ("[::ffff:127.0.0.1]", "localhost", "evil.example")] == [200, 200, 400]
    with serving(tiny_model, tmp_path / "listed", "--allowed-hosts", "one.example, *.two.example") as listed:
        found = [answered(listed.url, host) for host in ("one.example", "a.two.example", "localhost", "evil.example")]
        assert found == [200, 200, 200, 400]
    with serving(tiny_model, tmp_path / "everywhere", "--host", "0.0.0.0") as everywhere:
        url = everywhere.url.replace("0.0.0.0", "127.0.0.1")
        assert [answered(url, host) for host in ("evil.example", "10.0.0.7:8080")] == [200, 200]


_UPLOAD = b'{"inputs": "slow"}'
_HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def upload(running: Server) -> socket.socket:
    """Start a request, and return once the server is reading its body."""
    uploading = connect(running.url)
    uploading.sendall(_HEAD % len(_UPLOAD) + _UPLOAD[:5])
    wait_for(lambda: "e5onnx_requests_in_flight 2.0" in httpx.get(f"{running.url}/metrics").text)
    return uploading


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
def test_requests_in_flight_are_answered_after_a_signal(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path / "log", "--drain-seconds", "0.1") as running, upload(running) as uploading:
        running.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                connect(running.url).close()
                time.sleep(0.02)
        uploading.sendall(_UPLOAD[5:])
        assert uploading.recv(2**20).startswith(b"HTTP/1.1 200 ")
        assert running.process.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
def test_the_first_signal_turns_health_red_and_the_second_ends_it_at_once(tiny_model: Path, tmp_path: Path) -> None:
    options = ("--drain-seconds", "3600")
    with serving(tiny_model, tmp_path / "log", *options) as running, httpx.Client(base_url=running.url) as client:
        assert client.get("/health").status_code == 200  # and stays connected
        with upload(running):
            running.process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/health").status_code == 503)
            assert client.get("/health").headers["connection"] == "close"
            assert client.get("/ping").status_code == 200  # or the process would be replaced before it is done
            assert client.post("/embed", json={"inputs": "late"}).status_code == 200
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(60) == 0
        assert running.log()[-1]["event"] == "ended"
        uploads = [line["status"] for line in running.log() if line.get("path") == "/embed"]
        assert uploads == [200, 0]  # the server did not wait for the upload
