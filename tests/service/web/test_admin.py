"""service/web/routes/admin.py changes: a swap under load, a bad bundle, an operating point, keys, the shadow."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.errors import NotReady
from service.settings import Settings
from service.web.app import create_app
from tests.service import asgi, tiny
from tests.service.asgi import assert_problem
from tests.service.observe.test_metrics import samples

RED = tiny.photo((220, 30, 30))
PNG = {"content-type": "image/png"}
ADMIN = {"x-api-key": "4dm1n"}


@pytest.fixture
def administered(settings: Settings) -> Settings:
    return Settings(**settings.model_dump() | {"admin_keys": "ops=4dm1n", "api_keys": "ci=u53r"})


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another version with the classes the other way round: its answers differ from those of the tiny bundle."""
    fields = tiny.manifest(version="2", golden=[])
    for info, name in zip(fields["classes"], ("cyan", "magenta", "yellow"), strict=True):
        info["name"] = name
    return tiny.write(tmp_path / "second", **fields)


def put(client: TestClient, path: str, body: dict[str, Any], key: dict[str, str] = ADMIN) -> httpx.Response:
    return client.put(f"/admin/{path}", json=body, headers=key)


def test_swap_under_load_fails_no_request_and_frees_the_old(administered: Settings, second: Path) -> None:
    async def body() -> None:
        async with asgi.running(administered) as (app, client):
            client.headers.update(ADMIN)
            first, seen, done = app.state.runtime.model, [], asyncio.Event()

            async def ask() -> None:
                while not done.is_set():
                    answer = (await client.post("/classify", content=RED, headers=PNG)).raise_for_status().json()
                    seen.append((answer["model"]["version"], answer["label"]))

            asking = [asyncio.create_task(ask()) for _ in range(4)]
            for path, version in [(second, "2"), (first.folder, "1")] * 3:
                swapped = await client.put("/admin/bundle", json={"path": str(path)})
                assert swapped.status_code == 200, swapped.text
                assert swapped.json()["version"] == version
                assert (await client.get("/model")).json()["version"] == version
            done.set()
            await asyncio.gather(*asking)
            assert set(seen) == {("1", "red"), ("2", "cyan")}  # never the name of one with the version of the other
            with pytest.raises(Exception, match="shut"):
                await _closed(first.pipeline.submit, RED)

    asyncio.run(body())


async def _closed(submit: Any, data: bytes) -> None:
    """Ask a retired pipeline until it is closed."""
    for _ in range(500):
        await submit(data, asyncio.get_running_loop().time() + 5)
        await asyncio.sleep(0.01)


def test_request_in_flight_is_answered_by_the_bundle_it_began_with(administered: Settings, second: Path) -> None:
    async def body() -> None:
        async with asgi.running(administered) as (app, client):
            client.headers.update(ADMIN)
            gate = asgi.Gate(app.state.runtime)
            held = asyncio.create_task(client.post("/classify", content=RED, headers=PNG))
            await gate.busy()
            assert (await client.put("/admin/bundle", json={"path": str(second)})).status_code == 200
            assert (await client.post("/classify", content=RED, headers=PNG)).json()["label"] == "cyan"
            gate.opened.set()
            answer = (await held).json()
            assert (answer["model"]["version"], answer["label"]) == ("1", "red")

    asyncio.run(body())


def test_request_whose_body_still_comes_keeps_its_bundle(administered: Settings, second: Path) -> None:
    async def body() -> None:
        async with asgi.running(administered) as (app, client):
            swapped = asyncio.Event()
            parts = [RED[:50], RED[50:]]

            async def receive() -> dict[str, Any]:
                if len(parts) == 1:
                    await swapped.wait()
                if not parts:
                    await asyncio.Event().wait()
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

            slow = asyncio.create_task(asgi.post(app, "/classify", PNG | ADMIN, receive))
            await asyncio.sleep(0)
            first = app.state.runtime.model
            assert (await client.put("/admin/bundle", json={"path": str(second)}, headers=ADMIN)).status_code == 200
            await asyncio.sleep(0.05)  # time for the old bundle to be retired, were nobody holding it
            swapped.set()
            status, _, answer = await slow
            assert (status, answer["model"]["version"]) == (200, "1")
            with pytest.raises(NotReady):
                await _closed(first.pipeline.submit, RED)

    asyncio.run(body())


