"""Which bundle was last made of a run: killed between the bundle and its note, an export had left none of it."""

from pathlib import Path

import pytest

from service.contract.bundle import GRAPH_FILE
from training.runs import exported
from training.runs.files import EXPORTED_FILE, EXPORTING_FILE


def test_a_bundle_whose_export_was_killed_before_it_was_noted(tiny_bundle: Path, tmp_path: Path) -> None:
    begun, graph = tmp_path / EXPORTING_FILE, (tiny_bundle / GRAPH_FILE).read_bytes()
    with pytest.raises(OSError, match="full"), exported.noting(tmp_path, tmp_path / "elsewhere", graph):
        raise OSError("full")
    assert exported.last(tmp_path) is None
    for of, found in ((graph, tiny_bundle.resolve()), (b"of another run", None)):
        with exported.noting(tmp_path, tiny_bundle, of):
            left = begun.read_bytes()
        assert exported.last(tmp_path) == tiny_bundle.resolve()
        (tmp_path / EXPORTED_FILE).unlink()
        begun.write_bytes(left)  # as a kill leaves it
        assert exported.last(tmp_path) == found
        assert begun.exists() == (found is None)
