"""The real service takes what the chart gives its container: variables, keys and probes, and ends in time."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from tests.helm.charts import container, environ, of_kind, pod, rendered
from tests.service import tiny
from tests.service.test_process import LIMIT_S, serving

KEYS = '[keys.ci]\nkey = "s3cret-of-ci"\n\n[keys.ops]\nkey = "s3cret-of-ops"\nadmin = true\n'
VALUES: dict[str, Any] = {
    "keys": {"toml": KEYS},
    "persistence": {"enabled": True},
    "settings": {
        "TAILGUARD_KEEP": "all",
        "TAILGUARD_ALLOWED_HOSTS": "shop.example.org, localhost",
        "TAILGUARD_DRAIN_GRACE_S": 1,
        "TAILGUARD_DRAIN_S": 3,
        "TAILGUARD_MAX_BODY_BYTES": 1048576,
    },
}


def test_the_service_starts_answers_its_probes_and_drains_in_the_time_it_is_given(tmp_path: Path) -> None:
    manifests = rendered(VALUES)
    given = {name.removeprefix("TAILGUARD_"): _here(value, tmp_path) for name, value in environ(manifests).items()}
    for mount in container(manifests)["volumeMounts"]:
        Path(_here(mount["mountPath"], tmp_path)).mkdir(parents=True, exist_ok=True)
    for name, text in of_kind("Secret", manifests)["stringData"].items():
        (tmp_path / "run/secrets/tailguard" / name).write_text(text)
    with serving(BUNDLE=str(tiny.write(tmp_path / "bundle")), **given) as (process, port):
        url = f"http://127.0.0.1:{port}"
        for kind in ("startup", "readiness", "liveness"):
            probe = container(manifests)[f"{kind}Probe"]["httpGet"]
            assert "httpHeaders" not in probe
            asked = {"host": f"10.1.2.3:{port}"}  # the kubelet asks by the pod's address, which no setting names
            assert httpx.get(url + probe["path"], headers=asked, timeout=LIMIT_S).status_code == 200
        assert httpx.get(f"{url}/model", headers=asked, timeout=LIMIT_S).status_code == 403
        photo = {"content": tiny.photo(), "headers": {"content-type": "image/png", "host": "shop.example.org"}}
        assert httpx.post(f"{url}/classify", timeout=LIMIT_S, **photo).status_code == 401
        photo["headers"]["x-api-key"] = "s3cret-of-ci"
        assert httpx.post(f"{url}/classify", timeout=LIMIT_S, **photo).json()["label"] == "red"
        photo["content"] = bytes(1048577)
        assert httpx.post(f"{url}/classify", timeout=LIMIT_S, **photo).status_code == 413
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(LIMIT_S) == 0
        assert time.monotonic() - begun < pod(manifests)["terminationGracePeriodSeconds"]
    assert (tmp_path / "var/lib/tailguard/ledger.sqlite3").stat().st_size > 0
    images = [path for path in (tmp_path / "var/lib/tailguard").rglob("*") if re.fullmatch(r"[0-9a-f]{64}", path.name)]
    assert len(images) == 1  # kept on the same volume


def _here(text: str, root: Path) -> str:
    """A path of the container under `root`; anything else as it is."""
    return f"{root}{text}" if text.startswith("/") else text
