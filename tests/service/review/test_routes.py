"""The review over HTTP on both databases: groups, labels, undo, claims, the audit sample, what was deleted."""

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from service.contract.bundle import Manifest
from service.ledger.database import connect
from service.ledger.tables import Tables
from service.review import front, regroup
from service.review.sorter import GROUPING
from service.settings import Settings
from service.web.app import create_app
from tests.service.asgi import assert_problem
from tests.service.review.kept import Given, colours, fill, picture

WAIT_S = 90
VIOLET, ORANGE, GREY = (120, 20, 220), (240, 120, 10), (90, 90, 90)
Open = Callable[..., TestClient]

KEYS = "".join(f'[keys.{name}]\nkey = "{key}"\nroles = ["review"]\n' for name, key in (("ann", "k1"), ("ben", "k2")))


def by_colour(embedding: NDArray[np.floating], limit_s: float = 0) -> NDArray[np.int32]:
    """In place of the program, whose start takes seconds: the two colours apart."""
    likeness = embedding.astype(float) @ np.array([VIOLET, ORANGE], float).T / np.linalg.norm([VIOLET, ORANGE], axis=1)
    return np.asarray(likeness.argmax(axis=1), np.int32)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regroup, "missing", lambda: None)
    monkeypatch.setattr(regroup, "clusters", by_colour)


@pytest.fixture
def opened(where: str, tmp_path: Path, embedding_bundle: Path) -> Iterator[Open]:
    """A function that starts a service on the ledger; all of them end with the test."""
    started: list[TestClient] = []

    def start(**changes: Any) -> TestClient:
        settings = {
            "bundle": embedding_bundle,
            "inference_threads": 1,
            "ledger": where,
            "store": str(tmp_path / "store"),
        }
        client = TestClient(create_app(Settings.model_validate(settings | {"keep": "rejected"} | changes)))
        started.append(client.__enter__())
        return client

    yield start
    for client in started:
        client.__exit__(None, None, None)


@pytest.fixture
def kept(where: str, tmp_path: Path, manifest: Manifest) -> str:
    """24 violet images, 16 orange ones, and 6 grey ones of the audit sample of which none was rejected."""
    given = colours({VIOLET: 24, ORANGE: 16})
    sample = [Given(picture(GREY, 900 + i), None, "accept", sampled=True) for i in range(6)]
    fill(where, tmp_path / "store", manifest, [*given, *sample])
    return where


def grouped(client: TestClient, **headers: str) -> list[dict[str, Any]]:
    """The groups, once they are made."""
    deadline = time.monotonic() + WAIT_S
    while True:
        answer = client.get("/review/groups", headers=headers).raise_for_status().json()
        if not answer["grouping"] and any(group["images"] > 1 for group in answer["groups"]):
            return list(answer["groups"])
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def images(client: TestClient, group: str) -> list[dict[str, Any]]:
    return list(client.get(f"/review/groups/{group}").raise_for_status().json()["shown"])


def label(client: TestClient, rows: list[int], kind: str, name: str = "", **more: Any) -> Any:
    return client.post("/review/labels", json={"rows": rows, "kind": kind, "label": name} | more)


def colour_of(client: TestClient, group: dict[str, Any]) -> tuple[int, int, int]:
    """Of the middle of the group's first picture."""
    answer = client.get(f"/review/images/{group['keys'][0]}").raise_for_status()
    pixel = Image.open(io.BytesIO(answer.content)).convert("RGB").getpixel((16, 12))
    assert isinstance(pixel, tuple)
    return (int(pixel[0]), int(pixel[1]), int(pixel[2]))


