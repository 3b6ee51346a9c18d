"""50,000 requests, good and bad: memory, descriptors and threads stay as they were."""

import io

from PIL import Image

from tests.hard import giants, load, plan
from tests.hard.plan import Plan, Sample
from tests.hard.report import Report
from tests.hard.server import MIB, serving, wait_until

GROWTH = 0.05
BOUNDARY = "hard"


def soak(report: Report) -> None:
    # Half of the first are good ones: the ledger in memory is then full (10,000 rows) and has the size it keeps.
    count, first = report.of(50_000, 3_000), report.of(22_000, 1_000)
    with serving(report.wrong, BUNDLE=str(report.bundle)) as server:
        clients = 8
        seen = load.push(Plan(server.port, mixture(), clients=clients, count=first))
        report.need_right(seen, "first requests")
        idle = server.descriptors()
        wait_until(lambda: server.descriptors() == idle, 5)
        before, descriptors, threads = server.rss(), server.descriptors(), server.threads()
        seen = load.push(Plan(server.port, mixture(), clients=clients, count=count))
        report.need_right(seen, "requests")
        wait_until(lambda: server.descriptors() <= descriptors, 5)
        after = server.rss()
        grown = after / before - 1
        report.need(grown < GROWTH, f"RSS grew by {grown:.1%}")
        report.need(server.descriptors() == descriptors, f"{descriptors} descriptors became {server.descriptors()}")
        report.need(server.threads() == threads, f"{threads} threads became {server.threads()}")
        report.need(server.queued() == 0, f"{server.queued()} images are still counted as queued")
        statuses = ", ".join(f"{number:,} × {status}" for status, number in seen.statuses().items())
        report.say(
            f"{count:,} requests after {first:,}, RSS {before / MIB:.1f} → {after / MIB:.1f} MiB ({grown:+.1%}), "
            f"{descriptors} descriptors, {threads} threads; {seen.rate(200):,.0f} good req/s; {statuses}",
            rss_before_mib=before / MIB, rss_after_mib=after / MIB, rss_grown=grown,
        )  # fmt: skip


def png(width: int, height: int, colour: tuple[int, int, int] = (90, 120, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def form(field: str, *files: bytes, end: str = "--\r\n") -> bytes:
    """A multipart body of `files`, all in one field."""
    head = f'Content-Disposition: form-data; name="{field}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    parts = b"".join(f"--{BOUNDARY}\r\n{head}".encode() + file + b"\r\n" for file in files)
    return parts + f"--{BOUNDARY}{end}".encode()


def mixture() -> list[Sample]:
    """As many good requests as bad, and one bad request of every kind there is."""
    image = png(32, 32)
    multipart = f"multipart/form-data; boundary={BOUNDARY}"
    bad = [
        Sample("no image", plan.classify(b"no image at all"), (415,)),
        Sample("empty", plan.classify(b""), (422,)),
        Sample("cut short", plan.classify(image[: len(image) // 2]), (422,)),
        Sample("damaged", plan.classify(image[:40] + b"\xff" * 9 + image[49:]), (422,)),
        Sample("too many pixels", plan.classify(giants.webp(16_383, 16_383)), (422,)),
        Sample("text", plan.classify(image, "text/plain"), (415,)),
        Sample("no boundary", plan.classify(image, "multipart/form-data"), (400,)),
        Sample("wrong field", plan.classify(form("image", image), multipart), (422,)),
        Sample("two files", plan.classify(form("file", image, image), multipart), (422,)),
        Sample("no end", plan.classify(form("file", image, end=""), multipart), (400,)),
        Sample("too large", plan.request("POST", "/classify", Content_Type="image/png")[:-4].replace(
            b"Content-Length: 0", b"Content-Length: 999999999") + b"\r\n\r\n", (413,)),
        Sample("wrong query", plan.request("POST", "/classify?top_k=many", image, Content_Type="image/png"), (422,)),
        Sample("wrong deadline", plan.classify(image, X_Request_Timeout_Ms="soon"), (422,)),
        Sample("no admin", plan.request("PUT", "/admin/bundle", b"{}", Content_Type="application/json"), (401, 403)),
        Sample("nowhere", plan.request("GET", "/nowhere"), (404,)),
        Sample("wrong method", plan.request("DELETE", "/classify"), (405,)),
        Sample("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,)),
    ]  # fmt: skip
    good = [
        Sample("raw", plan.classify(image), holds=(b'"width_px":32',)),
        Sample("form", plan.classify(form("file", image), multipart), holds=(b'"width_px":32',)),
        Sample("batch", plan.request("POST", "/classify/batch", form("files", image, b"x", image),
               Content_Type=multipart), holds=(b'"status":415',)),
        Sample("metrics", plan.request("GET", "/metrics"), holds=(b"tailguard_queue_images",)),
        Sample("model", plan.request("GET", "/model"), holds=(b'"version"',)),
    ]  # fmt: skip
    return [sample for i, wrong in enumerate(bad) for sample in (good[0] if i % 2 else good[i // 2 % 5], wrong)]
