"""Ray for both sides: one way to a cluster, its quiet, its end, and what went wrong on it in one line.

    with joined(cpus=4, extras="cpu,ray") as ray:
        for row in ray.data.from_items(items).map(Work, …).iter_rows(): ...

Nothing of Ray is imported before that.
"""

import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from service.contract.lines import one_line
from service.errors import TailGuardError

ADDRESS = "RAY_ADDRESS"
ANSWER_S = 10.0
QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of its C++ parts, which write to this terminal past every logger
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
MOST_BLOCKS = 2000  # of items that Ray Data plans with
_interrupted = threading.Event()  # by Ctrl-C, since this program has begun its work on the cluster


class ClusterError(TailGuardError):
    """There is no Ray, no cluster, or the work on it failed for good."""


def require_ray() -> Any:
    """Ray with Ray Data. Raises ClusterError where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)  # read when it is imported
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(f"--on ray needs Ray Data ({one_line(error)}): pip install 'tailguard[ray]'") from error
    return ray


@contextmanager
def joined(cpus: int, extras: str) -> Iterator[Any]:
    """Ray, joined to the cluster of RAY_ADDRESS, or to one of this machine that leaves neither processes nor files.

    `cpus` of a cluster of its own. `extras` of the package that a worker needs, for a message. A cluster that this
    program has joined already is used and left as it is. Any error of Ray in the block is raised as ClusterError.
    """
    ray = require_ray()
    try:
        if ray.is_initialized():
            yield ray
            return
        with _begun(ray, cpus):
            yield ray
    except (GeneratorExit, TailGuardError):
        raise
    except Exception as error:  # Ray has many
        raise ClusterError(f"the run on Ray failed: {reason(error, extras)}") from error


@contextmanager
def _begun(ray: Any, cpus: int) -> Iterator[None]:
    address, session = _address(), ""
    mine = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code: dict[str, Any] = {"runtime_env": {"py_modules": _code(), "excludes": ["__pycache__", "*.json", "*.png"]}}
    own = code if address else {"num_cpus": cpus, "include_dashboard": False}
    try:
        context = ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        session = "" if address else context.address_info["session_dir"]
        for number, handler in mine.items():  # Ray takes them for itself
            signal.signal(number, handler)
        if mine[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        yield
    finally:
        signal.signal(signal.SIGINT, mine[signal.SIGINT])
        _interrupted.clear()
        ray.shutdown()
        if session:
            shutil.rmtree(session, ignore_errors=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """As Python does; `planned` raises again where the exception is lost in a destructor that Ray runs just then."""
    _interrupted.set()
    signal.default_int_handler(number, frame)


def _code() -> list[str]:
    """Our packages as they are here, which travel to the cluster: another version there would make other rows."""
    return [str(Path(sys.modules[name].__path__[0])) for name in ("service", "training") if name in sys.modules]


@contextmanager
def planned(
    ray: Any, items: list[dict[str, Any]], actor: type, arguments: tuple[Any, ...], workers: int | None
) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows that `actor`(*arguments) makes of each item, in order, by actors of one core each.

    `workers` None: as many as the cluster has cores. An item whose worker is lost is given to another.
    """
    settings = ray.data.DataContext.get_current()
    settings.execution_options.preserve_order = True
    settings.enable_progress_bars = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    actors = min(len(items), workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
    blocks = min(len(items), MOST_BLOCKS)
    rows = ray.data.from_items(items, override_num_blocks=blocks).map(
        actor, fn_constructor_args=arguments, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=actors)
    ).iter_rows()  # fmt: skip
    with closing(_until_interrupted(rows)) as held:  # Ray's work ends here, while the cluster that it asks still is
        del rows
        yield held


def _until_interrupted(rows: Iterator[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
    for row in rows:
        if _interrupted.is_set():
            break
        yield row
    if _interrupted.is_set():  # also where the loss has ended Ray's rows early
        raise KeyboardInterrupt


def reason(error: BaseException, extras: str) -> str:
    """What went wrong, of all the tracebacks that Ray passes on: the last line that names an error."""
    said = "\n".join(str(each) for each in (error, error.__cause__) if each is not None)
    if lacking := re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", said):
        return (
            f"a worker lacks the package {lacking[1]}: install on every node of the cluster what is installed here, "
            f"pip install 'tailguard[{extras}]'"
        )
    if "AuthenticationError" in said:
        return "the cluster asks for the token of who began it (~/.ray/auth_token): set RAY_AUTH_MODE=token"
    lines = [line.strip() for line in said.splitlines() if re.match(r"\s*[\w.]*(Error|Exception): ", line)]
    return lines[-1][:300] if lines else one_line(error)


def _address() -> str | None:
    """That of RAY_ADDRESS, once it answers: Ray itself would try for minutes. None: a cluster of our own is wanted."""
    address = os.environ.get(ADDRESS, "")
    if address in ("", "local"):
        return None
    if address == "auto":
        return address
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ClusterError(
            f"{ADDRESS}={address}: give HOST:PORT of the head node (6379 unless chosen) on a machine of the cluster, "
            "auto for a cluster that runs on this machine, or leave it out for one of its own"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise ClusterError(
            f"{ADDRESS}={address} does not answer ({error.strerror or error}): start the cluster (ray start --head), "
            "or leave it out"
        ) from error
    return address
