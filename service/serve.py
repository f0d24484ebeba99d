"""Starting the service: in place of this process, or beside it while a `with` block runs."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from service.settings import Settings

SERVICE = "service.app:Graftline"
# What is left for BentoML to wait after the service has drained; without a limit, it waits for open streams for ever.
LAST_S = 5
_ROOT = Path(__file__).resolve().parent.parent


class ServerFailed(RuntimeError):
    """The service ended, or was not ready in time."""


class UnusableAddress(ValueError):
    """Nothing can listen there."""


@dataclass(frozen=True)
class Server:
    url: str  # http://HOST:PORT
    process_id: int
    log_file: Path

    @property
    def openai_url(self) -> str:
        """What an OpenAI client takes as its base_url."""
        return f"{self.url}/v1"


def serve(settings: Settings) -> NoReturn:
    """Becomes `bentoml serve`: signals and the exit status are the server's own."""
    os.execve(sys.executable, _command(settings), _environment(settings))


@contextlib.contextmanager
def start_server(settings: Settings, *, log_file: Path, timeout_s: float = 120.0, target: str = SERVICE) -> Iterator[Server]:
    """A server that answers, stopped when the block ends. Its output goes to the file.

    `target` may also be a Bento's directory.
    """
    check_address(settings.host, settings.port)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    server_url = f"http://{settings.host}:{settings.port}"
    with log_file.open("ab") as output:
        # A session of its own: a Ctrl-C at the terminal is for us, who then stop it in order.
        process = subprocess.Popen(
            _command(settings, target),
            env=_environment(settings, target),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, server_url, log_file, timeout_s)
        yield Server(server_url, process.pid, log_file)
    finally:
        _stop(process, settings.grace_s)


def check_address(host: str, port: int) -> None:
    """UnusableAddress unless the address is one of this machine and free."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError as error:
        raise UnusableAddress(f"A host is an IP address such as 127.0.0.1 or 0.0.0.0, but got {host!r}.") from error
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        way_out = (
            "Stop what listens there, or pass another --port" if error.errno == errno.EADDRINUSE else "Correct --host or --port"
        )
        raise UnusableAddress(
            f"The service must be able to listen on {host}:{port}, but cannot: {error.strerror}. {way_out}."
        ) from error


def _command(settings: Settings, target: str = SERVICE) -> list[str]:
    address = ["--host", settings.host, "--port", str(settings.port)]
    return [sys.executable, "-m", "bentoml", "serve", target, *address, "--timeout-graceful-shutdown", str(LAST_S)]


def _environment(settings: Settings, target: str = SERVICE) -> dict[str, str]:
    inherited = dict(os.environ)
    inherited_path = inherited.pop("PYTHONPATH", None)
    # A Bento runs from its own files, never from ours.
    places = (str(_ROOT), inherited_path) if target == SERVICE else ()
    store = settings.home.expanduser().absolute() / "bentoml"
    store.mkdir(parents=True, exist_ok=True)
    return {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(store),
        **inherited,
        **settings.environment(),
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
    }


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log_file: Path, timeout_s: float) -> None:
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        if process.poll() is not None:
            ended = f"The service ended with status {process.returncode} before it was ready"
            raise ServerFailed(f"{ended}:\n{_last_lines(log_file)}")
        if _is_ready(url):
            return
        time.sleep(0.2)
    raise ServerFailed(f"The service must be ready within {timeout_s:g} s, but was not:\n{_last_lines(log_file)}")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_lines(log_file: Path, count: int = 20) -> str:
    lines = log_file.read_text(errors="replace").splitlines()[-count:]
    return "\n".join([*lines, f"(all of it: {log_file})"])


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Asks, waits for running streams, and after the grace ends the whole session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s + LAST_S + 5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
