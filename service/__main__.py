"""python -m service serve | inspect | score. Settings are TAILGUARD_ variables: see service/settings.py."""

import argparse
import json
import sys

from service import logs, score, settings
from service.contract import bundle
from service.contract.bundle import BundleError
from service.errors import TailGuardError
from service.web import server
from service.web.routes import model as describe


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
    score.add_arguments(commands.add_parser("score", help="score folders of images into a table, without a server"))
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "inspect":
            return inspect(chosen.bundle)
        if chosen.command == "score":
            return score.main(chosen)
        config = settings.load()
        logs.configure(config.log_format)
        return server.serve(config, _fail)
    except (BundleError, TailGuardError) as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"tailguard: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
