"""What one client without a key can hold: connections, trailers, parts of a form, abandoned images, memory."""

import contextlib
import http.client
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.hard import giants, plan
from tests.hard.pressure import warm_up
from tests.hard.report import Report
from tests.hard.server import MIB, Server, serving, wait_until

IDLE_S = 2.0
LONGEST_S = 10.0  # HEAD_TIMEOUT_S and REST_TIMEOUT_S of service/web/connection.py
SLACK_S = 5.0
GROWTH = 48 * MIB
PIECE = bytes(1 << 16)
HEALTH = plan.request("GET", "/health/live")
PAUSE_MS = 250.0  # how long a poll of health may take beside one hostile request; the fault took 2,400


def held_connections(report: Report) -> None:
    """Connections that say a little, in every state, and then nothing: each is closed in its time."""
    each = report.of(20, 4)
    refused = plan.classify(bytes(1000), X_API_Key="wrong")
    states = {
        "nothing": [b""],
        "half a head": [b"GET /health/live HT"],
        "idle": [HEALTH],
        "a bare CRLF": [HEALTH, b"\r\n"],
        "a byte of a refused body": [refused[:-999], b"x"],
        "answers not taken": [plan.request("GET", "/model", X_API_Key="k") * 200],
    }
    settings = {"IDLE_TIMEOUT_S": str(IDLE_S), "API_KEY": "k"}
    with serving(report.wrong, BUNDLE=str(report.bundle), **settings) as server:
        before = server.descriptors()
        peers = [(name, _peer(server, pieces)) for name, pieces in states.items() for _ in range(each)]
        report.need(server.ask("GET", "/health/live")[0] == 200, "health is not answered beside them")
        started = time.monotonic()
        longest_s = LONGEST_S + SLACK_S
        closed = wait_until(lambda: server.descriptors() <= before + each, longest_s)
        seconds = time.monotonic() - started
        open_s = {name for name, peer in peers if name != "answers not taken" and not _is_closed(peer)}
        report.need(
            closed and not open_s, f"{server.descriptors() - before} are open after {longest_s:.0f} s: {open_s}"
        )
        for _, peer in peers:
            peer.close()
        report.need(server.ask("GET", "/health/ready")[0] == 200, "not ready afterwards")
        report.say(f"{len(peers)} connections in {len(states)} states closed in {seconds:.1f} s", closed_s=seconds)


def trailers(report: Report) -> None:
    """Endless trailers and chunk extensions, after a request that is read and after one refused with 401."""
    count = report.of(200 * MIB, 32 * MIB)
    with serving(report.wrong, BUNDLE=str(report.bundle), API_KEY="k") as server:
        server.ask("GET", "/health/live")
        rss = server.rss()
        server.forget_peak()
        for key in ("k", "wrong"):
            head = plan.request(
                "GET", "/classify", X_API_Key=key, Transfer_Encoding="chunked", Content_Type="image/png"
            )
            for name, begin, piece in (
                ("one trailer", b"0\r\nX: ", PIECE.replace(b"\0", b"x")),
                ("many", b"0\r\n", b"A: b\r\n" * 10_000),
                ("a chunk's extension", b"5;x=", PIECE.replace(b"\0", b"x")),
            ):
                sent = _send(server, head.replace(b"GET", b"POST", 1) + begin, piece, count)
                report.need(sent < count, f"{name} after the key {key}: all of {count / MIB:.0f} MiB was taken")
        grown = server.peak_rss() - rss
        report.need(grown < GROWTH, f"the peak is {grown / MIB:.0f} MiB over what it was")
        report.say(f"6 kinds of {count / MIB:.0f} MiB cut off, +{grown / MIB:.1f} MiB", grown_mib=grown / MIB)


def parts(report: Report) -> None:
    """A form of 150,000 parts, and one of 10 MB of blanks, beside polls of health."""
    count = report.of(150_000, 50_000)
    part = b'--hard\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    forms = {
        "parts": part * count,
        "blanks": b"--hard" + b" " * 10_000_000 + b"\r\n\r\n\r\n--hard--",
        "pieces of boundaries": b"\r\n--har" * 1_400_000,
    }
    with serving(report.wrong, BUNDLE=str(report.bundle)) as server, _Polls(server) as polls:
        for name, form in forms.items():
            path = "/classify/batch" if name == "parts" else "/classify"
            status, answer = server.ask("POST", path, form, {"Content-Type": "multipart/form-data; boundary=hard"})
            report.need(status in (400, 413, 422), f"{name}: {status} {answer[:200].decode(errors='replace')}")
        report.need(polls.longest_ms < PAUSE_MS, f"health took {polls.longest_ms:.0f} ms beside them")
        report.say(
            f"{count:,} parts and two more, health at most {polls.longest_ms:.0f} ms", health_ms=polls.longest_ms
        )


