"""Files to rows of the output: read, decode, run the graph, decide; a batch at a time, in any thread."""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.contract import images
from service.contract.bundle import Manifest
from service.contract.decision import Scope, Verdict, decide_row
from service.contract.images import Loaded
from service.contract.sets import PredictionSets
from service.contract.taxonomy import Tree
from service.errors import BodyTooLarge, TailGuardError, kind_of
from service.inference.engine import Outputs
from service.inference.pipeline import GraphRunner
from service.score import remote
from service.score.errors import slug
from service.score.likeness import NO_LIKENESS, Likeness

Type = Literal["string", "int32", "float32", "float64", "vector"]  # vector: a list of float32
Value = str | int | float | list[float] | None
ResultRow = dict[str, Value]


def columns(
    manifest: Manifest, *, probabilities: bool, sets: bool = False, likeness: Likeness = NO_LIKENESS
) -> dict[str, Type]:
    """The columns of a row in order, each with the narrowest type that holds what POST /classify answers.

    All but `path` are null in a row with an `error`; a float is null where the graph gave no finite number. `set` holds
    labels as a JSON list; `taxonomy` is the path of the node told of a refused image, null where nothing is.
    """
    types: dict[str, Type] = {
        "path": "string",
        "decision": "string",
        **({"reason": "string", "unfit": "string"} if manifest.reasons else {}),  # null for an accepted image
        "label": "string",
        "class_index": "int32",
        "group": "string",
        "probability": "float32",
        **{f"score_{name}": "float32" for name in manifest.scores},
        "deciding_score": "float32",
        "threshold": "float64",
        "p_value": "float64",
        "width_px": "int32",
        "height_px": "int32",
        **({"taxonomy": "string", "taxonomy_probability": "float64"} if manifest.taxonomy else {}),
        **({"set": "string", "set_size": "int32"} if sets else {}),
        **likeness.columns(),
        "error": "string",  # the slug of its kind
        "error_detail": "string",
    }
    if probabilities:
        types |= {f"probability_{c.name}": "float32" for c in manifest.classes}
    return types


@dataclass(frozen=True)
class Scorer:
    """Scores files. `score` may be called from several threads at once."""

    engine: GraphRunner
    operating_point: str
    scope: Scope
    max_pixels: int
    max_bytes: int
    probabilities: bool
    set: float | None = None  # the level of a set of classes
    likeness: Likeness = NO_LIKENESS

    @cached_property
    def columns(self) -> dict[str, Type]:
        """The names of the values in a row and their types."""
        return columns(
            self.engine.manifest, probabilities=self.probabilities, sets=self.set is not None, likeness=self.likeness
        )

    @cached_property
    def _sets(self) -> PredictionSets | None:
        sets, classes = self.engine.manifest.sets, self.engine.manifest.classes
        return None if sets is None or self.set is None else PredictionSets(sets, [info.group for info in classes])

    @cached_property
    def _tree(self) -> Tree | None:
        return None if self.engine.manifest.taxonomy is None else Tree(self.engine.manifest.taxonomy)

    def score(self, paths: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> list[ResultRow]:
        """One row per path, in order; no rows when `stopped` returns True on the way.

        Raises EngineError when the graph fails, which is no fault of a file.
        """
        loads: list[Loaded | tuple[str, str]] = []
        for path in paths:
            if stopped():
                return []
            loads.append(self._load(path))
        good = [loaded for loaded in loads if isinstance(loaded, Loaded)]
        answers = iter(self._answers(good) if good else ())
        empty = dict.fromkeys(self.columns)
        rows: list[ResultRow] = []
        for path, loaded in zip(paths, loads, strict=True):
            if isinstance(loaded, Loaded):
                rows.append(dict(zip(self.columns, (path, *next(answers)), strict=True)))
            else:
                rows.append(empty | {"path": path, "error": loaded[0], "error_detail": loaded[1]})
        return rows

    def _load(self, path: str) -> Loaded | tuple[str, str]:
        """The decoded file, or the slug and the message of its error."""
        try:
            return images.load(_read(path, self.max_bytes), self.engine.manifest.input, max_pixels=self.max_pixels)
        except TailGuardError as error:
            return kind_of(error).slug, str(error)
        except OSError as error:
            return slug(error), error.strerror or str(error)
        except ValueError as error:  # a path that no file can have, with a NUL in it
            return "not-found", str(error)

    def _answers(self, batch: Sequence[Loaded]) -> list[tuple[Value, ...]]:
        """The values of the rows of `batch`, without `path`."""
        manifest = self.engine.manifest
        pixels = [loaded.pixels for loaded in batch]
        stacked = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
        outputs: Outputs = self.engine.run(stacked, self.likeness.wanted)
        columns = {name: values.tolist() for name, values in outputs.scores.items()}
        answers: list[tuple[Value, ...]] = []
        for i, loaded in enumerate(batch):
            probabilities = outputs.probabilities[i]
            scores = {name: column[i] for name, column in columns.items()}
            quality = None if outputs.quality is None else outputs.quality[i]
            verdict = decide_row(
                manifest, probabilities, scores, self.operating_point, self.scope, quality,
                min(loaded.width_px, loaded.height_px),
            )  # fmt: skip
            index = verdict.class_index
            info = manifest.classes[index]
            every = probabilities.tolist()
            why = (verdict.reason, verdict.unfit) if manifest.reasons else ()
            answer = (
                verdict.decision, *why, info.name, index, info.group, _finite(every[index]),
                *map(_finite, scores.values()), _finite(verdict.score), verdict.threshold, verdict.p_value,
                loaded.width_px, loaded.height_px, *self._said(probabilities, verdict),
                *self.likeness.values(manifest, None if outputs.embedding is None else outputs.embedding[i]),
                None, None,
                *(map(_finite, every) if self.probabilities else ()),
            )  # fmt: skip
            answers.append(answer)
        return answers

    def _said(self, probabilities: NDArray[np.float32], verdict: Verdict) -> Iterator[Value]:
        """The values of the columns on taxonomy and set, where there are such; of an unfit picture no node is told."""
        if self._tree is not None:
            node = self._tree.deepest(probabilities) if verdict.asks_for_node else None
            yield from (node.joined, node.probability) if node else (None, None)
        if self._sets is not None and self.set is not None:
            chosen = self._sets.of(probabilities, self.set)
            names = [self.engine.manifest.classes[i].name for i in chosen]
            yield from (json.dumps(names, ensure_ascii=False), len(names))


def _finite(value: float) -> float | None:
    """`value`, or None when it is NaN or infinite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def _read(path: str, limit: int) -> bytes:
    """The content of a plain file, or of one at an address.

    Raises OSError, ValueError (NUL in the path), BodyTooLarge before reading it.
    """
    if remote.is_remote(path):
        return remote.read(path, limit)
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a FIFO would block until somebody writes to it
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Not a plain file")
        if status.st_size > limit:
            raise BodyTooLarge(
                f"the file has {status.st_size} bytes, the limit is {limit}: send a smaller file, "
                "or raise TAILGUARD_MAX_BODY_BYTES"
            )
        data = os.read(file, status.st_size)
        while len(data) < status.st_size and (more := os.read(file, status.st_size - len(data))):
            data += more  # some network file systems return less than asked for
        return data
    finally:
        os.close(file)
