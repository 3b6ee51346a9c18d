"""Shadow, promote and back over HTTP: what allows it, what stops it, and that they say the numbers."""

import asyncio
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
                "compared": 8, "disagreement": 0.0, "reviewed": 8, "sampled": 8, "right_before": 1.0,
                "right_after": 1.0, "outliers": 0, "caught": None, "objections": [],
            }  # fmt: skip
            assert app.state.runtime.shadow is None
            back = await client.post("/admin/back", json={})
            assert back.json()["version"] == "1"
            assert (await client.post("/admin/back", json={})).status_code == 409
            assert (await client.post("/admin/back", json={"to": "tiny/2"})).json()["version"] == "2"
            assert "was never deployed" in (await client.post("/admin/back", json={"to": "a/1"})).json()["detail"]

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
            assert "it differs on 100.0% (83.9% to 100.0%) of 20 images, and 10% are allowed" in said
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


def weighed(answered: list[Answered], claimed: float | None = 0.9, **seen: int) -> evidence.Evidence:
    point = SimpleNamespace(cost=lambda scope: SimpleNamespace(test=SimpleNamespace(outliers_caught=claimed)))
    model = SimpleNamespace(manifest=SimpleNamespace(operating_points={"id95": point}), operating_point="id95",
                            scope="group")  # fmt: skip
    shadow: Any = SimpleNamespace(model=model, seen=Counter({key.replace("_", "-"): n for key, n in seen.items()}))
    return evidence.weigh(shadow, answered, Limits())


def test_what_it_was_taught_is_no_disagreement_and_outliers_are_held_against_its_claim() -> None:
    fine = [Answered(True, True, False, False, True)] * 20
    assert weighed(fine, same=100, new_class=100).objections == []
    assert weighed(fine, same=100, new_class=80, label_differs=20).objections == []  # just as many as are allowed
    assert "differs on 10.5%" in weighed(fine, same=99, new_class=80, decision_differs=21).objections[0]
    outliers = [Answered(True, i < 12, True, True, False) for i in range(20)]  # 12 of 20: at most 78%
    [said] = weighed(outliers, same=200).objections
    assert said.startswith("of 20 confirmed outliers it refuses 12, at most 78.1%, and its manifest claims 90.0%")
    assert weighed(outliers, claimed=0.75, same=200).objections == []


def test_what_lies_upon_what() -> None:
    def deployed(*given: tuple[str, str]) -> list[str]:
        rows = [Deployment(i, 0.0, action, f"/m/{v}", "m", v, "", None, None)  # type: ignore[arg-type]
                for i, (action, v) in enumerate(given)]  # fmt: skip
        return [path for path, _ in stack(rows, Path("/m/1"))]

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

    def promote(port: int, *arguments: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{port}"
        status = commands.main(["promote", *arguments, "--url", url, "--key", "r00t"])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    sha = bundle.read(versions[1]).sha256[:16]
    with serving(**given) as (_, port):
        status, said = promote(port, str(versions[1]), "--shadow", "--share", "0.5")
        assert (status, said) == (0, f"the shadow is tiny version 2, graph {sha}\n")
        status, said = promote(port, str(versions[1]))
        assert status == 1
        assert "tailguard: not promoted: it has been compared on 0 images" in said
        status, said = promote(port, str(versions[1]), "--force")
        assert said.startswith(f"in force: tiny version 2, graph {sha}\ncompared on 0 images, differed on -\n")
        assert promote(port, "--back")[1].startswith("back to tiny version 1")
    status, said = promote(port)
    assert status == 1
    assert "cannot be asked" in said
