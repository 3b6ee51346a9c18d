"""What a call raises when there is no answer."""

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
