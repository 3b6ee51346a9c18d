"""What clients send and what they must get, and what they saw: how tests and the load generator talk to each other."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """A request, and what its answer must be: one of `statuses`, and at 200 all of `holds` and one of `either`."""

    name: str
    request: bytes
    statuses: tuple[int, ...] = (200,)
    holds: tuple[bytes, ...] = ()
    either: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Who sends what, until `count` requests or `seconds` are over.

    Without `every_s` a client sends again as soon as it is answered; with it, at that pace. With `own_sample` client i
    sends only samples[i % n]; otherwise all clients together go through the samples in turn.
    """

    port: int
    samples: list[Sample]
    clients: int = 8
    seconds: float = 3600.0
    count: int = 2**62
    every_s: float = 0.0
    own_sample: bool = False
    nice: int = 5


@dataclass
class Seen:
    """What came back. Seconds by (name of the sample, status)."""

    seconds: float = 0.0
    cpu_s: float = 0.0  # of the generator itself
    taken: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    either: Counter[bytes] = field(default_factory=Counter)
    unexpected: int = 0
    examples: list[str] = field(default_factory=list)
    lost: int = 0  # connections that ended before the answer, or none could be made

    def statuses(self) -> dict[int, int]:
        counts: Counter[int] = Counter()
        for (_, status), taken in self.taken.items():
            counts[status] += len(taken)
        return dict(sorted(counts.items()))

    def rate(self, status: int = 200) -> float:
        """Answers per second."""
        return self.statuses().get(status, 0) / self.seconds

    def ms(self, share: float, status: int = 200, name: str | None = None) -> float:
        """The `share` quantile of the latency, milliseconds; NaN of no answer."""
        every = sorted(s for (n, c), taken in self.taken.items() if c == status and name in (None, n) for s in taken)
        return 1e3 * every[min(len(every) - 1, int(share * len(every)))] if every else float("nan")

    @property
    def cpu_share(self) -> float:
        """CPUs that the generator used: the closer to 1, the less its figures are the server's."""
        return self.cpu_s / self.seconds


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of one request; an underscore in a header's name stands for a hyphen."""
    lines = [f"{method} {path} HTTP/1.1", "Host: hard"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def classify(image: bytes, media_type: str = "image/png", **headers: str) -> bytes:
    return request("POST", "/classify", image, content_type=media_type, **headers)
