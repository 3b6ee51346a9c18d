"""Which bundle was last made of a run: killed between the bundle and its note, an export had left none of it."""

from pathlib import Path

import pytest

from service.contract.bundle import GRAPH_FILE
from training.runs import exported, reserved
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


def test_a_bundle_of_the_run_is_known_though_clocks_were_put_back(tiny_bundle: Path, tmp_path: Path) -> None:
    """The finished fit, given again, said that its own bundle was none of it."""
    begun = "2999-01-01T00:00:00+00:00"
    with pytest.raises(ValueError, match="exists already and is not of this fit"):
        reserved.require_made_since(tiny_bundle, begun, [tmp_path], "fit")
    with exported.noting(tmp_path, tiny_bundle, b"graph"):
        (tmp_path / EXPORTING_FILE).unlink()  # by another process that exports the same run
    reserved.require_made_since(tiny_bundle, begun, [tmp_path], "fit")
