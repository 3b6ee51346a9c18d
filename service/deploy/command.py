"""The promote command: asks a running service over HTTP, and prints its numbers."""

import argparse
import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from service.deploy import evidence
from service.errors import TailGuardError
from service.settings import PREFIX

TIMEOUT_S = 600  # reviewed images are looked at behind the traffic


class CannotPromote(TailGuardError):
    """What the service answered, or that it cannot be reached."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard promote`."""
    parser.add_argument("bundle", nargs="?", help="its folder there, or its address; not given: the shadow")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (default %(default)s)")
    parser.add_argument("--key", help="an API key with the role admin, where the service has keys")
    parser.add_argument(
        "--shadow", action="store_true", help="only load the bundle as the shadow; none given: have none"
    )
    parser.add_argument(
        "--share", type=float, help=f"of the images that the shadow sees (default {PREFIX}SHADOW_SHARE)"
    )
    usual = evidence.Limits()
    least, most = {"type": int, "metavar": "N"}, {"type": float, "metavar": "SHARE"}
    for name, kind, what in (
        ("least_compared", least, "images that both have seen"),
        ("most_disagreement", most, "of those accepted before, that are refused or named otherwise now"),
        ("most_newly_accepted", most, "of all, that were refused and are accepted now as a class that nobody reviewed"),
        ("least_reviewed", least, "reviewed images, not trained on, that it has seen"),
    ):
        text = f"{what} (default {getattr(usual, name):g})"
        parser.add_argument(f"--{name.replace('_', '-')}", **kind, help=text)  # type: ignore[arg-type]
    parser.add_argument("--force", action="store_true", help="whatever the evidence says")
    parser.add_argument("--back", action="store_true", help="put the bundle before this one in force again")
    parser.add_argument("--to", metavar="NAME/VERSION", help="with --back: an earlier one by name")


LIMITS = ("least_compared", "most_disagreement", "most_newly_accepted", "least_reviewed")


def main(args: argparse.Namespace) -> int:
    """Ask, and print the answer. Raises CannotPromote with what the service says."""
    _require_together(args)
    if args.back:
        answer = ask(args, "POST", "back", {"to": args.to})
        print(f"back to {_named(answer)}")
    elif args.shadow:
        answer = ask(args, "PUT", "shadow", {"path": args.bundle, "share": args.share})
        print(f"the shadow is {_named(answer)}" if answer["path"] else "there is no shadow any more")
    else:
        limits = {k: getattr(args, k) for k in LIMITS}
        asked = {"path": args.bundle, "force": args.force} | {k: v for k, v in limits.items() if v is not None}
        answer = ask(args, "POST", "promote", asked)
        print(f"in force: {_named(answer['in_force'])}")
        if (known := answer["evidence"]) is not None:
            print("\n".join(_lines(known)))
    return 0


def _require_together(args: argparse.Namespace) -> None:
    """Raise CannotPromote for what would be passed over: without --back, --to put the shadow in force."""
    if args.to is not None and not args.back:
        raise CannotPromote(f"--to {args.to} goes with --back: give both")
    if args.share is not None and not args.shadow:
        raise CannotPromote(f"--share {args.share:g} goes with --shadow: give both")
    if args.back and (args.shadow or args.bundle is not None):
        raise CannotPromote("--back takes neither a bundle nor --shadow: name an earlier one by --to NAME/VERSION")
    given = [name for name in LIMITS if getattr(args, name) is not None] + ["force"] * args.force
    if given and (args.back or args.shadow):
        raise CannotPromote(f"--{given[0].replace('_', '-')} says nothing to --back or --shadow: leave it out")


def ask(args: argparse.Namespace, method: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /admin/<route>."""
    headers = {"content-type": "application/json"}
    if args.key:
        headers["x-api-key"] = args.key
    data = json.dumps({k: v for k, v in body.items() if v is not None}).encode()
    try:
        request = urllib.request.Request(f"{args.url.rstrip('/')}/admin/{route}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise CannotPromote("the API key is missing or wrong: give one with the role admin by --key") from error
        raise CannotPromote(_detail(error)) from error
    except (OSError, ValueError, HTTPException) as error:
        raise CannotPromote(f"{args.url} cannot be asked ({error}): is the service there, and is it http?") from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError):
        return f"the service answered {error.code} {error.reason}"


def _named(answer: dict[str, Any]) -> str:
    return f"{answer['name']} version {answer['version']}, graph {answer['sha256'][:16]}"


def _lines(known: dict[str, Any]) -> list[str]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    return [
        f"compared on {known['compared']} images, differed on {share(known['disagreement'])} of the "
        f"{known['accepted']} that were accepted, newly accepts {share(known['newly_accepted'])} under classes that "
        "nobody reviewed for it",
        f"right on {known['sampled']} sampled reviewed images: {share(known['right_before'])} before, "
        f"{share(known['right_after'])} now",
        f"of {known['outliers']} confirmed outliers, refuses {share(known['caught'])}",
        *(f"although {objection}" for objection in known["objections"]),
    ]
