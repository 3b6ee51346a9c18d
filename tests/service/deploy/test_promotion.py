"""Shadow, promote and back over HTTP: what allows it, what stops it, and that they say the numbers."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service import __main__ as commands
from service.contract import bundle
from service.contract.keys import content_key, key_text
from service.deploy import evidence
from service.deploy.deployments import Deployment, stack
from service.deploy.evidence import Answered, Limits
from service.inference.shadow import Shadow, taught_classes
from service.ledger.writer import UNREADABLE
from service.settings import Settings
from tests.service import asgi, tiny
from tests.service.test_process import serving

KEY = {"x-api-key": "r00t"}
RED, GREY = tiny.photo((250, 20, 20)), tiny.photo((3, 2, 1))


def kept(bundle_: Path, where: Path) -> Settings:
    """Everything is kept, and all of it in the audit sample."""
    return Settings(bundle=bundle_, ledger=str(where), keep="all", keep_sample=1.0, inference_threads=1,
                    admin_keys="ops=r00t")  # fmt: skip


async def send(app: Any, client: httpx.AsyncClient, count: int, image: bytes = RED) -> list[str]:
    """The ids of so many requests, each seen by the shadow before the next."""
    ids = []
    for _ in range(count):
        before = app.state.runtime.shadow.seen.total()
        answer = await client.post("/classify", content=image, headers={"content-type": "image/png"})
        ids.append(answer.json()["request_id"])
        await until(lambda: app.state.runtime.shadow.seen.total() > before)  # noqa: B023
    return ids


async def until(true: Callable[[], Any]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it took too long")


async def label(client: httpx.AsyncClient, ids: list[str], truth: str) -> None:
    for one in ids:
        answer = await client.post("/feedback", json={"request_id": one, "label": truth})
        assert answer.status_code == 200, answer.text


def test_a_shadow_that_agrees_is_promoted_and_the_one_before_comes_back(versions: list[Path], tmp_path: Path) -> None:
    async def body() -> None:
        async with asgi.running(kept(versions[0], tmp_path / "ledger.sqlite3")) as (app, client):
            client.headers.update(KEY)
            assert (await client.post("/admin/promote", json={})).json()["detail"].startswith("there is no shadow")
            shadow = await client.put("/admin/shadow", json={"path": str(versions[1]), "share": 1})
            assert (shadow.json()["version"], shadow.json()["share"]) == ("2", 1)
            ids = await send(app, client, 8)
            early = await client.post("/admin/promote", json={})
            assert early.status_code == 409
            assert "compared on 8 images, and 200 are asked for" in early.json()["detail"]
            assert "0 reviewed images tell of it" in early.json()["detail"]
            await label(client, ids, "red")
            asked = {"path": str(versions[1]), "least_compared": 8, "least_reviewed": 8}
            for _ in range(100):  # images reach the store after their answers
                done = await client.post("/admin/promote", json=asked)
                if done.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            assert done.status_code == 200, done.text
            found = done.json()
            assert found["in_force"]["version"] == "2"
            assert found["evidence"] == {
                "compared": 8, "accepted": 8, "disagreement": 0.0, "newly_accepted": 0.0, "reviewed": 8, "sampled": 8,
                "right_before": 1.0, "right_after": 1.0, "outliers": 0, "caught": None, "objections": [],
            }  # fmt: skip
            assert app.state.runtime.shadow is None
            back = await client.post("/admin/back", json={})
            assert back.json()["version"] == "1"
            assert (await client.post("/admin/back", json={})).status_code == 409
            assert (await client.post("/admin/back", json={"to": "tiny/2"})).json()["version"] == "2"
            assert "was never deployed" in (await client.post("/admin/back", json={"to": "a/1"})).json()["detail"]

    asyncio.run(body())


def test_what_was_deployed_cannot_be_read(versions: list[Path], tmp_path: Path) -> None:
    async def body() -> None:
        none = tmp_path / "ledger.sqlite3"
        none.write_bytes(b"SQLite format 3\0" + b"not a database" * 1000)  # damaged behind its head
        async with asgi.running(kept(versions[0], none)) as (_, client):
            client.headers.update(KEY)
            await client.put("/admin/shadow", json={"path": str(versions[1]), "share": 1})
            for path in ("back", "promote"):
                answer = await client.post(f"/admin/{path}", json={})
                assert (answer.status_code, "the ledger cannot be read now" in answer.text) == (503, True)

    asyncio.run(body())


def test_the_bundle_of_the_start_is_gone_back_to_by_name(versions: list[Path], tmp_path: Path) -> None:
    """It was put in force by the setting, and stands in no deployment."""

    async def body() -> None:
        async with asgi.running(kept(versions[0], tmp_path / "ledger.sqlite3")) as (_, client):
            client.headers.update(KEY)
            for path in versions[1:]:
                assert (await client.put("/admin/bundle", json={"path": str(path)})).status_code == 200
            assert "were: tiny/1, tiny/2, tiny/3" in (await client.post("/admin/back", json={"to": "a/1"})).text
            assert (await client.post("/admin/back", json={"to": "tiny/1"})).json()["version"] == "1"
            assert (await client.post("/admin/back", json={})).status_code == 409

    asyncio.run(body())


@pytest.mark.parametrize("to", [{}, {"to": "tiny/1"}])
@pytest.mark.parametrize("first", ["1", "2"])
def test_another_bundle_at_the_old_path_is_not_gone_back_to(
    tmp_path: Path, versions: list[Path], to: dict[str, str], first: str
) -> None:
    """It would have decided by other thresholds and classes, and the way back is asked for when there is no time."""
    old = shutil.copytree(versions[0], tmp_path / "old")

    async def body() -> None:
        async with asgi.running(kept(old if first == "1" else versions[1], tmp_path / "ledger.sqlite3")) as (_, client):
            client.headers.update(KEY)
            for path in (old, versions[2])[first == "1" :]:
                assert (await client.put("/admin/bundle", json={"path": str(path)})).status_code == 200
            shutil.rmtree(old)
            shutil.copytree(versions[1], old)
            answer = await client.post("/admin/back", json=to)
            assert answer.status_code == 409
            assert f"{old} was tiny version 1, graph" in answer.json()["detail"]
            assert "is tiny version 2, graph" in answer.json()["detail"]
            assert (await client.get("/model")).json()["version"] == "3"
            shutil.rmtree(old)
            shutil.copytree(versions[0], old)
            assert (await client.post("/admin/back", json=to)).json()["version"] == "1"

    asyncio.run(body())


def test_a_worse_one_is_refused_with_its_numbers_unless_forced(versions: list[Path], tmp_path: Path) -> None:
    async def body() -> None:
        async with asgi.running(kept(versions[0], tmp_path / "ledger.sqlite3")) as (app, client):
            client.headers.update(KEY)
            await client.put("/admin/shadow", json={"path": str(versions[2]), "share": 1})
            await label(client, await send(app, client, 20), "red")
            for _ in range(100):
                refused = await client.post("/admin/promote", json={"least_compared": 20})
                said = refused.json()["detail"]
                if "reviewed images tell of it" not in said:
                    break
                await asyncio.sleep(0.05)
            assert "it differs on 100.0% (83.9% to 100.0%) of 20 images that were accepted, and 10% are allowed" in said
            assert "right on 0.0% of 20 sampled images and the model in force on 100.0%" in said
            assert (await client.get("/model")).json()["version"] == "1"
            forced = await client.post("/admin/promote", json={"least_compared": 20, "force": True})
            assert forced.json()["in_force"]["version"] == "3"
            assert len(forced.json()["evidence"]["objections"]) == 2
            gone = await client.put("/admin/shadow", json={"path": None})
            assert gone.json()["path"] is None
            bad = await client.put("/admin/shadow", json={"path": str(tmp_path / "none")})
            assert bad.status_code == 409

    asyncio.run(body())


def test_what_another_bundle_or_operating_point_decided_tells_nothing(versions: list[Path], tmp_path: Path) -> None:
    """Versions 1 and 2 are the same graph, as a bundle and the one that `recalibrate` makes of it."""

    async def body() -> None:
        async with asgi.running(kept(versions[0], tmp_path / "ledger.sqlite3")) as (app, client):
            client.headers.update(KEY)
            await client.put("/admin/shadow", json={"path": str(versions[2]), "share": 1})

            async def told(compared: int, reviewed: int) -> None:
                for _ in range(100):  # images reach the store after their answers
                    detail = (await client.post("/admin/promote", json={})).json()["detail"]
                    if f"{reviewed} reviewed images tell of it" in detail:
                        break
                    await asyncio.sleep(0.05)
                assert f"compared on {compared} images" in detail
                assert f"{reviewed} reviewed images tell of it" in detail

            await label(client, await send(app, client, 3), "red")
            other = await client.post("/classify?thresholds=global", content=RED, headers={"content-type": "image/png"})
            await label(client, [other.json()["request_id"]], "red")
            await told(3, 3)
            await client.put("/admin/bundle", json={"path": str(versions[1])})
            await told(0, 0)
            await label(client, await send(app, client, 2), "red")
            await told(2, 2)
            await client.put("/admin/operating-point", json={"threshold_scope": "global"})
            await told(0, 0)

    asyncio.run(body())


def test_images_that_it_was_trained_on_tell_nothing(tmp_path: Path, versions: list[Path]) -> None:
    provenance = tiny.manifest()["provenance"] | {"added": {"trained_keys": [key_text(content_key(RED))]}}
    taught = tiny.write(tmp_path / "taught", version="4", provenance=provenance)

    async def body() -> None:
        async with asgi.running(kept(versions[0], tmp_path / "ledger.sqlite3")) as (app, client):
            client.headers.update(KEY)
            await client.put("/admin/shadow", json={"path": str(taught), "share": 1})
            await label(client, await send(app, client, 3), "red")
            await label(client, await send(app, client, 2, GREY), "outlier")
            for _ in range(100):  # images reach the store after their answers
                said = (await client.post("/admin/promote", json={})).json()["detail"]
                if "2 reviewed images tell of it that it was not trained on" in said:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(said)

    asyncio.run(body())


@pytest.mark.parametrize(("before", "after", "outcome"), [
    ("accept red", "accept red", "same"),
    ("accept red", "accept blue", "label-differs"),
    ("accept red", "accept violet", "label-differs"),  # a new class too: it had an answer
    ("accept red", "reject red", "decision-differs"),
    ("reject red", "reject blue", "both-refuse"),
    ("reject red", "accept violet", "taught"),  # the model in force lacks it
    ("reject red", "accept green", "taught"),  # people reviewed images of it
    ("reject red", "accept red", "newly-accepted"),
    ("reject red", "accept blue", "newly-accepted"),  # learned, but from no image that was taught
])  # fmt: skip
def test_what_becomes_of_an_image(before: str, after: str, outcome: str) -> None:
    names = ("red", "green", "blue", "violet")
    added = {"new_classes": {}, "known_classes": {"green": {"train": 3, "test": 1}, "blue": {"train": 0, "test": 2}}}
    manifest: Any = SimpleNamespace(
        classes=[SimpleNamespace(name=name) for name in names], provenance=SimpleNamespace(added=added)
    )
    decision, name = after.split()
    shadow = object.__new__(Shadow)
    shadow.model, shadow.taught = SimpleNamespace(manifest=manifest), taught_classes(manifest)  # type: ignore[assignment]
    verdict = SimpleNamespace(class_index=names.index(name), decision=decision, reason=None)
    shadow.verdict = lambda row: verdict  # type: ignore[assignment, return-value, method-assign]
    was, label = before.split()
    row: Any = None
    answered: Any = SimpleNamespace(decision=was, reason=None)
    assert shadow._outcome(row, label, answered, names[:3]) == outcome


def weighed(answered: list[Answered], claimed: float | None = 0.9, **seen: int) -> evidence.Evidence:
    point = SimpleNamespace(cost=lambda scope: SimpleNamespace(test=SimpleNamespace(outliers_caught=claimed)))
    model = SimpleNamespace(manifest=SimpleNamespace(operating_points={"id95": point}), operating_point="id95",
                            scope="group")  # fmt: skip
    shadow: Any = SimpleNamespace(model=model, seen=Counter({key.replace("_", "-"): n for key, n in seen.items()}))
    return evidence.weigh(shadow, answered, Limits())


def test_what_it_was_taught_is_no_disagreement_and_outliers_are_held_against_its_claim() -> None:
    fine = [Answered(True, True, False, False, True)] * 20
    assert weighed(fine, same=100, taught=100).objections == []
    found = weighed(fine, same=180, both_refuse=200, taught=100, label_differs=20)  # just as many as are allowed
    assert (found.compared, found.accepted, found.disagreement, found.objections) == (500, 200, 0.1, [])
    [said] = weighed(fine, same=79, both_refuse=100, taught=100, label_differs=11, decision_differs=10).objections
    assert said.startswith("it differs on 21.0% (14.2% to 30.0%) of 100 images that were accepted")
    assert weighed(fine, both_refuse=150, taught=50).objections == []  # a stream of which nothing was accepted
    found = weighed(fine, same=50, both_refuse=130, newly_accepted=20)
    assert (found.disagreement, found.newly_accepted, found.objections) == (0.0, 0.1, [])
    [said] = weighed(fine, same=50, newly_accepted=150).objections  # it accepts everything
    assert said.startswith("it accepts, under classes that nobody reviewed for it, what was refused: 75.0%")
    assert len(weighed([], same=50, both_refuse=150).objections) == 1  # nothing was reviewed
    [said] = weighed(fine, same=29, skipped=241, failed=12).objections
    assert said.startswith("it has been compared on 29 images (241 were skipped while the service was busy, 12 failed)")
    outliers = [Answered(True, i < 12, True, True, False) for i in range(20)]  # 12 of 20: at most 78%
    [said] = weighed(outliers, same=200).objections
    assert said.startswith("of 20 confirmed outliers it refuses 12, at most 78.1%, and its manifest claims 90.0%")
    assert weighed(outliers, claimed=0.75, same=200).objections == []


def test_a_shadow_that_is_right_more_often_may_differ() -> None:
    """Images of a new class that were accepted as one like it: of 60 sampled, 12 gained and 2 lost, 4.6 to 27.7 points
    ((10 - 1.96 sqrt(15 - 100/62)) / 62 and + 1.96 …: paired, Agresti and Min), so the low end is above 0."""

    def sampled(gained: int, lost: int, same: int, drawn: bool = True) -> list[Answered]:
        rows = [(False, True)] * gained + [(True, False)] * lost + [(True, True)] * same
        return [Answered(before, after, False, False, drawn) for before, after in rows]

    seen = {"same": 140, "label_differs": 60}
    assert weighed(sampled(12, 2, 46), **seen).objections == []
    assert len(weighed(sampled(12, 8, 40), **seen).objections) == 1  # better by 4 in 60 is no proof
    assert (
        len(weighed(sampled(12, 2, 46, drawn=False), **seen).objections) == 1
    )  # such as were refused alone: no sample
    assert len(weighed(sampled(10, 0, 9), **seen).objections) == 2  # too few were reviewed
    [said] = weighed(sampled(12, 2, 46), newly_accepted=100, **seen).objections
    assert said.startswith("it accepts, under classes that nobody reviewed for it, what was refused: 33.3%")


def test_what_lies_upon_what() -> None:
    def deployed(*given: tuple[str, str]) -> list[str]:
        rows = [Deployment(i, 0.0, action, f"/m/{v}", "m", v, "", None, None)  # type: ignore[arg-type]
                for i, (action, v) in enumerate(given)]  # fmt: skip
        return [one.path for one in stack(rows, Path("/m/1"))]

    assert deployed() == ["/m/1"]
    assert deployed(("swap", "2"), ("promote", "3")) == ["/m/1", "/m/2", "/m/3"]
    assert deployed(("swap", "2"), ("promote", "3"), ("back", "2")) == ["/m/1", "/m/2"]
    assert deployed(("swap", "2"), ("promote", "3"), ("back", "1")) == ["/m/1"]
    assert deployed(("swap", "2"), ("back", "1"), ("back", "2")) == ["/m/1", "/m/2"]
    assert deployed(("swap", "2"), ("swap", "2")) == ["/m/1", "/m/2"]


def test_the_command_against_a_real_service(
    versions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"BUNDLE": str(versions[0]), "LEDGER": str(tmp_path / "l.sqlite3"), "ADMIN_KEYS": "ops=r00t"}

    def promote(port: int, *arguments: str, key: str = "r00t") -> tuple[int, str]:
        url = f"http://127.0.0.1:{port}"
        for _ in range(10):  # a disk that keeps a transaction waiting for a second is told, with the remedy
            status = commands.main(["promote", *arguments, "--url", url, "--key", key])
            printed = capsys.readouterr()
            said = printed.out + printed.err
            if UNREADABLE not in said:
                break
        return status, said

    sha = bundle.read(versions[1]).sha256[:16]
    with serving(**given) as (_, port):
        status, said = promote(port, str(versions[1]), "--shadow", "--share", "0.5")
        assert (status, said) == (0, f"the shadow is tiny version 2, graph {sha}\n")
        status, said = promote(port, str(versions[1]))
        assert status == 1
        assert "tailguard: not promoted: it has been compared on 0 images" in said
        status, said = promote(port, str(versions[1]), "--force")
        assert said.startswith(
            f"in force: tiny version 2, graph {sha}\ncompared on 0 images, differed on - of the 0 that were accepted"
        )
        assert promote(port, "--back")[1].startswith("back to tiny version 1")
        assert "give one with the role admin by --key" in promote(port, "--back", key="wrong")[1]
    status, said = promote(port)
    assert status == 1
    assert "cannot be asked" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        # Put the shadow in force, where the way back was wanted
        (["--to", "tiny/1"], "--to tiny/1 goes with --back"),
        (["models/tiny/2", "--share", "0.2"], "--share 0.2 goes with --shadow"),
        (["models/tiny/1", "--back"], "--back takes neither a bundle nor --shadow"),
        (["--back", "--shadow"], "--back takes neither a bundle nor --shadow"),
        (["--back", "--force"], "--force says nothing to --back"),
        (["models/tiny/2", "--shadow", "--least-compared", "9"], "--least-compared says nothing"),
        ([], "foo cannot be asked"),
        (["--url", "http://a b"], "http://a b cannot be asked"),
    ],
)
def test_no_option_of_the_command_is_passed_over(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["promote", "--url", "foo", *given]) == 1
    assert f"tailguard: {said}" in capsys.readouterr().err
