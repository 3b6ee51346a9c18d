"""By when a request wants its answer: X-Request-Timeout-Ms, or the setting, whichever is sooner."""

import asyncio
from time import perf_counter

from fastapi import Request

from service.errors import InvalidParameter

HEADER = "x-request-timeout-ms"


def deadline_of(request: Request, longest_s: float) -> tuple[float, float]:
    """The deadline in the event loop's time, counted from the request's beginning, and the seconds it gives.

    Raises InvalidParameter unless the header is a whole number of milliseconds from 1.
    """
    timeout_s = longest_s
    given = request.headers.get(HEADER)
    if given is not None:
        if not given.isdecimal() or not given.isascii() or len(given) > 12 or int(given) < 1:
            raise InvalidParameter(f"X-Request-Timeout-Ms={given[:100]} is not valid: send whole milliseconds from 1")
        timeout_s = min(longest_s, int(given) / 1e3)
    already_s = perf_counter() - float(request.state.started)
    return asyncio.get_running_loop().time() - already_s + timeout_s, timeout_s
