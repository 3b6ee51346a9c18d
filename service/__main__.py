"""Serve a bundle, inspect it, or score files with it. Settings are TAILGUARD_ variables: see service/README.md."""

import argparse
import json
import signal
import sys
from pathlib import Path

from service import logs, recalibrate, score, settings
from service.browser import command as browser
from service.bundles import addresses, push
from service.contract import bundle, exemplars, outcomes
from service.contract.bundle import BundleError
from service.convert import command as conversion
from service.costs import command as costs
from service.deploy import command as promotion
from service.errors import SettingsError, TailGuardError
from service.inference.engine import Engine
from service.review import command as review
from service.settings.places import is_address
from service.web import server
from service.web.routes import model as describe


def inspect(chosen: argparse.Namespace) -> int:
    """Print the summary of a bundle after verifying every hash, its exemplars and its heat map; or, with costs, what
    these would have come to."""
    named: str = chosen.bundle
    path = addresses.fetched(named, settings.load().bundle_cache) if is_address(named) else Path(named)
    if chosen.costs is not None:
        return costs.main(path, chosen.costs, chosen.out, chosen.point or costs.POINT)
    if chosen.out is not None or chosen.point is not None:
        option = "--point names" if chosen.out is None else "--out writes"
        raise SettingsError(f"{option} an operating point of least cost: give --costs FILE too")
    manifest = bundle.read(path)
    exemplars.read(path, manifest)
    outcomes.read(path, manifest)
    if manifest.heat_map is not None:
        Engine(path, manifest).verify_heat_map()
    shown = describe.summary(manifest, "none", manifest.default_operating_point, manifest.threshold_scope)
    print(json.dumps(shown.model_dump(mode="json", exclude={"provider"}), indent=1, ensure_ascii=False))
    return 0


def parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    """The arguments of the chosen command, serve if none is. `prog` is how it was called, for its help."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    command("serve", "serve a bundle over HTTP (the default). Settings are environment variables, TAILGUARD_BUNDLE and "
            "TAILGUARD_PORT say; service/README.md lists them")  # fmt: skip
    look = command("inspect", "verify a bundle and print its summary, or what its decisions cost")
    look.add_argument("bundle", help="its folder, or an address such as s3://models/shop/3")
    look.add_argument("--costs", type=Path, metavar="FILE", help="JSON or CSV of what a wrong accept, a refusal and an "
                      "accepted unknown cost: what that would have come to on calibration images")  # fmt: skip
    look.add_argument("--out", type=Path, help="with --costs: the new bundle <models>/<name>/<version> with thresholds "
                      "of least cost")  # fmt: skip
    look.add_argument("--point", help=f"the name of its operating point (default {costs.POINT})")
    score.add_arguments(command("score", "score folders of images into a table, without a server"))
    promotion.add_arguments(command("promote", "put a running service's shadow in force, or go back"))
    recalibrate.add_arguments(command(
        "recalibrate", "measure the thresholds of a bundle anew on reviewed rows of a ledger"
    ))  # fmt: skip
    browser.add_arguments(command("web", "write a bundle as a folder that classifies in the browser"))
    push.add_arguments(command("push", "copy a bundle to where others fetch it"))
    conversion.add_arguments(command("convert", "write the graph for another runtime, checked"))
    review.add_arguments(command("review", "export what people said of kept images, or import it"))
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        serves = chosen.command in (None, "serve")
        hint = f": settings of the service are variables, such as {settings.PREFIX}PORT=8001" if serves else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return chosen


def main(arguments: list[str] | None = None, prog: str = "python -m service") -> int:
    """Run one command; the exit status, after one line on standard error where it failed."""
    chosen = parse(arguments, prog)
    try:
        if chosen.command not in (None, "serve"):
            logs.to_stderr()
        if chosen.command == "inspect":
            return inspect(chosen)
        if chosen.command == "score":
            return score.main(chosen)
        if chosen.command == "promote":
            return promotion.main(chosen)
        if chosen.command == "recalibrate":
            return recalibrate.main(chosen)
        if chosen.command == "web":
            return browser.main(chosen)
        if chosen.command == "push":
            return push.main(chosen)
        if chosen.command == "convert":
            return conversion.main(chosen)
        if chosen.command == "review":
            return review.main(chosen)
        config = settings.load()
        logs.configure(config.log_format)
        return server.serve(config, _fail)
    except (BundleError, TailGuardError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:  # where nothing else answers to it: before the server runs, while push or promote waits
        _fail("stopped by SIGINT")
        return 128 + signal.SIGINT


def _fail(message: str) -> int:
    print(f"tailguard: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
