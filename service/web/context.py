"""What is known of one request while it is answered, in one typed object; and the runtime that a request came to."""

from dataclasses import dataclass

from fastapi import Request

from service.observe.metrics import ImageOutcome
from service.runtime import Runtime
from service.web.access import Key
from service.web.limits import BodyBudget

CONTEXT_KEY = "tailguard.context"  # of the ASGI scope

Stages = dict[str, tuple[float, float]]  # name → start and end


@dataclass(slots=True)
class RequestContext:
    """Made by RequestMiddleware, filled in along the way. Times are readings of time.perf_counter(), in seconds."""

    runtime: Runtime
    budget: BodyBudget
    request_id: str  # the service's own
    started: float
    client_id: str | None = None  # the id that the client gave to the request
    key: Key | None = None  # of whoever asks
    body_ended: bool = False  # the body has been received to its end
    received: float | None = None  # when the body was there and read
    decided: float | None = None  # when the last image was decided
    images: int = 0  # decided so far
    uncounted_images: int = 0  # of the request, that have not been counted by outcome yet
    stages: Stages | None = None  # of the one image of a request
    attributes: dict[str, str | float] | None = None  # the same image's, for its trace

    def count_image(self, outcome: ImageOutcome) -> None:
        """Count one image of the request by its outcome."""
        self.uncounted_images -= 1
        self.runtime.metrics.count_image(outcome)

    def count_rest(self, status: int) -> None:
        """Count the images that have no outcome of their own by the status of the answer."""
        if self.uncounted_images > 0:
            outcome: ImageOutcome = "abandoned" if status == 499 else "failed" if status >= 500 else "refused"
            self.runtime.metrics.count_image(outcome, self.uncounted_images)
            self.uncounted_images = 0

    def trace_stages(self, ended: float) -> Stages:
        """The stages of the request for its trace. Images of one request overlap, so several are one stage."""
        if self.received is None:
            return {}
        found = {"receive": (self.started, self.received)}
        if self.decided is not None:
            found |= self.stages or {"classify": (self.received, self.decided)}
            found["respond"] = (self.decided, ended)
        return found


def context_of(request: Request) -> RequestContext:
    """The context of a request."""
    context: RequestContext = request.scope[CONTEXT_KEY]
    return context


def runtime_of(request: Request) -> Runtime:
    """The runtime of the application that a request came to."""
    return context_of(request).runtime
