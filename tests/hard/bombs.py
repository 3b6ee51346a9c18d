"""Small files of huge images: refused by their headers; and the largest that are let in."""

import time

from tests.hard import giants
from tests.hard.pressure import warm_up
from tests.hard.report import Report
from tests.hard.server import MIB, Server, serving

GROWTH = 32 * MIB
LONGEST_S = 5.0  # of one decode; the largest permitted images take one


def bombs(report: Report) -> None:
    """0.3 to 1.6 gigapixels in up to 7 MB, six formats; then a whole image just under the limit, in every format."""
    files = {name: build(side, side) for name, (build, side) in giants.BOMBS.items()}
    with serving(report.wrong, BUNDLE=str(report.bundle), REQUEST_TIMEOUT_S="60") as server:
        warm_up(server, 1)
        rss = server.rss()
        server.forget_peak()
        for name, file in files.items():
            status, answer = server.classify(file)
            right = status == 422 and b"the limit" in answer
            report.need(right, f"{name}: {status} {answer[:200].decode(errors='replace')}")
        grown = server.peak_rss() - rss
        report.need(grown < GROWTH, f"the peak is {grown / MIB:.0f} MiB over what it was")
        pixels = [side**2 / 1e9 for _, side in giants.BOMBS.values()]
        report.say(
            f"{len(files)} formats of {min(pixels):.1f} to {max(pixels):.1f} gigapixels, +{grown / MIB:.1f} MiB",
            bombs_grown_mib=grown / MIB,
        )
        _slow_to_decode(report, server)
        peaks: dict[str, float] = {}
        permitted = {} if report.quick else giants.PERMITTED
        for name, (build, side) in permitted.items():
            rss = server.rss()
            server.forget_peak()
            status, answer = server.classify(build(side, side))
            report.need(
                status == 200, f"{name} of {side} x {side} pixels: {status} {answer[:200].decode(errors='replace')}"
            )
            peaks[name] = (server.peak_rss() - rss) / MIB
        if peaks:
            report.say(
                "just under the limit of pixels: "
                + ", ".join(f"{name} +{mib:.0f}" for name, mib in peaks.items())
                + " MiB at the peak",
                **{f"largest_{name}_mib": mib for name, mib in peaks.items()},
            )


def _slow_to_decode(report: Report, server: Server) -> None:
    """A kilobyte that is cheap in pixels and dear in time."""
    started = time.monotonic()
    status, answer = server.classify(giants.bmp_line(49_000_000))
    seconds = time.monotonic() - started
    report.need(status in (200, 422), f"BMP of one line: {status} {answer[:200].decode(errors='replace')}")
    report.need(seconds < LONGEST_S, f"a BMP of one line, {len(giants.bmp_line(1)):,} bytes, took {seconds:.1f} s")
    report.say(f"BMP of one line: {seconds:.2f} s", bmp_line_s=seconds)
