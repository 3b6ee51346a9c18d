"""Keys and the Grafana password of one installation: made once, when it first starts; `show` prints the people's."""

import hashlib
import os
import secrets
import sys
from pathlib import Path

KEYS = Path(os.environ.get("KEYS", "/keys"))  # one volume per reader, so that nobody is handed what is not theirs
SERVICE = KEYS / "service" / "keys.toml"
METRICS = 'roles = ["metrics"]'
PEOPLE = {name: KEYS / "people" / name for name in ("client_key", "admin_key")}
PROMETHEUS = KEYS / "prometheus" / "metrics_key"
GRAFANA = KEYS / "grafana" / "grafana_password"


def make() -> None:
    """Write every secret, the service's digests last: while they are missing, everything is made anew."""
    if SERVICE.exists():
        return
    client, admin, prometheus = (secrets.token_hex(32) for _ in range(3))
    write(PEOPLE["client_key"], client)
    write(PEOPLE["admin_key"], admin)
    write(PROMETHEUS, prometheus)
    write(GRAFANA, secrets.token_urlsafe(24))
    tables = (table("client", client), table("admin", admin, "admin = true"), table("prometheus", prometheus, METRICS))
    write(SERVICE, "\n".join(tables))


def show() -> None:
    for name, path in {**PEOPLE, "grafana_password (user admin)": GRAFANA}.items():
        print(f"{name}: {path.read_text()}")


def table(name: str, key: str, more: str = "") -> str:
    return f'[keys.{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{more}\n'


def write(path: Path, text: str) -> None:
    """The readers run as other users; who may read is decided by who mounts the volume."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.chmod(0o444)
    os.replace(partial, path)


if __name__ == "__main__":
    make()
    if sys.argv[1:] == ["show"]:
        show()