def departed_large(report: Report) -> None:
    """Clients of 262 to 400 KB that leave while their images wait, beside one that half-closes and gets its answer."""
    each = report.of(16, 4)
    slow = giants.png_rgb(4000, 4000)
    with serving(report.wrong, BUNDLE=str(report.bundle), INFERENCE_THREADS="1") as server:
        for size in (262_144, 300_000, 400_000):
            for i in range(each):
                padded = slow + bytes(size - len(slow))
                with socket.create_connection(("127.0.0.1", server.port), timeout=30) as peer:
                    peer.sendall(plan.classify(padded))
                    time.sleep(0.02)
                    if i == 0:
                        peer.shutdown(socket.SHUT_WR)
                        report.need(_status(peer) == 200, f"{size} bytes: a half-closed connection got no answer")
        empty = wait_until(lambda: server.queued() == 0, 20)
        gone = _count(server, b'tailguard_refused_total{reason="client-gone"}')
        left = 3 * (each - 1)
        report.need(empty, f"{server.queued()} images are still counted as queued")
        report.need(gone >= left - 3, f"only {gone} of {left} that left were noticed")  # an image may just be done
        report.say(f"{gone} of {left} that left were noticed, half-closed ones answered", noticed=gone)


def bounded_memory(report: Report) -> None:
    """Bodies that gather below any single limit, and the largest permitted pictures at once."""
    limit, clients = 4 * MIB, report.of(400, 60)
    part = plan.classify(bytes(250_000))[:-50_000]
    with serving(report.wrong, BUNDLE=str(report.bundle), MAX_RECEIVING_BYTES=str(limit)) as server:
        warm_up(server, 1)
        rss = server.rss()
        server.forget_peak()
        peers = [_peer(server, [part], wait=False) for _ in range(clients)]
        time.sleep(2)
        grown = server.peak_rss() - rss
        refused = len(select.select(peers, [], [], 0)[0])
        for peer in peers:
            peer.close()
        report.need(refused >= clients - 2 * limit // 200_000, f"only {refused} of {clients} were refused")
        report.need(grown < limit + GROWTH, f"{clients} bodies below the limit of one: +{grown / MIB:.0f} MiB")
        report.say(f"{clients} x 200 KB under a limit of 4 MiB: +{grown / MIB:.0f} MiB", bodies_grown_mib=grown / MIB)
    most = 256 * MIB
    with (
        serving(report.wrong, BUNDLE=str(report.bundle), REQUEST_TIMEOUT_S="60", INFERENCE_THREADS="8") as server,
        ThreadPoolExecutor(8) as pool,
    ):
        warm_up(server, 1)
        rss = server.rss()
        server.forget_peak()
        picture = giants.png_rgb(7000, 7000)
        statuses = [answer[0] for answer in pool.map(server.classify, [picture] * 8)]
        grown = server.peak_rss() - rss
        report.need(statuses == [200] * 8, f"eight permitted PNGs got {statuses}")
        report.need(grown < 2 * most, f"eight PNGs of {len(picture) / 1000:.0f} KB at once: +{grown / MIB:.0f} MiB")
        report.say(f"8 x 49 megapixels at once: +{grown / MIB:.0f} MiB", pictures_grown_mib=grown / MIB)


def _peer(server: Server, pieces: list[bytes], wait: bool = True) -> socket.socket:
    """A connection that has sent `pieces`, one after the answer to the one before."""
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    for i, piece in enumerate(pieces):
        if i and wait:
            _status(peer)
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            peer.send(piece)
        peer.settimeout(30)
    return peer


def _status(peer: socket.socket) -> int:
    answer = http.client.HTTPResponse(peer)
    answer.begin()
    answer.read()
    return answer.status


def _is_closed(peer: socket.socket) -> bool:
    peer.settimeout(0.2)
    try:
        while peer.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def _send(server: Server, begin: bytes, piece: bytes, count: int) -> int:
    """Bytes that were taken of `count`, sent as fast as they are."""
    sent = 0
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as peer,
        contextlib.suppress(ConnectionError, TimeoutError),
    ):
        peer.sendall(begin)
        while sent < count:
            peer.sendall(piece)
            sent += len(piece)
    return sent


def _count(server: Server, series: bytes) -> int:
    lines = server.ask("GET", "/metrics")[1].splitlines()
    return next((int(float(line.split()[-1])) for line in lines if line.startswith(series)), 0)


class _Polls:
    """GET /health/live fifty times a second from a thread, on a connection of its own."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.longest_ms = 0.0

    def __enter__(self) -> "_Polls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._connection.close()

    def _poll(self) -> None:
        while not self._end.wait(0.02):
            started = time.perf_counter()
            self._connection.request("GET", "/health/live")
            self._connection.getresponse().read()
            self.longest_ms = max(self.longest_ms, 1e3 * (time.perf_counter() - started))
