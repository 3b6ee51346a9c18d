"""What a machine with a GPU can say of this project, in order of worth: python -m tests.gpu, or make gpu-check.

Every step leaves <out>/results/<step>.json. What is there is skipped; what takes longer than the limit is interrupted,
keeps its checkpoint, and goes on when the same command is given again. Exit code 0: all steps have their result or lack
what is named; 1: a step failed; 3: something is unfinished, call again.
"""

import argparse
import sys
from pathlib import Path

from tests.gpu import driver, found, summary
from tests.gpu.driver import CheckError
from tests.gpu.step import LIMIT_S, Given, Step, write
from tests.gpu.steps import MODELS, STEPS

DONE, FAILED, AGAIN = 0, 1, 3


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: runs/gpu-check, with --small runs/gpu-check-small")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="with cifar-10-batches-py, cifar-100-python, outliers/*.npy, ood/*.npy")  # fmt: skip
    parser.add_argument("--steps", metavar="A,B", help="only these")
    parser.add_argument("--list", action="store_true", help="the steps, what each is worth and takes, and no more")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="the rehearsal: every step on next to nothing")
    parser.add_argument("--step-minutes", type=float, default=LIMIT_S / 60, help="of a step in a call, default 9")
    parser.add_argument("--call-minutes", type=float, help="of this call; default: until every step had its turn")
    for key, model in MODELS.items():
        parser.add_argument(f"--weights-{key}", type=Path, metavar="FILE", help=f"of timm's {model.name}")
    given = parser.parse_args(arguments)
    given.weights = {k: f for k in MODELS if (f := getattr(given, f"weights_{k.replace('-', '_')}")) is not None}
    return given


def chosen(names: str | None, steps: tuple[Step, ...] = STEPS) -> list[Step]:
    """The steps to run, in order of worth whatever the order of `names`. Raises CheckError for an unknown one."""
    known = {step.name: step for step in steps}
    wanted = list(known) if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise CheckError(f"--steps {','.join(unknown)}: there is no such step; there are {', '.join(known)}")
    return [step for step in steps if step.name in wanted]


def main(arguments: list[str] | None = None, steps: tuple[Step, ...] = STEPS) -> int:
    """Run the steps, print and write the summary; the exit code."""
    args = parse(arguments)
    if args.list:
        print(summary.listing(steps))
        return DONE
    try:
        return _check(args, chosen(args.steps, steps))
    except CheckError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return FAILED


def _check(args: argparse.Namespace, steps: list[Step]) -> int:
    out = args.out or Path("runs/gpu-check-small" if args.small else "runs/gpu-check")
    for file in args.weights.values():
        if not file.is_file():
            raise CheckError(f"{file}: there is no such file of weights")
    given = Given(
        out.resolve(), args.device, args.small, args.data and args.data.resolve(),
        {key: path.resolve() for key, path in args.weights.items()},
    )  # fmt: skip
    missing = found.missing(given, {name for step in steps for name in step.needs})
    for sentence in missing.values():
        print(f"missing: {sentence}", file=sys.stderr)
    outcomes = driver.run(
        steps, given, missing, found.machine(args.device), limit_s=60 * args.step_minutes,
        call_s=None if args.call_minutes is None else 60 * args.call_minutes,
    )  # fmt: skip
    text = summary.markdown(outcomes, given)
    write(given.out / "SUMMARY.md", text)
    print(text)
    states = {outcome.state for outcome in outcomes}
    return FAILED if "failed" in states else AGAIN if "unfinished" in states else DONE


if __name__ == "__main__":
    sys.exit(main())
