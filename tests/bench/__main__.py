"""What the service does under load, beside what this machine can do at all: python -m tests.bench, or make bench."""

import argparse
import sys
from pathlib import Path

from service.errors import TailGuardError
from tests.bench import command


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of the command, as `command.run` takes them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--url", help="measure the service at http://HOST:PORT; default: start one and end it")
    parser.add_argument("--key", help="API key to send; default: TAILGUARD_API_KEY")
    parser.add_argument("--concurrency", type=connections, metavar="N,N",
                        help="connections of each level, default 1,8,64,256; with --framework 8")  # fmt: skip
    parser.add_argument("--image", nargs="+", metavar="FILE", help="what to send; default: a 155 KB and a 1.3 KB JPEG")
    parser.add_argument("--seconds", type=positive, help="of each level, default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured there")
    parser.add_argument("--quick", action="store_true", help="shorter levels, the larger image only: done within 30 s")
    parser.add_argument("--ignore-retry-after", action="store_true",
                        help="send again at once after 429 and 503; default: wait as told, at most 0.1 s")  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--framework", action="store_true",
                      help="CPU per request with decoding and the model replaced by no-ops")  # fmt: skip
    kind.add_argument("--threads", action="store_true", help="compare inference threads x intra-op threads")
    return parser.parse_args(arguments)


def connections(text: str) -> tuple[int, ...]:
    """ "1,8,64" as numbers."""
    found = tuple(int(part) for part in text.split(",") if part.strip().isdecimal() and int(part) > 0)
    if len(found) != text.count(",") + 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers above 0 such as 1,8,64")
    return found


def positive(text: str) -> float:
    """A number of seconds above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON. 0, or 1 when nothing was answered at some level or it was refused."""
    try:
        return command.run(parse(arguments))
    except TailGuardError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
