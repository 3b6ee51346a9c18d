"""training/data/taxonomy.py: a tree from folders, a column, a file; every fault named."""

import csv
from pathlib import Path

import numpy as np
import pytest

from training.data import lists, taxonomy
from training.data.listing import Listing
from training.data.readers import DataError
from training.data.taxonomy import Taxonomy

CLASSES = ("orange", "milk", "other")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tree.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_with_a_header_and_the_class_at_the_end_or_not(tmp_path):
    path = written(tmp_path, "Class,Path\norange,fruit/citrus/orange\nmilk, packages \nother,\nunused,fruit\n")
    found = taxonomy.read(path, CLASSES)
    assert found.of(CLASSES) == [("fruit", "citrus"), ("packages",), ()]
    assert found.source == "tree.csv"
    assert "unused" not in found.paths


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("orange,fruit\nmilk,packages\n", "no line for other"),
        ("orange,fruit\norange,fruit\n", "line 2 names 'orange' a second time"),
        ("orange\n", "line 1 has 1 columns"),
        ("orange,fruit//citrus\n", "with an empty name"),
        ("orange,\nmilk,milk\nother,/\n", "every class below the root"),
    ],
)
def test_a_bad_file_is_refused_by_line(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        taxonomy.read(written(tmp_path, text), CLASSES)
    with pytest.raises(DataError, match="cannot be read as CSV"):
        taxonomy.read(tmp_path / "missing.csv", CLASSES)


def listing(classes: tuple[str, ...], column: list[str] | None = None) -> Listing:
    labels = np.arange(len(column or classes)) % len(classes)
    columns = {} if column is None else {"taxonomy": column}
    return Listing([f"{i}.png" for i in range(len(labels))], labels, classes, columns)


def test_nested_folders_are_a_tree_and_flat_ones_are_none():
    found = taxonomy.find(listing(("Fruit/Apple", "Fruit/Citrus/Lemon", "Milk")))
    assert found == Taxonomy(
        "nested folders", {"Fruit/Apple": ("Fruit",), "Fruit/Citrus/Lemon": ("Fruit", "Citrus"), "Milk": ()}
    )
    assert taxonomy.find(listing(("Apple", "Milk"))) is None


def test_a_column_of_the_list_says_one_path_for_a_class(tmp_path):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "taxonomy"))
        rows.writerows(
            [("1.png", "orange", "fruit/citrus"), ("2.png", "milk", "packages"), ("3.png", "orange", "fruit/citrus")]
        )
    found = taxonomy.find(lists.read_list(tmp_path / "list.csv").parts["train"])
    assert found is not None
    assert found.of(("orange", "milk")) == [("fruit", "citrus"), ("packages",)]
    with pytest.raises(DataError, match="has 'fruit' and 'packages' for a"):
        taxonomy.find(listing(("a", "b"), ["fruit", "fruit", "packages", "fruit"]))


def test_a_run_keeps_it_and_a_class_that_came_later_hangs_where_its_name_says(tmp_path):
    assert taxonomy.recorded(tmp_path) is None
    assert taxonomy.recorded(None) is None
    Taxonomy("a file", {"orange": ("fruit", "citrus"), "other": ()}).write(tmp_path / "run")
    found = taxonomy.recorded(tmp_path / "run")
    assert found == Taxonomy("a file", {"orange": ("fruit", "citrus"), "other": ()})
    assert found.of(["other", "orange", "fig", "fruit/kiwi"]) == [(), ("fruit", "citrus"), (), ("fruit",)]
