"""python -m service serve | inspect | score | bench. Settings are TAILGUARD_ variables: see service/settings.py."""

import argparse
import json
import sys

from service import bench, bundle, describe, logs, score, server, settings
from service.bundle import BundleError
from service.errors import TailGuardError


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
    bench.add_arguments(commands.add_parser("bench", help="measure the service against the limit of this machine"))
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "inspect":
            return inspect(chosen.bundle)
        if chosen.command == "score":
            return score.main(chosen)
        if chosen.command == "bench":
            return bench.main(chosen)
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
