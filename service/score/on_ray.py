"""`score --on ray`: Ray Data runs the batches on the actors of a cluster; all else is as on one machine.

Each actor holds the session of one core. The driver cuts the batches, keeps the journal and writes the output, so rows,
their order, their last bits and the resuming are those of a run without Ray. A batch whose worker is lost is run again.
"""

import json
import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from service.contract.bundle import MANIFEST_FILE, Manifest
from service.contract.lines import one_line
from service.score.errors import ScoreError
from service.score.journal import ENCODER
from service.score.rows import ResultRow, Scorer

MOST_BLOCKS = 2000  # of batches that Ray plans with
Files = dict[str, bytes]


class Scoring:
    """An actor: a bundle, written where it runs, and its session."""

    def __init__(self, files: Any, make: Callable[[Path], Scorer]) -> None:
        import ray

        self._folder = tempfile.TemporaryDirectory(prefix="tailguard-")
        content: Files = ray.get(files)
        for name, data in content.items():
            path = Path(self._folder.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._scorer = make(Path(self._folder.name))

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """The rows of a batch of paths; both as JSON, which keeps names that are no UTF-8."""
        return {"rows": ENCODER.encode(self._scorer.score(json.loads(row["paths"])))}


def require_ray() -> Any:
    """Ray with Ray Data. Raises ScoreError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ScoreError(f"--on ray needs Ray Data ({one_line(error)}): pip install 'tailguard[ray]'") from error
    return ray


def in_order(
    folder: Path, manifest: Manifest, make: Callable[[Path], Scorer], workers: int | None, batches: Iterable[list[str]]
) -> Generator[list[ResultRow], None, None]:
    """The rows of each batch in order, by `workers` actors of one core, or as many as the cluster has cores.

    The cluster is that of RAY_ADDRESS, or one of this machine that ends with this. `make` makes the scorer of the
    bundle, which was verified, wherever its folder is; it is pickled. Raises ScoreError where the cluster cannot be
    had, or a worker fails for good.
    """
    paths = [{"paths": json.dumps(batch)} for batch in batches]
    if not paths:
        return
    ray = require_ray()
    own = not ray.is_initialized()
    try:
        if own:
            _start(ray)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        actors = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        files = ray.put(_content(folder, manifest))
        planned = ray.data.from_items(paths, override_num_blocks=min(len(paths), MOST_BLOCKS)).map(
            Scoring, fn_constructor_args=(files, make), num_cpus=1, compute=ray.data.ActorPoolStrategy(size=actors),
        )  # fmt: skip
        for row in planned.iter_rows():
            yield json.loads(row["rows"])
    except (GeneratorExit, ScoreError):
        raise
    except Exception as error:  # Ray has many
        raise ScoreError(f"the run on Ray failed: {_reason(error)}") from error
    finally:
        if own:
            ray.shutdown()


def _reason(error: BaseException) -> str:
    """The last line that names an error, of all the tracebacks that Ray passes on."""
    said = [str(each) for each in (error, error.__cause__) if each is not None]
    lines = [
        line.strip() for text in said for line in text.splitlines() if re.match(r"[\w.]*(Error|Exception): ", line)
    ]
    return lines[-1][:300] if lines else one_line(error)


def _start(ray: Any) -> None:
    """Join or begin a cluster. Ray takes the signals for itself; they stay this program's."""
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR, configure_logging=True)
    for number, handler in ours.items():
        signal.signal(number, handler)


def _content(folder: Path, manifest: Manifest) -> Files:
    names = [*manifest.files, MANIFEST_FILE]
    return {name: (folder / name).read_bytes() for name in names}
