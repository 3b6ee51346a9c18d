"""The process: uvicorn with our protocol, an end that answers what is in flight, and one clear line when it fails.

first TERM   not ready at once; still serving for `drain_grace_s`, so that balancers notice; then no new
             connections, what is in flight is answered within `drain_s`, exit 0
first INT    the same without the grace: whoever presses Ctrl-C has no balancer
a second signal, or the end of both times: the process ends hard
HUP          the keys are read again
"""

import asyncio
import gc
import math
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import structlog
import uvicorn

from service import process
from service.errors import SettingsError
from service.runtime import Runtime
from service.settings import Settings
from service.web.access import Keys
from service.web.app import create_app
from service.web.connection import Protocol
from service.web.limits import BodyBudget

SPARE_FILES = 64  # descriptors kept for everything that is no connection
TICKS_PER_CHECK = 10  # of uvicorn's, ten a second
HARD_END_S = 2.0  # after grace and drain, for the loop's own end

log = structlog.get_logger()


class DrainingServer(uvicorn.Server):
    """uvicorn's server with the end described above."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._stop_at: float | None = None  # time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What exists now lives to the end: the collector need not walk it again and again while requests wait.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        if self.started:
            for server in self.servers:
                for listener in server.sockets:
                    host, port = listener.getsockname()[:2]
                    log.info(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stop_at is not None:
            os._exit(128 + sig)
        settings = self._runtime.settings
        grace_s = settings.drain_grace_s if sig == signal.SIGTERM else 0.0
        self._runtime.draining = True
        self._stop_at = time.monotonic() + grace_s
        end = threading.Timer(grace_s + settings.drain_s + HARD_END_S, os._exit, (1,))
        end.daemon = True
        end.start()

    async def on_tick(self, counter: int) -> bool:
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        if counter % TICKS_PER_CHECK == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.check(now)
        return await super().on_tick(counter)


def serve(settings: Settings, fail: Callable[[str], int]) -> int:
    """Run the service until a signal. The exit code: 0 after a drain, `fail(message)` when it could not start."""
    process.prepare()
    log.info("settings", **settings.printable())
    app = create_app(settings)
    runtime: Runtime = app.state.runtime
    keys: Keys = app.state.keys

    class BoundedProtocol(Protocol):
        max_connections = _open_files(settings.max_connections)
        idle_timeout_s = settings.idle_timeout_s
        budget: BodyBudget = app.state.budget

    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=BoundedProtocol,
            ws="none",
            proxy_headers=False,  # nothing here depends on the client's address, and headers can name any
            log_config=None,
            log_level="critical",  # failures are said once, here and in the middleware, without a traceback
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.drain_s),
        ),
        runtime,
    )
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: _reload(keys))
    try:
        server.run()
    except SystemExit as stop:  # uvicorn's way to say that it could not start
        cause = runtime.failure or stop.__context__
        where = "" if runtime.failure else f"cannot listen on {settings.host}:{settings.port}: "
        return fail(f"{where}{cause}")
    return 0


def _reload(keys: Keys) -> None:
    with suppress(SettingsError):  # said in the log; raised out of a signal handler it would end the event loop
        keys.reload()


def _open_files(wanted: int) -> int:
    """Raise the limit of open files as far as needed and allowed; how many connections fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + SPARE_FILES:
        soft = wanted + SPARE_FILES if hard == resource.RLIM_INFINITY else min(hard, wanted + SPARE_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))
