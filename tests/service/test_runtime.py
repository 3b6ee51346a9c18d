"""service/runtime.py: what decides, while models and operating points change."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.errors import SettingsError
from service.inference import model
from service.runtime import Runtime
from service.settings import Settings, load, places
from tests.service import asgi, tiny
from tests.service.asgi import WAIT_S

PNG = {"content-type": "image/png"}
SHADES = [tiny.photo((220 - 7 * i, 30 + 4 * i, 30 + 4 * i)) for i in range(25)]  # from a sure red to grey


def test_an_identical_shadow_never_differs_after_the_operating_point_has_changed(
    settings: Settings, tiny_bundle: Path
) -> None:
    async def body() -> None:
        shadowed = settings.model_copy(update={"shadow_bundle": tiny_bundle, "shadow_share": 1.0})
        async with asgi.running(shadowed) as (app, client):
            runtime: Runtime = app.state.runtime
            runtime.set_operating_point("ood95", "global")
            changed = 0
            for photo in SHADES:
                default = (await client.post("/classify", content=photo, headers=PNG)).json()
                before = await client.post(
                    "/classify?operating_point=id95&thresholds=group", content=photo, headers=PNG
                )
                changed += default["decision"] != before.json()["decision"]
                assert runtime.shadow is not None
                await asyncio.gather(*runtime.shadow._tasks)
            assert changed > 0  # a shadow that had kept the point of the start would differ in these
            text = (await client.get("/metrics")).text
            shadow = runtime.shadow
            assert shadow.seen.keys() == {"same", "both-refuse"}
            assert shadow.seen.total() == len(SHADES)
            assert 'tailguard_shadow_images_total{outcome="decision-differs"} 0.0' in text

    asyncio.run(body())


def test_a_shadow_without_the_operating_point_keeps_its_own(settings: Settings, tmp_path: Path) -> None:
    points = {name: p for name, p in tiny.manifest()["operating_points"].items() if name == "id95"}
    other = tiny.write(tmp_path / "2", version="2", operating_points=points)

    async def body() -> None:
        shadowed = settings.model_copy(update={"shadow_bundle": other, "shadow_share": 1.0})
        async with asgi.running(shadowed) as (app, _):
            runtime: Runtime = app.state.runtime
            runtime.set_operating_point("ood95", "global")
            assert runtime.shadow is not None
            assert (runtime.shadow.model.operating_point, runtime.shadow.model.scope) == ("id95", "global")

    asyncio.run(body())


def test_an_operating_point_set_while_a_bundle_loads_is_kept(
    settings: Settings, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, go_on = threading.Event(), threading.Event()
    load = model.load

    def slow(*what: Any, **more: Any) -> model.Model:
        made = load(*what, **more)
        loaded.set()
        assert go_on.wait(WAIT_S)
        return made

    async def body() -> None:
        async with asgi.running(settings) as (app, _):
            runtime: Runtime = app.state.runtime
            monkeypatch.setattr(model, "load", slow)
            swap = asyncio.create_task(runtime.swap(tiny_bundle, None, None))
            assert await asyncio.to_thread(loaded.wait, WAIT_S)
            runtime.set_operating_point("ood95", None)
            go_on.set()
            await swap
            current = runtime.in_force()
            assert (current.operating_point, current.scope) == ("ood95", "group")
            labels = (await runtime.render_metrics()).decode()
            assert 'operating_point="ood95",provider="CPUExecutionProvider",scope="group"' in labels

    asyncio.run(body())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, r"ledger\.db is no SQLite file"),
        ("CREATE TABLE models (id INTEGER)", r"holds the tables of something else \(models\)"),
        ("CREATE TABLE ledger (version INTEGER); INSERT INTO ledger VALUES (99)", "schema version 99, this service"),
    ],
)
def test_a_ledger_that_can_never_be_one_ends_the_start_before_anything_is_loaded(
    settings: Settings, tmp_path: Path, made: str | None, said: str
) -> None:
    path = tmp_path / "ledger.db"
    if made is None:
        path.write_text("# no database\n")
    else:
        with closing(sqlite3.connect(path)) as other:
            other.executescript(made)
    before = path.read_bytes()
    runtime = Runtime(settings.model_copy(update={"ledger": str(path)}))
    with pytest.raises(SettingsError, match=said):
        runtime.start()
    assert runtime.model is None
    assert path.read_bytes() == before  # another application's file is left as it was


def test_a_wheel_without_the_projects_bundle_asks_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "ROOT", tmp_path)
    with pytest.raises(SettingsError, match="TAILGUARD_BUNDLE is not set, and models/cifar10-lt/2 is not here"):
        Runtime(load({})).start()
