"""A real S3-compatible server of the tests' own (moto's), on a free port of this machine; its content is in memory."""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

START_S = 60
BUCKET = "images"
NO_SECRET = "tests"  # the server takes any


def missing() -> str | None:
    """Why there can be no server here; None when there can."""
    wanted = [name for name in ("fsspec", "s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
    return f"{', '.join(wanted)} not installed (pip install 'moto[server]' s3fs)" if wanted else None


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """The environment in which s3:// addresses are those of a running server with an empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not _made_bucket(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("moto's server does not start: python -m moto.server")
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": NO_SECRET, "AWS_SECRET_ACCESS_KEY": NO_SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
    finally:
        process.kill()
        process.wait()


def new_connections() -> None:
    """Have this process read the environment again: fsspec keeps what it has connected to."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def _made_bucket(url: str) -> bool:
    authorised = {"authorization": f"AWS4-HMAC-SHA256 Credential={NO_SECRET}/20260101/us-east-1/s3/aws4_request"}
    try:
        request = urllib.request.Request(f"{url}/{BUCKET}", b"", authorised, method="PUT")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
