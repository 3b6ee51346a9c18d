"""nginx or HAProxy with the project's own configuration, in front of services on this machine."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FILES = Path(__file__).resolve().parents[2] / "docker" / "proxy"
PROGRAMS = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}
START_S = 30


def missing(name: str) -> str | None:
    """Why there can be no such proxy here; None when there can."""
    return None if _program(name) else f"{name} is not installed (apt-get install {name})"


@contextmanager
def proxy(name: str, ports: Sequence[int], folder: Path) -> Iterator[int]:
    """The port of a proxy before the services on `ports`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (FILES / PROGRAMS[name]).read_text()
    for number, service in enumerate(ports, 1):
        text = text.replace(f"replica-{number}:8000", f"127.0.0.1:{service}")
    text = re.sub(r"(listen |bind :)8080", lambda found: f"{_bound(found[1])}{port}", text)
    path = folder / PROGRAMS[name]
    if name == "nginx":  # its folders are the system's, unless told
        places = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in
                         ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))  # fmt: skip
        text = text.replace("http {\n", f"http {{\n    access_log off;\n{places}", 1)
        text = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/log;\n{text}"
        command = ["-c", str(path), "-p", str(folder), "-e", str(folder / "log")]
    else:
        command = ["-db", "-f", str(path)]
    path.write_text(text)
    program = _program(name)
    assert program is not None
    with (folder / "out").open("w") as out:
        process = subprocess.Popen([program, *command], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not start: {(folder / 'out').read_text()}")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(START_S)


def _bound(words: str) -> str:
    return "listen 127.0.0.1:" if words.startswith("listen") else "bind 127.0.0.1:"


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