def test_bad_bundle_changes_nothing_and_says_why(administered: Settings, tmp_path: Path) -> None:
    changed = tiny.write(tmp_path / "changed")
    (changed / "model.onnx").write_bytes(b"other")
    wrong = tiny.write(tmp_path / "wrong", golden=[tiny.golden("examples/red.png", (1, 2, 3))])
    with TestClient(create_app(administered)) as client:
        document = client.get("/openapi.json").json()
        before = client.get("/model", headers=ADMIN).json()
        for path, words in [("/nowhere", "is not a bundle"), (changed, "has sha256"), (wrong, "golden example")]:
            refused = put(client, "bundle", {"path": str(path)})
            assert_problem(refused, 409, words, document)
            assert refused.json()["detail"].startswith("the bundle in service stays: ")
        same = str(administered.bundle)
        assert_problem(put(client, "bundle", {"path": same, "operating_point": "id99"}), 409, "id95, ood95", document)
        assert_problem(put(client, "bundle", {"path": ""}), 422, "path", document)
        assert_problem(put(client, "bundle", {"path": same, "more": 1}), 422, "more", document)
        assert client.get("/model", headers=ADMIN).json() == before
        client.headers.update(ADMIN)
        assert samples(client)[("tailguard_swaps_total", (("outcome", "refused"),))] == 4


@pytest.mark.parametrize("path", ["\0", "a/\0", "x" * 4000, "/" + "x" * 300])
def test_a_path_that_no_file_system_takes_is_no_bundle(administered: Settings, path: str) -> None:
    with TestClient(create_app(administered)) as client:
        document = client.get("/openapi.json", headers=ADMIN).json()
        for route in ("bundle", "shadow"):
            assert_problem(put(client, route, {"path": path}), 409, "is not a bundle: manifest.json", document)


def test_metrics_change_with_the_bundle(administered: Settings, second: Path) -> None:
    with TestClient(create_app(administered)) as client:
        client.headers.update(ADMIN)
        client.post("/classify", content=RED, headers=PNG)
        put(client, "bundle", {"path": str(second)})
        client.post("/classify", content=RED, headers=PNG)
        found = samples(client)
        decided = {dict(labels)["class"]: value for (name, labels), value in found.items()
                   if name == "tailguard_decisions_total" and dict(labels)["decision"] == "accept"}  # fmt: skip
        assert decided == {"cyan": 1, "magenta": 0, "yellow": 0}
        versions = [dict(labels)["version"] for name, labels in found if name == "tailguard_model_info"]
        assert versions == ["2"]


def test_operating_point(administered: Settings) -> None:
    with TestClient(create_app(administered)) as client:
        document = client.get("/openapi.json").json()
        client.headers.update(ADMIN)

        def threshold() -> Any:
            return client.post("/classify", content=RED, headers=PNG).json()["deciding_score"]["threshold"]

        assert threshold() == tiny.THRESHOLD["id95"]
        answer = put(client, "operating-point", {"operating_point": "ood95"}).json()
        assert (answer["operating_point"], answer["threshold_scope"]) == ("ood95", "group")
        assert threshold() == tiny.THRESHOLD["ood95"]
        assert client.get("/model").json()["operating_point"] == "ood95"
        assert put(client, "operating-point", {"threshold_scope": "global"}).json()["operating_point"] == "ood95"
        assert_problem(put(client, "operating-point", {"operating_point": "id99"}), 422, "id95, ood95", document)
        assert_problem(put(client, "operating-point", {}), 422, "neither", document)
        assert threshold() == tiny.THRESHOLD["ood95"]


def test_operating_point_outlives_a_swap(administered: Settings, tmp_path: Path) -> None:
    only = tiny.write(tmp_path / "only", operating_points={"id95": tiny.point(-5.0)}, version="3")
    other = tiny.write(tmp_path / "other", default_operating_point="ood95", version="4")
    with TestClient(create_app(administered)) as client:
        document = client.get("/openapi.json").json()
        answers = [put(client, "bundle", {"path": str(other)}).json()["operating_point"]]  # nobody chose: its default
        put(client, "operating-point", {"operating_point": "id95", "threshold_scope": "global"})
        swapped = put(client, "bundle", {"path": str(administered.bundle)}).json()
        answers += [put(client, "bundle", {"path": str(other)}).json()["operating_point"], swapped["threshold_scope"]]
        assert answers == ["ood95", "id95", "global"]
        put(client, "operating-point", {"operating_point": "ood95"})
        assert_problem(put(client, "bundle", {"path": str(only)}), 409, "operating_point=ood95 is none of", document)
        assert put(client, "bundle", {"path": str(only), "operating_point": "id95"}).json()["version"] == "3"


@pytest.mark.parametrize(("key", "status"), [({}, 401), ({"x-api-key": "no"}, 401), ({"x-api-key": "u53r"}, 403)])
def test_only_an_admin_key_may(administered: Settings, second: Path, key: dict[str, str], status: int) -> None:
    with TestClient(create_app(administered)) as client:
        document = client.get("/openapi.json").json()
        assert_problem(put(client, "bundle", {"path": str(second)}, key), status, "key", document)
        assert client.get("/model", headers=ADMIN).json()["version"] == "1"


