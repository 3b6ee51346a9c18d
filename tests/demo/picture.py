"""The demo's picture, from the range queries of a real Prometheus; and a Prometheus for those who have none running."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.demo.watch import ROWS, Prometheus
from training.data.whole import replacing

START_S = 60
COLOURS = {"all": "black", "many": "#4c78a8", "medium": "#f2a104", "few": "#c44e52"}
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: tailguard
    static_configs: [{{targets: ["{target}"]}}]
"""


@contextmanager
def prometheus(service_url: str) -> Iterator[str]:
    """The address of a Prometheus that scrapes the service every second; it ends with the context, data and all."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("there is no program `prometheus`: apt-get install prometheus, or name one with --prometheus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "prometheus.yml")
        config.write_text(CONFIG.format(target=urlsplit(service_url).netloc))
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, Path(folder, "log"))
            yield url
        finally:
            process.terminate()
            process.wait(START_S)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(f"{url}/api/v1/query", params={"query": "tailguard_ready"}).json()["data"]["result"]:
                return
        except (httpx.HTTPError, ValueError, KeyError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"Prometheus did not start or does not reach the service:\n{log.read_text()[-1500:]}")
        time.sleep(0.2)


def draw(path: Path, source: Prometheus, began: float, turned: float, ended: float, window_s: float) -> None:
    """Rejection by group and KS over time, the turn marked, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, below) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    rejected = source.history("rejected", began, ended) | {
        "all": source.history("rejected_all", began, ended).get("", ([], []))
    }
    for row in ROWS:
        times, values = rejected.get(row, ([], []))
        label = "all images" if row == "all" else f"predicted {row}"
        width = 2.4 if row == "all" else 1.4
        top.plot([t - turned for t in times], values, color=COLOURS[row], lw=width, label=label)
    expected = source.look().expected["all"]
    top.axhline(expected, color="black", ls=":", lw=1, label=f"expected of all: {expected:.1%}")
    top.set(ylabel=f"share rejected, last {window_s:.0f} s", ylim=(0, 1))
    top.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    top.legend(loc="upper left", frameon=False, fontsize=9)
    times, values = source.history("ks", began, ended)[""]
    below.plot([t - turned for t in times], values, color="#54306e", lw=2.4, label="live against calibration")
    bound = source.look().ks_bound
    below.axhline(bound, color="#54306e", ls=":", lw=1, label=f"what the alert allows: {bound:.3f}")
    below.set(ylabel=f"KS distance, last {window_s:.0f} s", ylim=(0, 1), xlabel="seconds since the traffic turned OOD")
    below.legend(loc="upper left", frameon=False, fontsize=9)
    for axes in (top, below):
        axes.axvline(0, color="gray", lw=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    top.annotate(
        "traffic turns OOD", (0, 1), (6, -4), textcoords="offset points", va="top", fontsize=9, color="dimgrey"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
