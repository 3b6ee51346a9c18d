"""What the service does under load, beside what this machine can do at all: python -m tests.bench, or make bench."""

import argparse
import sys

from service.errors import TailGuardError
from tests.bench import arguments


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    arguments.add_arguments(parser)
    try:
        return arguments.main(parser.parse_args())
    except TailGuardError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
