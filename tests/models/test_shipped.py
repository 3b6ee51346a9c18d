"""The bundles that ship: small, whole, and right about real photographs that nobody trained on."""

import json
import mimetypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sklearn.metrics import roc_auc_score

from service.contract import bundle
from service.settings import Settings
from tests import live
from tests.models import pictures

MODELS = live.ROOT / "models"
BUNDLES = sorted(path.parent for path in MODELS.glob("*/*/manifest.json"))
GROCERIES = live.ROOT.parent / "shared" / "data" / "groceries"
MOST_BYTES = 16_000_000
PRETRAINED = [folder for folder in BUNDLES if bundle.read(folder).evaluation.get("backbone")]


def test_the_pretrained_models_together_are_small() -> None:
    assert len(PRETRAINED) >= 2
    files = [path for folder in PRETRAINED for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize("folder", PRETRAINED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_card_names_weights_and_licence(folder: Path) -> None:
    card, backbone = (folder / "CARD.md").read_text(), bundle.read(folder).evaluation["backbone"]
    assert "Apache-2.0" in card
    assert "ImageNet" in card
    assert backbone["weights_sha256"] in card
    notice = (live.ROOT / "NOTICE").read_text()
    assert "Apache" in notice
    assert "EfficientNet" in notice


def test_the_default_bundle_is_the_pretrained_one() -> None:
    assert live.ROOT / Settings.model_fields["bundle"].default == MODELS / "cifar10-lt" / "2"


# ---- What they are held to ---------------------------------------------------------------------------------------


def test_cifar10_holds_its_marks() -> None:
    found = bundle.read(MODELS / "cifar10-lt" / "2").evaluation
    assert found["accuracy"] >= 0.85
    assert found["mean"]["auroc"] >= 0.94
    assert found["mean"]["fpr95"] <= 0.23
    assert found["ood"]["cifar100"]["auroc"] >= 0.875


@pytest.mark.skipif(not GROCERIES.is_dir(), reason=f"no {GROCERIES}")
def test_groceries_holds_its_marks_on_the_photographs(tmp_path: Path) -> None:
    """Scored as a user scores folders; the card states what is found so."""
    folder, out = MODELS / "groceries" / "1", tmp_path / "scored.jsonl"
    places = [str(GROCERIES / part) for part in ("test", "ood/near", "ood/far")]
    command = [
        sys.executable,
        "-m",
        "service",
        "score",
        *places,
        "--out",
        str(out),
        "--bundle",
        str(folder),
        "--threads",
        "1",
    ]
    subprocess.run(command, check=True, cwd=live.ROOT, capture_output=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 384 + 96 + 150
    known = [row for row in rows if "/test/" in row["path"]]
    near, far = ([row for row in rows if f"/ood/{name}/" in row["path"]] for name in ("near", "far"))

    def auroc(others: list[dict[str, Any]]) -> float:
        own, them = ([row["deciding_score"] for row in part] for part in (known, others))
        return float(roc_auc_score([0] * len(own) + [1] * len(them), own + them))

    stated = bundle.read(folder).evaluation
    accuracy = sum(Path(row["path"]).parent.name == row["label"] for row in known) / len(known)
    assert accuracy >= 0.86
    assert accuracy == pytest.approx(stated["accuracy"], abs=0.006)  # two photographs: kernels differ by machine
    for name, part, mark in (("near", near, 0.75), ("far", far, 0.98)):
        assert auroc(part) >= mark
        assert auroc(part) == pytest.approx(stated["ood"][name]["auroc"], abs=0.005)


# ---- A dozen photographs over HTTP -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with live.serving(MODELS / "cifar10-lt" / "2") as url, httpx.Client(base_url=url, timeout=60) as made:
        yield made


def answer(client: httpx.Client, name: str) -> dict[str, Any]:
    path = pictures.installed(name)
    if path is None:
        pytest.skip(f"{name.partition('/')[0]} is not installed: pip install --no-deps scikit-image scikit-learn")
    kind = mimetypes.guess_type(path.name)[0] or ""
    response = client.post("/classify", content=path.read_bytes(), headers={"content-type": kind})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("what", pictures.UNKNOWN)
def test_a_photograph_of_something_unknown_is_rejected(client: httpx.Client, what: str) -> None:
    body = answer(client, pictures.UNKNOWN[what])
    assert body["decision"] == "reject", (body["label"], body["deciding_score"])


@pytest.mark.parametrize(("name", "label"), pictures.KNOWN.items())
def test_a_photograph_of_a_known_class_is_accepted(client: httpx.Client, name: str, label: str) -> None:
    body = answer(client, name)
    assert (body["label"], body["decision"]) == (label, "accept"), body["deciding_score"]