def test_without_an_admin_key_nobody_may(client: TestClient, second: Path, document: dict[str, Any]) -> None:
    assert_problem(put(client, "bundle", {"path": str(second)}, {}), 403, "TAILGUARD_ADMIN_KEYS", document)


def test_keys_are_read_again(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[keys.ops]\nkey = "4dm1n"\nadmin = true\n[keys.old]\nkey = "0ld"\n')
    keyed = Settings(**settings.model_dump() | {"keys_file": file})
    with TestClient(create_app(keyed)) as client:
        assert client.get("/model", headers={"x-api-key": "0ld"}).status_code == 200
        file.write_text('[keys.ops]\nkey = "4dm1n"\nadmin = true\n[keys.new]\nkey = "n3w"\n')
        assert client.post("/admin/keys/reload", headers=ADMIN).json() == {"keys": 2}
        assert client.get("/model", headers={"x-api-key": "0ld"}).status_code == 401
        assert client.get("/model", headers={"x-api-key": "n3w"}).status_code == 200
        file.write_text("[keys")
        refused = client.post("/admin/keys/reload", headers=ADMIN)
        assert_problem(refused, 409, "the keys in force stay", client.get("/openapi.json").json())
        assert client.get("/model", headers={"x-api-key": "n3w"}).status_code == 200


def test_rate_of_a_key_is_limited(settings: Settings) -> None:
    limited = Settings(
        **settings.model_dump() | {"api_keys": "a=k3y,b=0ther", "requests_per_s": 0.01, "burst_requests": 2}
    )
    with TestClient(create_app(limited)) as client:
        document = client.get("/openapi.json").json()
        assert [client.get("/model", headers={"x-api-key": "k3y"}).status_code for _ in range(2)] == [200, 200]
        refused = client.get("/model", headers={"x-api-key": "k3y"})
        assert_problem(refused, 429, "over its 0.01 images per second", document)
        assert 99 <= int(refused.headers["retry-after"]) <= 100
        assert client.get("/model", headers={"x-api-key": "0ther"}).status_code == 200  # nobody else pays for it


# The shadow ----------------------------------------------------------------------------------------------------------


def test_shadow_answers_nobody_and_says_how_often_it_differs(settings: Settings, tmp_path: Path) -> None:
    lenient = tiny.write(tmp_path / "lenient", operating_points={"id95": tiny.point(100.0)}, version="9")
    shadowed = settings.model_copy(update={"shadow_bundle": lenient, "shadow_share": 1.0})

    async def body() -> None:
        async with asgi.running(shadowed) as (app, client):
            grey = tiny.photo((10, 10, 10))  # rejected by the bundle in service, accepted by the shadow
            for data in (RED, grey, grey):
                answer = (await client.post("/classify", content=data, headers=PNG)).json()
                assert answer["model"]["version"] == "1"
            await client.post("/classify?operating_point=ood95", content=RED, headers=PNG)  # not as deployed
            await asyncio.gather(*app.state.runtime.shadow._tasks)
            text = (await client.get("/metrics")).text
            counts = {
                o: f'tailguard_shadow_images_total{{outcome="{o}"}}'
                for o in ("same", "newly-accepted", "decision-differs")
            }
            found = {o: float(text.split(line)[1].split()[0]) for o, line in counts.items()}
            assert found == {"same": 1, "newly-accepted": 2, "decision-differs": 0}

    asyncio.run(body())


def test_shadow_that_cannot_keep_up_is_skipped(settings: Settings, tiny_bundle: Path) -> None:
    shadowed = settings.model_copy(update={"shadow_bundle": tiny_bundle, "shadow_share": 1.0, "max_batch_images": 1})

    async def body() -> None:
        async with asgi.running(shadowed) as (app, client):
            shadow = app.state.runtime.shadow
            with shadow.model.pipeline.reserve(2):  # all its room
                assert (await client.post("/classify", content=RED, headers=PNG)).status_code == 200
            text = (await client.get("/metrics")).text
            assert 'tailguard_shadow_images_total{outcome="skipped"} 1.0' in text

    asyncio.run(body())


def test_shadow_bundle_that_is_none_fails_the_start(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"shadow_bundle": Path("/nowhere")}))
    with pytest.raises(Exception, match="/nowhere is not a bundle"), TestClient(app):
        raise AssertionError("it started")


def test_admin_bodies_are_json(administered: Settings) -> None:
    with TestClient(create_app(administered)) as client:
        response = client.put("/admin/bundle", content=b"{", headers=ADMIN | {"content-type": "application/json"})
        assert_problem(response, 400, "the body is not JSON", client.get("/openapi.json").json())
        large = client.put("/admin/bundle", content=b" " * 20_000, headers=ADMIN)
        assert_problem(large, 413, "the limit is 16384", client.get("/openapi.json").json())
