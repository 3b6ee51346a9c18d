"""What a call raises when there is no answer."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from service.web.schemas import Problem


class ClientError(Exception):
    """There is no answer; the message says why."""


class ProblemError(ClientError):
    """The service refused. `problem` is what it said (RFC 9457); `retry_after_s` None where it named no time."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem
        self.retry_after_s = retry_after_s


class Unreachable(ClientError):
    """Nobody answered at the address, or the connection broke, each time it was tried."""


def seconds_of(retry_after: str) -> float | None:
    """What the header asks for: seconds, or those until the moment that it names, as some proxies do.

    None where it is neither, and where that moment is over by the clock here, which may be wrong.
    """
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    left_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return left_s if left_s > 0 else None
