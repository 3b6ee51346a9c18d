"""schemathesis over the OpenAPI document of a real server: no 5xx, and every answer is one that the document promises.

    python -m tests.fuzz.api [--examples 200] [--seed 0]     # needs: pip install schemathesis

Three servers are asked everything the document lists, with valid and with invalid requests: one without keys, one with
keys and a client that has none, and one with a client that has an admin key.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from tqdm import tqdm

from tests.hard.server import serving

KEY, ADMIN_KEY = "fuzz-key", "fuzz-admin-key"
CHECKED = (
    "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
)  # fmt: skip
CLIENTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {  # settings of the server, headers of the client
    "no keys": ({}, {}),
    "keys, and none sent": ({"API_KEY": KEY, "ADMIN_KEYS": f"ops={ADMIN_KEY}"}, {}),
    "an admin key": ({"API_KEY": KEY, "ADMIN_KEYS": f"ops={ADMIN_KEY}"}, {"X-API-Key": ADMIN_KEY}),
}


@dataclass
class Found:
    """`statuses` of all answers; `wrong`: one entry for each operation that broke its promise."""

    statuses: Counter[int] = field(default_factory=Counter)
    operations: int = 0
    wrong: list[str] = field(default_factory=list)


def fuzz(client: str, examples: int, seed: int | None = None) -> Found:
    """Ask one server as `client`, `examples` valid and as many invalid requests for each operation.

    Without `seed` the requests are the same in every run.
    """
    settings, headers = CLIENTS[client]
    found = Found()
    with serving(found.wrong, **settings) as server:
        url = f"http://127.0.0.1:{server.port}"
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for operation in tqdm(_operations(schema), unit="operation", disable=not sys.stderr.isatty()):
            found.operations += 1
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    _ask(operation, mode, headers, examples, seed, found.statuses)
                except hypothesis.errors.Unsatisfiable:
                    continue  # what takes nothing has no invalid request
                except (Exception, BaseExceptionGroup) as error:
                    found.wrong.append(f"{client}: {operation.label}: {_said(error)}")
    return found


def _operations(schema: Any) -> list[Any]:
    return [result.ok() for result in schema.get_all_operations()]


def _ask(
    operation: Any, mode: GenerationMode, headers: dict[str, str], examples: int, seed: int | None, seen: Counter[int]
) -> None:
    load_all_checks()
    checks = CHECKS.get_by_names(list(CHECKED))

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=seed is None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        response = case.call(headers=headers, timeout=60)
        seen[response.status_code] += 1
        # Whoever asks for an answer within 2 ms is told in 504 that there is none.
        late = response.status_code == 504 and "X-Request-Timeout-Ms" in (case.headers or {})
        assert response.status_code < 500 or late, f"{response.status_code} {response.text[:500]}"
        case.validate_response(response, checks=checks)

    (one if seed is None else hypothesis.seed(seed)(one))()


def _said(error: BaseException) -> str:
    return " | ".join(line.strip() for line in _lines(error) if line.strip())[:1500]


def _lines(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _lines(part)
    else:
        yield from f"{type(error).__name__}: {error}".splitlines()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="of each kind for each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CLIENTS, help="one of the clients")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
    wrong = []
    for client in [options.only] if options.only else CLIENTS:
        found = fuzz(client, options.examples, options.seed)
        shown = ", ".join(f"{n:,} × {s}" for s, n in sorted(found.statuses.items()))
        print(f"{client:<20} {'FAIL' if found.wrong else 'PASS'}   {found.operations} operations: {shown}", flush=True)
        wrong += found.wrong
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
