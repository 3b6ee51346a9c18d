"""What settings name: bundles, ledgers, hosts."""

import ipaddress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MLFLOW = "models:/"
Source = Path | str  # where a bundle is: a folder, or an address


def is_address(text: str) -> bool:
    """Whether `text` names a place elsewhere; else it is a path."""
    return "://" in text or text.startswith(MLFLOW)


def bundle_source(named: Source) -> Source:
    """Where a bundle is: an address as it is, a relative path looked for in the working directory, then in the root."""
    if is_address(str(named)):
        return str(named)
    path = Path(named)
    if path.is_absolute() or _exists(path) or not _exists(ROOT / path):
        return path
    return ROOT / path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte: what reads it says so
        return False


def without_password(address: str) -> str:
    """A URL without user, password and options; anything else as it is."""
    scheme, mark, rest = address.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}" if mark else address


def is_loopback(host: str) -> bool:
    """Whether a server on `host` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