@pytest.mark.skipif(regroup.missing() is not None, reason="scikit-learn is not installed")
def test_groups_come_from_a_process_of_its_own(kept: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    client = opened()
    groups = grouped(client)
    assert sum(group["images"] for group in groups) == 40
    for group in groups:
        shown = [group | {"keys": [image["key"]]} for image in images(client, group["id"])]
        assert len({colour_of(client, one) for one in shown}) == 1


def test_a_group_becomes_a_new_class_and_is_undone(kept: str, opened: Open) -> None:
    client = opened()
    groups = grouped(client)
    sizes = [group["images"] for group in groups]
    assert sum(sizes) == 40
    first = groups[0]
    assert first["nearest"] == "red"  # predicted so, all of them: this bundle holds no exemplars
    assert first["distance"] is None
    seen = images(client, first["id"])
    assert [image["distance"] for image in seen] == sorted(image["distance"] for image in seen)
    rows = [image["row"] for image in seen]
    answer = label(client, rows, "new", "violet", group=first["id"]).raise_for_status().json()
    assert answer["rows"] == rows
    progress = client.get("/review/progress").json()
    assert progress["waiting"] == 40 - len(rows)
    assert progress["labelled"] == {"new": len(rows)}
    assert progress["new_classes"] == {"violet": len(rows)}
    assert first["id"] not in [group["id"] for group in grouped(client)]
    undone = client.post("/review/undo", json={"action": answer["action"]}).raise_for_status().json()
    assert undone == {"rows": sorted(rows), "changed": []}
    assert client.get("/review/progress").json()["waiting"] == 40
    assert images(client, first["id"]) == seen


def test_groups_stay_through_a_restart(kept: str, opened: Open) -> None:
    client = opened()
    groups = grouped(client)
    assert [group["images"] for group in groups] == [24, 16]
    again = opened()  # another replica, or the same one after a restart: it knows only what is in the ledger
    assert {group["id"] for group in again.get("/review/groups").json()["groups"]} == {g["id"] for g in groups}


def test_new_images_join_at_once_and_a_labelled_group_is_not_torn(
    kept: str, opened: Open, manifest: Manifest, tmp_path: Path
) -> None:
    client = opened()
    violet = next(group for group in grouped(client) if colour_of(client, group) == VIOLET)
    rows = [image["row"] for image in images(client, violet["id"])]
    label(client, rows[:2], "new", "violet", group=violet["id"]).raise_for_status()
    more = colours({VIOLET: 5}, noise=0.0005, seed=3)
    more = [one._replace(file=picture(VIOLET, 500 + i)) for i, one in enumerate(more)]
    fill(kept, tmp_path / "store", manifest, more, start=100)
    time.sleep(1.1)  # the desk looks once a second
    joined = client.get(f"/review/groups/{violet['id']}").raise_for_status().json()
    assert joined["images"] == len(rows) - 2 + 5
    assert joined["said"] == {"kind": "new", "label": "violet", "images": 2}


def test_what_was_labelled_meanwhile_keeps_its_label(kept: str, opened: Open) -> None:
    client = opened()
    rows = [image["row"] for image in images(client, grouped(client)[0]["id"])]
    label(client, rows[:3], "outlier").raise_for_status()
    answer = label(client, rows, "class", "blue").raise_for_status().json()
    assert answer["rows"] == rows[3:]
    assert answer["already"] == [{"row": row, "kind": "outlier", "label": "outlier", "by": None} for row in rows[:3]]
    again = label(client, rows[:3], "class", "blue", again=True).raise_for_status().json()
    assert again["rows"] == rows[:3]
    assert client.get("/review/progress").json()["labelled"] == {"class": len(rows)}


def test_what_another_replica_labels_in_between_keeps_its_label(
    kept: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what has a label and the label, another replica gives one."""
    client, other = opened(), opened()
    rows = [image["row"] for image in client.get("/review/audit").json()["shown"][:2]]
    open_before = front._open

    def then_other(*given: Any) -> Any:
        found = open_before(*given)
        if given[2] == "one":
            label(other, rows[:1], "new", "violet", group="two").raise_for_status()
        return found

    monkeypatch.setattr(front, "_open", then_other)
    answer = label(client, rows, "outlier", group="one").raise_for_status().json()
    assert (answer["rows"], answer["gone"]) == (rows[1:], [])
    assert answer["already"] == [{"row": rows[0], "kind": "new", "label": "violet", "by": None}]
    assert client.get("/review/progress").json()["labelled"] == {"new": 1, "outlier": 1}


def test_rows_that_retention_or_somebody_has_deleted(kept: str, opened: Open) -> None:
    client = opened()
    group = grouped(client)[0]
    rows = [image["row"] for image in images(client, group["id"])]
    keys = [image["key"] for image in images(client, group["id"])]
    database = connect(kept)
    database.execute("DELETE FROM decisions WHERE row = ?", (rows[0],))
    database.execute("UPDATE decisions SET image_key = NULL, embedding = NULL WHERE row = ?", (rows[1],))
    database.close()
    answer = label(client, rows[:3], "unsure", group=group["id"]).raise_for_status().json()
    assert (answer["gone"], answer["rows"]) == (rows[:2], rows[2:3])
    for kind in ("images", "thumbnails"):
        assert client.get(f"/review/{kind}/{keys[0]}").status_code == 404
        assert client.get(f"/review/{kind}/{keys[2]}").status_code == 200
    time.sleep(1.1)
    assert len(images(client, group["id"])) == len(rows) - 3


def test_the_audit_sample_is_apart_and_in_random_order(kept: str, opened: Open) -> None:
    client = opened()
    assert all(colour_of(client, group) != GREY for group in grouped(client))
    audit = client.get("/review/audit").json()
    rows = [image["row"] for image in audit["shown"]]
    assert audit["waiting"] == 6
    assert sorted(rows) != rows
    assert rows == [image["row"] for image in client.get("/review/audit").json()["shown"]]  # the same for everybody
    label(client, rows[:1], "class", "red", group="audit").raise_for_status()
    client.post("/review/claims", json={"items": [f"row-{rows[1]}"], "desk": "a"}).raise_for_status()
    assert [image["row"] for image in client.get("/review/audit").json()["shown"]] == rows[2:]
    progress = client.get("/review/progress").json()
    assert (progress["audit_waiting"], progress["audit_labelled"]) == (5, 1)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS, encoding="utf-8")
    return path


def test_two_reviewers_do_not_label_the_same_images(kept: str, opened: Open, keys: Path) -> None:
    ann, ben = opened(keys_file=keys), opened(keys_file=keys)  # two replicas on one ledger
    ann.headers["x-api-key"], ben.headers["x-api-key"] = "k1", "k2"
    group = grouped(ann)[0]["id"]
    claimed = ann.post("/review/claims", json={"items": [group], "desk": "a"}).json()
    assert claimed["granted"] == [group]
    refused = ben.post("/review/claims", json={"items": [group], "desk": "b"}).json()
    assert (refused["granted"], refused["refused"][group]["by"]) == ([], "ann")
    time.sleep(1.1)
    listed = next(g for g in ben.get("/review/groups").json()["groups"] if g["id"] == group)
    assert listed["claim"]["by"] == "ann"
    rows = [image["row"] for image in images(ann, group)]
    answer = label(ben, rows, "outlier", group=group, desk="b")
    assert answer.status_code == 409
    assert "ann is looking at" in answer.json()["detail"]
    assert label(ann, rows, "new", "violet", group=group, desk="a").json()["rows"] == rows
    ann.post("/review/release", json={"items": [group], "desk": "a"}).raise_for_status()
    late = label(ben, rows, "outlier", group=group, desk="b").json()
    assert (late["rows"], {one["by"] for one in late["already"]}) == ([], {"ann"})
    assert ben.post("/review/undo", json={}).status_code == 404  # nothing of his


def test_what_was_claimed_while_the_clock_was_ahead_is_free(kept: str, opened: Open) -> None:
    """Nothing was grouped for a year, and an image that somebody had looked at could not be labelled."""
    database = connect(kept)
    Tables(database)
    for item in (GROUPING, "row-41"):
        database.execute("INSERT INTO claims VALUES (?, 'ann#a', ?)", (item, time.time() + 365 * 86_400))
    database.close()
    client = opened()
    assert sum(group["images"] for group in grouped(client)) == 40
    assert label(client, [41], "outlier", desk="b").json()["rows"] == [41]


def test_a_ledger_that_is_replaced_is_reviewed_as_it_is_now(opened: Open, manifest: Manifest, tmp_path: Path) -> None:
    """Row 1 is another image by now: what was read before would be shown, and the other labelled."""
    where, other = tmp_path / "now.sqlite3", tmp_path / "other.sqlite3"
    fill(str(where), tmp_path / "store", manifest, colours({VIOLET: 12}))
    fill(str(other), tmp_path / "store", manifest, colours({ORANGE: 9}, seed=3))
    client = opened(ledger=str(where))
    assert {colour_of(client, group) for group in grouped(client)} == {VIOLET}
    other.replace(where)
    time.sleep(1.1)
    assert {colour_of(client, group) for group in client.get("/review/groups").json()["groups"]} == {ORANGE}


def test_undo_goes_back_step_by_step_and_leaves_others_labels(kept: str, opened: Open, keys: Path) -> None:
    client = opened(keys_file=keys)
    ann, ben = {"x-api-key": "k1"}, {"x-api-key": "k2"}

    def say(rows: list[int], name: str, who: dict[str, str]) -> Any:
        body = {"rows": rows, "kind": "new", "label": name, "again": True}
        return client.post("/review/labels", json=body, headers=who).raise_for_status().json()

    def now(row: int) -> tuple[str, str, str | None] | None:
        database = connect(kept)
        found = database.fetch("SELECT kind, label, api_key FROM feedback WHERE decision_row = ? ORDER BY row", (row,))
        database.close()
        return found[-1] if found else None  # type: ignore[return-value]

    first, second = (image["row"] for image in client.get("/review/audit", headers=ann).json()["shown"][:2])
    say([first, second], "x", ben)
    say([first, second], "y", ann)
    say([first], "z", ann)
    undone = client.post("/review/undo", json={}, headers=ann).json()
    assert undone["rows"] == [first]
    assert now(first) == ("new", "y", "ann")
    assert client.post("/review/undo", json={}, headers=ann).json()["rows"] == sorted([first, second])
    assert now(first) == ("new", "x", "ben")
    assert client.post("/review/undo", json={}, headers=ann).status_code == 404
    mine = say([first], "z", ann)
    say([first], "w", ben)
    assert client.post("/review/undo", json={"action": mine["action"]}, headers=ann).json() == {
        "rows": [], "changed": [first]
    }  # fmt: skip
    assert now(first) == ("new", "w", "ben")


def test_what_changes_nothing_is_no_action_that_an_undo_could_take_for_another(kept: str, opened: Open) -> None:
    """The number of the action before came back, whose undo took the labels of all its images."""
    client = opened()
    first, second = (image["row"] for image in client.get("/review/audit").json()["shown"][:2])
    label(client, [first, second], "new", "x").raise_for_status()
    same = label(client, [first], "new", "x", again=True).raise_for_status().json()
    assert (same["action"], same["rows"]) == (None, [first])


def test_undo_of_a_label_that_was_given_twice_does_not_go_round(kept: str, opened: Open) -> None:
    """x, y, x again: what the first undo writes looks like the second label, and the second one like the first."""
    client = opened()
    row = client.get("/review/audit").json()["shown"][0]["row"]
    for name in ("x", "y", "x"):
        label(client, [row], "new", name, again=True).raise_for_status()
    said = []
    for _ in range(3):
        assert client.post("/review/undo", json={}).json()["rows"] == [row]
        said.append(client.get("/review/progress").json()["new_classes"])
    assert said == [{"y": 1}, {"x": 1}, {}]
    assert client.post("/review/undo", json={}).status_code == 404


def test_undo_leaves_what_another_replica_labels_in_between(
    kept: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what an undo would write and the writing, another replica gives a label, or undoes too."""
    client, other = opened(), opened()
    rows = [image["row"] for image in client.get("/review/audit").json()["shown"][:3]]
    label(client, rows, "new", "violet").raise_for_status()
    action = label(client, rows, "outlier", again=True).raise_for_status().json()["action"]
    before, looked = front._before, []

    def then_other(*given: Any) -> Any:
        found = before(*given)
        looked.append(given)
        if len(looked) == 2:  # the first look is for what the action was
            label(other, rows[:1], "class", "red", again=True).raise_for_status()
            assert other.post("/review/undo", json={"action": action}).json()["rows"] == sorted(rows[1:])
            label(other, rows[1:2], "class", "red", again=True).raise_for_status()
        return found

    monkeypatch.setattr(front, "_before", then_other)
    answer = client.post("/review/undo", json={"action": action}).raise_for_status().json()
    assert answer == {"rows": [], "changed": sorted(rows)}
    progress = client.get("/review/progress").json()
    assert (progress["labelled"], progress["new_classes"]) == ({"class": 2, "new": 1}, {"violet": 1})


def test_names_that_are_none(kept: str, opened: Open) -> None:
    client = opened()
    document = client.get("/openapi.json").json()
    row = client.get("/review/audit").json()["shown"][0]["row"]
    for name in ("", "..", "outlier", "x" * 1000, "a/b", "<b>bold</b>", "\u202ecat", "a\nb"):
        answer = label(client, [row], "new", name)
        assert_problem(answer, 422, "label", document)
        assert all(c.isprintable() for c in answer.json()["detail"])
    assert_problem(label(client, [row], "class", "violet"), 422, "send it as the kind new", document)
    for body in ({"rows": [], "kind": "outlier"}, {"rows": [1] * 201, "kind": "outlier"}, {"rows": [row], "kind": "x"}):
        assert_problem(client.post("/review/labels", json=body), 422, "", document)
    assert label(client, [row], "new", "Red").json()["rows"] == [row]  # the class red, called otherwise
    assert client.get("/review/progress").json()["labelled"] == {"class": 1}


def test_numbers_and_words_that_no_database_holds(kept: str, opened: Open) -> None:
    client = opened()
    document = client.get("/openapi.json").json()
    row = client.get("/review/audit").json()["shown"][0]["row"]
    for wrong in (2**63, 10**400, -1, True, "5"):
        answer = label(client, [row, wrong], "outlier")
        assert_problem(answer, 422, "rows[1]=", document)
    assert_problem(label(client, [row], "outlier", group="a\0"), 422, "group=", document)
    assert_problem(client.post("/review/claims", json={"items": ["a\0"], "desk": "one"}), 422, "items[0]=", document)
    assert client.get("/review/progress").json()["labelled"] == {}


def test_no_request_has_an_id_that_no_database_holds(kept: str, opened: Open) -> None:
    """PostgreSQL refused the transaction, and with it the labels of others; any key may ask for this."""
    client = opened()
    document = client.get("/openapi.json").json()
    for wrong in ("a%00b", "x" * 200):
        assert_problem(client.delete(f"/requests/{wrong}"), 404, "is no id of a request", document)


def test_a_label_after_one_that_was_forgotten_is_seen(kept: str, opened: Open) -> None:
    """SQLite gives the number of the last row again once that is deleted: what was read up to it is not all."""
    client = opened()
    first, second = client.get("/review/audit").json()["shown"][:2]
    label(client, [first["row"]], "outlier").raise_for_status()
    assert client.delete(f"/requests/{first['request_id']}").status_code == 200
    label(client, [second["row"]], "new", "grey").raise_for_status()
    progress = client.get("/review/progress").json()
    assert (progress["labelled"], progress["audit_labelled"]) == ({"new": 1}, 1)
    assert second["row"] not in [image["row"] for image in client.get("/review/audit").json()["shown"]]


def test_a_group_called_undo_is_none(kept: str, opened: Open) -> None:
    """It is the mark of what an undo has written, which the next undo passes by."""
    client = opened()
    document = client.get("/openapi.json").json()
    first, second = (image["row"] for image in client.get("/review/audit").json()["shown"][:2])
    label(client, [first], "outlier").raise_for_status()
    assert_problem(label(client, [second], "outlier", group="undo"), 422, "group=undo is no group", document)
    assert client.post("/review/undo", json={}).json() == {"rows": [first], "changed": []}


def test_a_class_of_the_model_that_decided_is_none_that_is_new(
    where: str, opened: Open, manifest: Manifest, tmp_path: Path
) -> None:
    """The bundle was swapped between refusal and label: the one in force lacks the class."""
    slug = manifest.classes[0].model_copy(update={"name": "sea slug"})
    before = manifest.model_copy(update={"version": "0", "classes": [slug, *manifest.classes[1:]]})
    fill(where, tmp_path / "store", before, [Given(picture(GREY), None)])
    client = opened()
    assert label(client, [1], "new", "Sea  Slug").json()["rows"] == [1]
    assert client.get("/review/progress").json()["labelled"] == {"class": 1}


def test_an_import_with_text_that_is_none(kept: str, opened: Open) -> None:
    """A lone surrogate stands in JSON and can stand in no answer."""
    client = opened()
    sent = '{"classes": ["red"], "labels": {"\\ud800": %d}}'
    answer = client.post("/review/import", content=sent % 0).raise_for_status().json()
    assert (answer["unknown"], answer["labelled"]) == (["\\ud800"], 0)
    assert_problem(
        client.post("/review/import", content=sent % 7), 422, "there are 1 classes", client.get("/openapi.json").json()
    )


def test_who_may_review(kept: str, opened: Open, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        '[keys.app]\nkey = "a"\nroles = ["classify"]\n[keys.eva]\nkey = "e"\nroles = ["review"]\n', encoding="utf-8"
    )
    client = opened(keys_file=keys)
    for path in ("/review/groups", "/review/audit", "/review/progress", "/review/export"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"x-api-key": "a"}).status_code == 403
        assert client.get(path, headers={"x-api-key": "e"}).status_code == 200
    assert label(client, [1], "outlier").status_code == 401


def test_a_page_of_another_site_cannot_label(kept: str, opened: Open) -> None:
    client = opened()
    row = client.get("/review/audit").json()["shown"][0]["row"]
    body = {"rows": [row], "kind": "outlier"}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/review/labels", json=body, headers=headers).status_code == 403
    assert client.get("/review/progress").json()["labelled"] == {}
    same = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
    assert client.post("/review/labels", json=body, headers=same).status_code == 200


def test_images_are_served_as_what_they_are(kept: str, opened: Open) -> None:
    client = opened()
    key = client.get("/review/audit").json()["shown"][0]["key"]
    full, small = client.get(f"/review/images/{key}"), client.get(f"/review/thumbnails/{key}")
    assert (full.headers["content-type"], small.headers["content-type"]) == ("image/png", "image/jpeg")
    for answer in (full, small):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"].startswith("private")
        assert "sandbox" in answer.headers["content-security-policy"]
    for wrong in ("..%2f..%2fetc", "0" * 64, "x"):
        assert client.get(f"/review/images/{wrong}").status_code == 404


def test_a_ledger_that_cannot_be_read_is_asked_again_later(opened: Open, tmp_path: Path) -> None:
    none = tmp_path / "none.sqlite3"
    none.write_bytes(b"SQLite format 3\0" + b"not a database" * 1000)  # damaged behind its head
    client = opened(ledger=str(none))
    document = client.get("/openapi.json").json()
    for path in ("groups", "export"):
        assert_problem(client.get(f"/review/{path}"), 503, "ledger", document)


def test_a_store_that_cannot_be_read_is_asked_again_later(kept: str, opened: Open, tmp_path: Path) -> None:
    client = opened()
    key = client.get("/review/audit").json()["shown"][0]["key"]
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("a file where the folder was")
    for kind in ("images", "thumbnails"):
        answer = client.get(f"/review/{kind}/{key}")
        assert_problem(answer, 503, "the image store cannot be read now", client.get("/openapi.json").json())


def test_without_a_ledger_or_kept_images(opened: Open, tmp_path: Path) -> None:
    assert opened(ledger="off", keep="none", store=None).get("/review/groups").status_code == 404
    client = opened(ledger=":memory:", keep="none", store=None)
    assert "KEEP=rejected" in client.get("/review/groups").json()["note"]
    assert client.get("/review/progress").json()["waiting"] == 0
    assert "KEEP_SAMPLE=0.01" in client.get("/review/audit").json()["note"]


def test_a_sample_that_is_drawn_or_waits_needs_no_note(kept: str, opened: Open) -> None:
    waits = opened(keep="rejected", keep_sample=0.0).get("/review/audit").json()
    assert waits["waiting"]
    assert waits["note"] is None
    assert (
        opened(ledger=":memory:", keep="none", keep_sample=0.5, store=None).get("/review/audit").json()["note"] is None
    )


def test_what_the_service_refuses_comes_to_the_review(opened: Open, where: str) -> None:
    """The whole way: classified, refused, kept, grouped, labelled, exported; also with everything in memory."""
    grey = [picture((10 + i, 10 + i, 10 + i), i) for i in range(5)]
    for client in (opened(), opened(ledger=":memory:", store=None)):
        asked = []
        for data in grey:
            answer = client.post("/classify", content=data, headers={"content-type": "image/png"}).json()
            assert answer["decision"] == "reject"
            asked.append(answer["request_id"])
        deadline = time.monotonic() + WAIT_S
        found: list[dict[str, Any]] = []
        while len(found) < len(grey):
            assert time.monotonic() < deadline
            groups = client.get("/review/groups").raise_for_status().json()["groups"]
            found = [image for group in groups for image in images(client, group["id"])]
            time.sleep(0.2)
        assert {image["request_id"] for image in found} == set(asked)
        thumbnail = client.get(f"/review/thumbnails/{found[0]['key']}")
        assert thumbnail.content.startswith(b"\xff\xd8\xff")
        assert client.delete(f"/requests/{asked[0]}").status_code in (200, 204)
        rows = [image["row"] for image in found]
        answer = label(client, rows, "new", "grey thing").raise_for_status().json()
        assert len(answer["gone"]) == 1
        assert len(answer["rows"]) == 4
        with tarfile.open(fileobj=io.BytesIO(client.get("/review/export").raise_for_status().content)) as tar:
            names = tar.getnames()
        assert sorted(name.rpartition("/")[0] for name in names) == ["", *["train/grey thing"] * 4]
        studio = [{"image": names[0], "choice": "blue"}, {"image": "0" * 16 + ".png", "choice": "blue"}]
        imported = client.post("/review/import", json=studio).raise_for_status().json()
        assert imported == {
            "labelled": 0, "already": 1, "unknown": ["0" * 16 + ".png"], "unknown_count": 1, "skipped": 0
        }  # fmt: skip
