"""OpenTelemetry traces: one server span per request and one child span per stage. Without traces nothing is imported.

On when TAILGUARD_OTLP_ENDPOINT is set, or when the standard OTEL_EXPORTER_OTLP_ENDPOINT (or _TRACES_ENDPOINT) is, and
the packages of `pip install 'tailguard[otel]'` are there. The other standard variables work as they do everywhere:
OTEL_TRACES_SAMPLER, headers, timeouts, batches, OTEL_SERVICE_NAME, OTEL_SDK_DISABLED.

Spans are made once, after the answer, from readings of perf_counter; a thread of the SDK sends them (OTLP over HTTP).
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from service.errors import SettingsError
from service.settings import PREFIX, Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PATH = "/v1/traces"
PROPAGATED = (b"traceparent", b"tracestate")  # W3C Trace Context
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
LONGEST_PATH = 1024
CLOSE_TRACER_S = 2.0
WARNING_INTERVAL_S = 60.0

AttributeValue = str | bool | int | float
log = structlog.get_logger()


def load(settings: Settings) -> "Tracer | None":
    """The tracer that the settings ask for; None when they ask for none, and then no package of it is imported.

    Raises SettingsError when TAILGUARD_OTLP_ENDPOINT is no HTTP address, when the packages for it are missing, and when
    a standard variable has a value that they do not take.
    """
    asked = settings.otlp_endpoint is not None
    if not asked and not any(os.environ.get(name) for name in STANDARD):
        return None
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    endpoint = _traces_url(settings.otlp_endpoint) if settings.otlp_endpoint is not None else None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        if not asked:
            return None
        raise SettingsError(
            f"{PREFIX}OTLP_ENDPOINT is set and OpenTelemetry is not installed: pip install 'tailguard[otel]', "
            f"or leave {PREFIX}OTLP_ENDPOINT out"
        ) from error
    try:
        return Tracer(OTLPSpanExporter(endpoint=endpoint), os.environ.get("OTEL_SERVICE_NAME") or "tailguard")
    except (ValueError, OSError) as error:
        raise SettingsError(f"OpenTelemetry does not start with the OTEL_ variables as they are: {error}") from error


class Tracer:
    """Makes the spans of requests and sends them to `exporter` in batches, from a thread of the SDK."""

    def __init__(self, exporter: "SpanExporter", service_name: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._exporter = exporter
        resource = Resource.create({"service.name": service_name})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tailguard")
        self._extract: Callable[[dict[str, str]], Context] = TraceContextTextMapPropagator().extract
        self._inside = trace.set_span_in_context
        self._server = trace.SpanKind.SERVER
        self._error = trace.StatusCode.ERROR
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._warnings = _RareWarnings()  # from here on: warnings about its variables, above, are all shown

    def record(
        self,
        name: str,
        headers: Iterable[tuple[bytes, bytes]],
        started_s: float,
        ended_s: float,
        stages: Mapping[str, tuple[float, float]],
        attributes: Mapping[str, AttributeValue],
        failed: bool,
    ) -> None:
        """Make the spans of one answered request; never blocks, never raises.

        Times are readings of time.perf_counter(); `stages` names (start, end) of each. `name` is the method and the
        route's template. The parent is the span of the client's `traceparent` header, if it sent one. `failed` is for
        an error of the service (5xx), not for a refusal (4xx).
        """
        try:
            carrier = {n.decode(): v.decode("latin-1") for n, v in headers if n in PROPAGATED}
            span = self._tracer.start_span(
                name,
                context=self._extract(carrier),
                kind=self._server,
                attributes=attributes,
                start_time=self._ns(started_s),
            )
            if not span.is_recording():  # the sampler, or the client, did not pick this one
                return
            inside = self._inside(span)
            for stage, (began_s, done_s) in stages.items():
                self._tracer.start_span(stage, context=inside, start_time=self._ns(began_s)).end(self._ns(done_s))
            if failed:
                span.set_status(self._error)
            span.end(self._ns(ended_s))
        except Exception as error:
            self._warnings.say(f"a request was not traced: {error!r}")

    def close(self, timeout_s: float = CLOSE_TRACER_S) -> None:
        """Send what is left, for at most `timeout_s` seconds: a dead collector must not delay the end."""
        flushing = threading.Thread(target=self._provider.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(timeout_s)
        if not flushing.is_alive():
            self._warnings.detach()
            return
        self._warnings.say(f"the last traces were not taken within {timeout_s:g} s and are lost")
        self._warnings.silent = True  # and stays attached, for later warnings of its threads
        self._exporter.shutdown()  # ends its retries, and so the threads

    def _ns(self, reading_s: float) -> int:
        return self._epoch_ns + int(reading_s * 1e9)


class _RareWarnings(logging.Handler):
    """Logs at most one warning of the SDK a minute: with a dead collector it has several for every batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_s = 0.0
        self.silent = False
        self._source = logging.getLogger("opentelemetry")
        self._source.addHandler(self)
        self._source.propagate = False

    def detach(self) -> None:
        self._source.removeHandler(self)
        self._source.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())

    def say(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._next_s and not self.silent:
            self._next_s = now + WARNING_INTERVAL_S
            log.warning("tracing", problem=message)


def http_attributes(method: str, scheme: str, path: str, route: str | None, status: int) -> dict[str, AttributeValue]:
    """Attributes of a request by the semantic conventions for HTTP servers. The query is left out on purpose.

    `route` is the template, None where no route fits.
    """
    attributes: dict[str, AttributeValue] = {
        "http.request.method": method if method in KNOWN_METHODS else "_OTHER",
        "url.scheme": scheme,
        "url.path": path[:LONGEST_PATH],
        "http.response.status_code": status,
    }
    if route is not None:
        attributes["http.route"] = route
    if status >= 500:
        attributes["error.type"] = str(status)
    return attributes


def _traces_url(endpoint: str) -> str:
    """The address for traces from that of a collector, by the rule of OTEL_EXPORTER_OTLP_ENDPOINT."""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(
            f"{PREFIX}OTLP_ENDPOINT={endpoint} is not valid: give the collector's address, like http://localhost:4318"
        )
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(PATH) else path + PATH).geturl()
