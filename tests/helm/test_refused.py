"""What does not go together is refused when it is rendered, in a sentence that names the values and the remedy."""

from itertools import product
from typing import Any

import pytest

from service.errors import SettingsError
from service.settings import load
from tests.containers.files import ROOT, instructions
from tests.helm.charts import KEYS, environ, of_kind, refused, rendered

POSTGRESQL = {"ledger": {"existingSecret": "tailguard-ledger"}}
MANY = KEYS | POSTGRESQL | {"replicas": 3}
FOLDER = {"TAILGUARD_KEEP": "all", "TAILGUARD_STORE": "/scratch/images"}
SCRATCH = {
    "volumes": [{"name": "scratch", "emptyDir": {}}],
    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
}
SECRET = {"valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
PINNED = "https://models.example.org/shop/3#sha256=" + 64 * "a"

WRONG: list[tuple[dict[str, Any], str]] = [
    # who may ask
    ({}, "has no keys: set keys.existingSecret"),
    ({"settings": {"TAILGUARD_ALLOW_ANONYMOUS": "false"}}, "has no keys"),
    (KEYS | {"keys": {"existingSecret": "a", "toml": "b"}}, "keys.existingSecret and keys.toml are both set"),
    (KEYS | {"settings": {"TAILGUARD_KEYS_FILE": "/etc/keys.toml"}}, "TAILGUARD_KEYS_FILE=/etc/keys.toml is set, and"),
    (KEYS | {"env": [{"name": "TAILGUARD_API_KEYS", "value": "a=b"}]}, "TAILGUARD_API_KEYS is a secret"),
    (KEYS | {"settings": {"TAILGUARD_HOST": "127.0.0.1"}}, "TAILGUARD_HOST=127.0.0.1 cannot be reached by probes"),
    (
        {"keys": {"toml": "[keys.a]"}, "serviceMonitor": {"enabled": True}},
        "serviceMonitor.enabled needs keys.metricsKey",
    ),
    (
        KEYS | {"settings": {"TAILGUARD_ALLOWED_HOSTS": "a.org, b.org"}, "serviceMonitor": {"enabled": True}},
        "TAILGUARD_ALLOWED_HOSTS=a.org, b.org refuses Prometheus",
    ),
    # several replicas
    (KEYS | {"replicas": 3}, "3 replicas cannot share a ledger in memory"),
    (KEYS | {"replicas": 2, "persistence": {"enabled": True}}, "2 replicas cannot share a ledger in a file"),
    (
        KEYS | SCRATCH | {"replicas": 2, "settings": {"TAILGUARD_LEDGER": "/scratch/l"}},
        "2 replicas cannot share a ledger in a file",
    ),
    (
        KEYS | {"autoscaling": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        "10 replicas cannot share a ledger in memory",
    ),
    (KEYS | {"kserve": {"enabled": True, "storageUri": "s3://m"}}, "4 replicas cannot share a ledger in memory"),
    (MANY | {"persistence": {"enabled": True}}, "persistence.enabled is for one replica, there may be 3"),
    (MANY | SCRATCH | {"settings": FOLDER}, "3 replicas keep images in TAILGUARD_STORE=/scratch/images"),
    (MANY | {"settings": FOLDER | {"TAILGUARD_STORE": "memory://images"}}, "3 replicas keep images in"),
    (
        MANY | {"settings": FOLDER, "store": {"existingClaim": "images"}},
        "3 replicas keep images in TAILGUARD_STORE=/scratch/images",
    ),
    # the ledger and the store
    (KEYS | {"settings": {"TAILGUARD_LEDGER": "postgresql://u:p@h/d"}}, "TAILGUARD_LEDGER is a URL with a password"),
    (KEYS | {"ledger": {"existingSecret": "a", "url": "postgresql://h/d"}}, "are both set"),
    (KEYS | POSTGRESQL | {"settings": {"TAILGUARD_LEDGER": "off"}}, "TAILGUARD_LEDGER is set beside"),
    (KEYS | {"ledger": {"url": "mysql://h/d"}}, "ledger.url must begin with postgresql://"),
    (KEYS | {"settings": {"TAILGUARD_LEDGER": "/data/l"}}, "TAILGUARD_LEDGER=/data/l lies on a read-only file system"),
    (
        KEYS | {"persistence": {"enabled": True}, "strategy": {"rollingUpdate": {"maxSurge": 1}}},
        "persistence.enabled lets one pod write at a time",
    ),
    (KEYS | POSTGRESQL | {"settings": FOLDER}, "TAILGUARD_STORE=/scratch/images lies on a read-only file system"),
    (
        KEYS | {"settings": {"TAILGUARD_STORE": "ftp://me:pass@host/x"}},
        "TAILGUARD_STORE holds a user or password",
    ),
    # bundles
    (KEYS | {"bundles": {"existingClaim": "models"}}, "bundles are mounted at /models and none of them is used"),
    (KEYS | {"settings": {"TAILGUARD_BUNDLE": "/models/shop/3"}}, "nothing is mounted there: set bundles"),
    (KEYS | {"bundles": {"existingClaim": "a", "image": "b"}}, "bundles.existingClaim and bundles.image are both set"),
    (KEYS | {"settings": {"TAILGUARD_BUNDLE": "https://h/m"}}, "TAILGUARD_BUNDLE=https://h/m comes from a web server"),
    (KEYS | {"settings": {"TAILGUARD_SHADOW_BUNDLE": "s3://m#sha256=12"}}, "is pinned to what is no sha256"),
    (KEYS | {"settings": {"TAILGUARD_BUNDLE": PINNED.replace("//", "//me:pw@")}}, "TAILGUARD_BUNDLE holds a user"),
    # the cluster
    (KEYS | {"settings": {"TAILGUARD_PROVIDER": "cuda"}}, "set gpu.enabled=true"),
    (KEYS | {"gpu": {"enabled": True}, "settings": {"TAILGUARD_PROVIDER": "cpu"}}, "gpu.enabled reserves a GPU"),
    (KEYS | {"settings": {"TAILGUARD_DRAIN_GRACE_S": 0}}, "requests would be lost at every upgrade"),
    (MANY | {"autoscaling": {"enabled": True}}, "set serviceMonitor.enabled=true, or autoscaling.query"),
    (
        MANY | {"autoscaling": {"enabled": True, "min": 9, "max": 3, "query": "q"}},
        "autoscaling.min=9 is more than autoscaling.max=3",
    ),
    (KEYS | {"ingress": {"enabled": True}}, "set ingress.hosts"),
    (KEYS | POSTGRESQL | {"kserve": {"enabled": True}}, "set kserve.storageUri"),
    (
        KEYS | POSTGRESQL | {"kserve": {"enabled": True, "storageUri": "s3://m"}, "serviceMonitor": {"enabled": True}},
        "serviceMonitor.enabled belongs to the Deployment",
    ),
    (
        KEYS | {"settings": {"TAILGUARD_KEEP": "all"}, "env": [{"name": "TAILGUARD_KEEP", "value": "none"}]},
        "TAILGUARD_KEEP is in settings and in env",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "named"), WRONG, ids=[named[:60] for _, named in WRONG])
def test_what_does_not_go_together_is_refused_in_a_sentence(values: dict[str, Any], named: str) -> None:
    sentences = refused(values)
    assert any(named in sentence for sentence in sentences), sentences
    assert all(sentence.endswith(".") for sentence in sentences)


def test_everything_that_is_wrong_is_said_at_once_and_no_password_with_it() -> None:
    values = {"replicas": 3, "gpu": {"enabled": True}, "ingress": {"enabled": True}, "settings": {
        "TAILGUARD_LEDGER": "postgresql://u:p4ssword@h/d", "TAILGUARD_PROVIDER": "cpu",
        "TAILGUARD_BUNDLE": "https://u:p4ssword@h/m"}}  # fmt: skip
    sentences = refused(values)
    assert len(sentences) == 6, sentences
    assert "p4ssword" not in " ".join(sentences)


@pytest.mark.parametrize(
    "values",
    [
        {"settings": {"TAILGUARD_ALLOW_ANONYMOUS": True}},
        {"env": [{"name": "TAILGUARD_API_KEY"} | SECRET]},
        KEYS | {"replicas": 5, "settings": {"TAILGUARD_LEDGER": "off"}},
        KEYS | {"replicas": 5, "env": [{"name": "TAILGUARD_LEDGER"} | SECRET]},
        MANY | {"settings": {"TAILGUARD_KEEP": "all", "TAILGUARD_STORE": "s3://images/shop"}},
        MANY | {"settings": {"TAILGUARD_KEEP": "all"}, "store": {"existingClaim": "images"}},
        KEYS | {"settings": {"TAILGUARD_BUNDLE": PINNED, "TAILGUARD_SHADOW_BUNDLE": "hf://owner/repo@main/3"}},
        KEYS | SCRATCH | {"settings": {"TAILGUARD_LEDGER": "/scratch/ledger.sqlite3"}},
        KEYS | {"settings": {"TAILGUARD_DRAIN_GRACE_S": "1"}},
    ],
    ids=str,
)  # fmt: skip
def test_what_goes_together_is_taken(values: dict[str, Any]) -> None:
    assert of_kind("Deployment", rendered(values))


# The chart and the service say the same -------------------------------------------------------------------------------


def of_image() -> dict[str, str]:
    """The settings that the image makes."""
    words = [
        word for instruction, rest in instructions(ROOT / "Dockerfile") if instruction == "ENV" for word in rest.split()
    ]
    pairs = dict(word.split("=", 1) for word in words if word.startswith("TAILGUARD_"))
    return pairs | {"TAILGUARD_PROVIDER": "cpu"}  # of the gpu target alone


LEDGERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {  # values, and what they are to the service
    "none": ({}, {}),
    "off": ({}, {"TAILGUARD_LEDGER": "off"}),
    "memory": ({}, {"TAILGUARD_LEDGER": ":memory:"}),
    "file": ({"persistence": {"enabled": True}}, {}),
    "postgresql": (POSTGRESQL, {}),
}


@pytest.mark.parametrize("ledger", LEDGERS)
def test_one_replica_is_refused_exactly_where_the_service_would_not_start(ledger: str) -> None:
    """For every ledger, every way to keep images, every store, with keys and without."""
    verdicts = set()
    more, given = LEDGERS[ledger]
    own = {"file": {"TAILGUARD_LEDGER": "/var/lib/tailguard/ledger.sqlite3"},
           "postgresql": {"TAILGUARD_LEDGER": "postgresql://h/d"}}.get(ledger, given)  # fmt: skip
    for keep, sample, store, keys in product(("none", "rejected"), (0, 0.01), (None, "s3://images"), (True, False)):
        settings: dict[str, Any] = given | {"TAILGUARD_KEEP": keep, "TAILGUARD_KEEP_SAMPLE": sample}
        if store is not None:
            settings["TAILGUARD_STORE"] = store
        service = of_image() | {name: str(value) for name, value in (settings | own).items()}
        if keys:
            service["TAILGUARD_KEYS_FILE"] = "/run/secrets/tailguard/keys.toml"
        try:
            load(service)
        except SettingsError:
            verdicts.add("refused")
            assert refused((KEYS if keys else {}) | more | {"settings": settings})
        else:
            verdicts.add("taken")
            found = environ(rendered((KEYS if keys else {}) | more | {"settings": settings}))
            found |= {name: own[name] for name, value in found.items() if isinstance(value, tuple)}
            assert load(of_image() | found) == load(service)
    assert verdicts == {"refused", "taken"}
