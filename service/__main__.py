"""python -m service serve | inspect BUNDLE. Settings come from TAILGUARD_ variables; see service/settings.py."""

import argparse
import json
import math
import signal
import socket
import sys
from types import FrameType

import structlog
import uvicorn

from service import bundle, describe, logs, settings
from service.app import Service, create_app
from service.bundle import BundleError
from service.errors import TailGuardError
from service.settings import Settings

log = structlog.get_logger()


class Server(uvicorn.Server):
    """Not ready from the first signal on, then the drain; a second signal ends it hard."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for listener in server.sockets:
                    host, port = listener.getsockname()[:2]
                    log.info(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)


def serve(config: Settings) -> int:
    """Run the service until a signal. The exit code: 0 after a drain, 1 when it could not start."""
    logs.configure(config.log_format)
    log.info("settings", **config.printable())
    app = create_app(config)
    service: Service = app.state.service
    server = Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_config=None,
            log_level="critical",  # failures are said once, below and in the middleware, without a traceback
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(config.drain_s),
        ),
        service,
    )
    for sig in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after its drain, which is our exit 0
        signal.signal(sig, lambda *_: None)
    try:
        server.run()
    except SystemExit as stop:  # uvicorn's way to say that it could not start
        cause = service.failure or stop.__context__
        where = "" if service.failure else f"cannot listen on {config.host}:{config.port}: "
        return _fail(f"{where}{cause}")
    return 0


def inspect(path: str) -> int:
    """Print the summary of a bundle after verifying every hash."""
    manifest = bundle.read(path)
    shown = describe.summary(manifest, "none", manifest.default_operating_point, manifest.threshold_scope)
    print(json.dumps(shown.model_dump(mode="json", exclude={"provider"}), indent=1, ensure_ascii=False))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="serve a bundle over HTTP (the default)")
    commands.add_parser("inspect", help="verify a bundle and print its summary").add_argument("bundle")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "inspect":
            return inspect(chosen.bundle)
        return serve(settings.load())
    except (BundleError, TailGuardError) as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"tailguard: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
