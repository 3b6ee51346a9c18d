"""What settings name: bundles, ledgers, hosts."""

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
MLFLOW = "models:/"
Source = Path | str  # where a bundle is: a folder, or an address
HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")  # as browsers send it
USUAL_PORTS = (("http", 80), ("https", 443))  # which they leave out


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
    if not mark:
        return address
    shown = rest.partition("?")[0]
    first = shown.partition("/")[0]
    if ":" in first or "@" in first:  # else an @ further on is part of a path, as in hf://owner/repo@main/shop/3
        shown = shown.rpartition("@")[2]
    return f"{scheme}://{shown}"


def is_loopback(host: str) -> bool:
    """Whether a server on `host` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listed(text: str) -> list[str]:
    """The items of a list with commas, without the blanks around them."""
    return [item.strip() for item in text.split(",") if item.strip()]


def require_host_names(text: str) -> None:
    """ValueError for an item that is no host name or address alone: no Host header, read without its port, is one."""
    for item in listed(text):
        if item != "*" and not HOST_NAME.fullmatch(item) and not _is_ip(item):
            raise ValueError(
                f"{item} is no host name: give names or addresses alone, without scheme, port or path, or * for any"
            )


def require_origins(text: str) -> None:
    """ValueError for an item that no browser sends as the origin of a page."""
    for item in listed(text):
        try:
            usual = (urlsplit(item).scheme, urlsplit(item).port) in USUAL_PORTS
            sent = bool(ORIGIN.fullmatch(item)) and bool(urlsplit(item).hostname) and not usual
        except ValueError:  # of the port, or of brackets
            sent = False
        if not sent and item not in ("*", "null"):
            raise ValueError(
                f"{item} is no origin that a browser sends: give https://name, or https://name:port where the port is "
                "not the usual one, in small letters and without a path"
            )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
