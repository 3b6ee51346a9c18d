"""`tailguard web BUNDLE --out DIR`: a bundle as a static folder that classifies in the browser alone."""

import argparse
import shlex
from pathlib import Path

from service import settings
from service.browser import folder, runtime
from service.bundles import addresses
from service.contract.bundle import BundleError
from service.settings.places import bundle_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard web`."""
    parser.add_argument("bundle", help="its folder, or an address such as s3://models/shop/3")
    parser.add_argument("--out", type=Path, required=True, help="the new folder, for any web server or GitHub Pages")
    parser.add_argument("--runtime", type=Path, metavar="DIR",
                        help=f"{runtime.PACKAGE} {runtime.VERSION}: its folder dist, or its .tgz; not given: npm "
                        "fetches it once")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Write the folder, and print what it weighs; the exit status."""
    folder.require_free(args.out)
    source = bundle_source(args.bundle)
    path = source if isinstance(source, Path) else addresses.fetched(source, settings.load().bundle_cache)
    try:
        written = folder.write(path, args.out, runtime.found(args.runtime))
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""  # a full disk names none
        raise BundleError(f"{args.out} cannot be written: {error.strerror}{file}") from error
    whole, visitor, compressed = (f"{size / 1e6:.1f} MB" for size in written)
    print(f"{args.out}: {whole}, of which a visitor loads {visitor} once, {compressed} where the server compresses")
    print(f"to look at it: python3 -m http.server --directory {shlex.quote(str(args.out))}, then http://localhost:8000")
    return 0
