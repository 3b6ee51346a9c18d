"""A real PostgreSQL server of the tests' own, on a socket in a temporary folder; never as root, which it refuses."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 60
USER = "tailguard"


def missing() -> str | None:
    """Why there can be no server here; None when there can."""
    if not _programs():
        return "PostgreSQL is not installed (apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (pip install 'tailguard[postgres]')"
    return None if os.geteuid() else _account()[1]


def _programs() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


def _account() -> tuple[str | None, str | None]:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name, None
        except KeyError:
            continue
    return None, "PostgreSQL does not run as root, and there is no account postgres or nobody"


@contextmanager
def server() -> Iterator[Path]:
    """The folder of a running server's socket; see `url`."""
    programs = _programs()
    assert programs is not None
    user = None if os.geteuid() else _account()[0]
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    try:
        if user is not None:
            shutil.chown(folder, user)
        data, environ = folder / "data", os.environ | {"HOME": str(folder), "LC_ALL": "C.UTF-8"}
        create: list[str | Path] = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(create, user=user, cwd=folder, env=environ, check=True, capture_output=True)
        run: list[str | Path] = [
            programs / "postgres",
            "-D",
            data,
            "-k",
            folder,
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(run, user=user, cwd=folder, env=environ, stdout=log, stderr=log)
        try:
            ready: list[str | Path] = [programs / "pg_isready", "-q", "-h", folder, "-U", USER]
            deadline = time.monotonic() + START_S
            while subprocess.run(ready, check=False).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "log").read_text())
                time.sleep(0.05)
            yield folder
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            process.wait(START_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def url(folder: Path, database: str = "postgres") -> str:
    return f"postgresql://{USER}@/{database}?host={folder}"


def new_database(folder: Path, name: str, template: str = "template0") -> str:
    """The URL of a database that nothing has been in, or of a copy of `template`."""
    import psycopg

    with psycopg.connect(url(folder), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return url(folder, name)
