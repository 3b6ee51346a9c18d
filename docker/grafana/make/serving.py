"""Dashboard Service: rate, errors, duration; where the time goes; how full it is; what is refused."""

from dashboard import dashboard
from panels import CLASSIFY, Json, bars, heat, lines, now, or_zero, query, share, stat, steps

RATE = "$__rate_interval"
SHED = 'reason=~"overloaded|rate-limited|deadline-exceeded"'
RED_WHEN: Json = {"color": "thresholds"}


def quantile(q: float) -> str:
    buckets = f"sum by (le) (rate(tailguard_request_seconds_bucket{{{CLASSIFY}}}[{RATE}]))"
    return or_zero(f"histogram_quantile({q}, {buckets}) >= 0")


def made() -> Json:
    return dashboard(
        "Service", "Is it up, how fast, how full?", (), [*_glance(), *_requests(), *_inside(), *_refused()]
    )


def _glance() -> list[Json]:
    firing = or_zero('count(ALERTS{alertname=~"TailGuard.*",alertstate="firing"})')
    ready = 'min(tailguard_ready or on (instance) 0 * up{job="tailguard"})'  # one that cannot be scraped is not
    return [
        stat("Ready", "Whether every replica takes requests.", "bool_yes_no", query(ready), width=3, graph="none",
             defaults={"thresholds": steps(("red", None), ("green", 1))}, **RED_WHEN),
        stat("Alerts", "Alerts of TailGuard that are firing.", "short", query(firing), width=3,
             defaults={"thresholds": steps(("green", None), ("red", 1))}, **RED_WHEN),
        stat("Images", "Images a second sent to be classified, over five minutes.", "cps",
             query('tailguard:images:rate{window="5m"}')),
        stat("Failed", "Share of images that the service failed to classify, over five minutes. The budget is 0.1%.",
             "percentunit", query('tailguard:image_failures:ratio{window="5m"}'),
             defaults={"thresholds": steps(("green", None), ("orange", 0.001), ("red", 0.0144))}, **RED_WHEN),
        stat("p99", "99th percentile of classifying requests over five minutes; 0: none.", "s",
             query("tailguard:request_seconds:p99"),
             defaults={"thresholds": steps(("green", None), ("orange", 0.25), ("red", 0.5))}, **RED_WHEN),
        stat("In flight", "Requests begun and not yet answered.", "short", query("sum(tailguard_requests_in_flight)"),
             width=3),
        stat("Shed", "Images or requests refused for load, rate or deadline, a second.", "cps",
             query(f"sum(rate(tailguard_refused_total{{{SHED}}}[5m]))"), width=3),
    ]  # fmt: skip


def _requests() -> list[Json]:
    by_status = f"sum by (route, status) (rate(tailguard_requests_total[{RATE}]))"
    buckets = f"sum by (le) (increase(tailguard_request_seconds_bucket{{{CLASSIFY}}}[{RATE}]))"
    return [
        lines("Requests by route and status", "Answers a second of every route, probes and scrapes too.", "reqps",
              query(or_zero(by_status), "{{route}} {{status}}")),
        lines("Failures against the budget", "Share of failed images by window. 0.1% is the budget of a month; over "
              "14.4 times that for an hour, or 6 times for six hours, somebody is told.", "percentunit",
              query("tailguard:image_failures:ratio", "{{window}}")),
        lines("Images by outcome", "Images a second: answered, refused (4xx), failed (5xx), abandoned by their client.",
              "cps", query(f"sum by (outcome) (rate(tailguard_images_total[{RATE}]))", "{{outcome}}")),
        lines("Engine", "1 while the graph runs, and failed runs a second.", "short",
              query("min(tailguard_engine_usable)", "usable"),
              query(f"sum(rate(tailguard_failed_runs_total[{RATE}]))", "failed runs")),
        lines("Duration", "Quantiles of classifying requests; 0: none.", "s",
              query(quantile(0.5), "p50"), query(quantile(0.95), "p95"), query(quantile(0.99), "p99")),
        heat("Durations", "How many classifying requests took how long.", "s",
             query(or_zero(buckets, le="+Inf"), "{{le}}")),
    ]  # fmt: skip


def _inside() -> list[Json]:
    total, count = (f"sum by (stage) (rate(tailguard_stage_seconds_{of}[{RATE}]))" for of in ("sum", "count"))
    p95 = f"histogram_quantile(0.95, sum by (stage, le) (rate(tailguard_stage_seconds_bucket[{RATE}]))) >= 0"
    images, runs = (f"sum(rate(tailguard_batch_images_{of}[{RATE}]))" for of in ("sum", "count"))
    return [
        lines("Stages, mean", "Mean time of an image in a stage; inference: of a batch. Receive is the client's line, "
              "queue is capacity.", "s", query(share(total, count, "1e-9"), "{{stage}}")),
        lines("Stages, p95", "95th percentile of the time in a stage; 0: none.", "s", query(or_zero(p95), "{{stage}}")),
        lines("Queue", "Images admitted and not yet answered, and how many are admitted at most.", "short",
              query("sum(tailguard_queue_images)", "admitted"), query("sum(tailguard_queue_limit_images)", "limit"),
              width=8),
        lines("CPU", "CPUs that each replica uses.", "short",
              query(f'rate(process_cpu_seconds_total{{job="tailguard"}}[{RATE}])', "{{instance}}"), width=8),
        lines("Saturation", "How much of the queue and of the file descriptors is in use.", "percentunit",
              query("sum(tailguard_queue_images) / clamp_min(sum(tailguard_queue_limit_images), 1)", "queue"),
              query('max(process_open_fds{job="tailguard"} / process_max_fds{job="tailguard"})', "descriptors"),
              width=8, defaults={"min": 0, "max": 1}),
        lines("Images per run", "Mean size of a batch.", "short", query(share(images, runs, "1e-9"), "images")),
        bars("Batches", "Runs of the graph by how many images they had at most, over the time shown.", "short",
             now("sum by (le) (increase(tailguard_batch_images_bucket[$__range]))", "{{le}}", format="heatmap")),
    ]  # fmt: skip


def _refused() -> list[Json]:
    return [
        lines("Refused", "Images or requests refused or failed, by reason.", "cps",
              query(f"sum by (reason) (rate(tailguard_refused_total[{RATE}]))", "{{reason}}"), width=8),
        lines("Ledger rows", "Rows for the ledger: written, or dropped from a full queue; failed attempts.", "cps",
              query(f"sum by (outcome) (rate(tailguard_ledger_rows_total[{RATE}]))", "{{outcome}}"),
              query(f"sum(rate(tailguard_ledger_failures_total[{RATE}]))", "failed attempts"), width=8),
        lines("Ledger size", "Bytes of the ledger of each replica.", "bytes",
              query("tailguard_ledger_bytes", "{{instance}}"), width=8),
        lines("Kept images", "Images for review: kept; left out by the pace; dropped or failed by the store.", "cps",
              query(f"sum by (outcome) (rate(tailguard_store_images_total[{RATE}]))", "{{outcome}}")),
        lines("Image store", "Bytes of kept images and thumbnails, by the ledger of each replica.", "bytes",
              query("tailguard_store_bytes", "{{instance}}")),
    ]  # fmt: skip
