"""`tailguard push BUNDLE ADDRESS`: a bundle to where others fetch it. Its manifest goes last: none is half there."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from service.bundles.kinds import PIN, WEB, file_system, said, shown
from service.contract import bundle
from service.contract.bundle import MANIFEST_FILE, BundleError
from service.settings.places import MLFLOW, is_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard push`."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("address", help="s3://models/shop/3, gs://…, hf://owner/repo/shop/3, or models:/shop of MLflow")


def main(args: argparse.Namespace) -> int:
    """Push, and print where it is now, pinned; the exit status."""
    print(f"TAILGUARD_BUNDLE='{push(args.bundle, args.address)}'")
    return 0


def push(folder: Path, address: str) -> str:
    """Copy the bundle in `folder` to `address`; its address there, pinned to its manifest.

    The same bundle may be pushed again, which restores files that are missing there or damaged. Raises BundleError
    where `folder` is no bundle, another one is there already, or it cannot be written.
    """
    manifest = bundle.read(folder)
    if not is_address(address) or address.startswith(WEB):
        raise BundleError(f"{shown(address)} is no place to push to: name one such as s3://models/shop/3")
    if PIN in address:  # a folder of that name could be written, and never be fetched
        raise BundleError(f"{address} is pinned to what is there already: push to {shown(address)}, without {PIN}…")
    text = (folder / MANIFEST_FILE).read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    if address.startswith(MLFLOW):
        return _to_mlflow(folder, address) + PIN + digest
    address = address.rstrip("/")
    system, root = file_system(address)
    try:
        files = manifest.files | {MANIFEST_FILE: digest}
        if system.exists(f"{root}/{MANIFEST_FILE}"):
            if not text.startswith(system.cat_file(f"{root}/{MANIFEST_FILE}")):  # half of it: a push was killed there
                raise BundleError(f"{shown(address)} holds another bundle: push to a new version")
            files = {name: sha256 for name, sha256 in files.items() if not _holds(system, f"{root}/{name}", sha256)}
        for name in files:
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(folder / name), f"{root}/{name}")
    except BundleError:
        raise
    except Exception as error:  # each kind of place has its own
        raise BundleError(f"{shown(address)} cannot be written: {said(error)}") from error
    return address + PIN + digest


def _holds(system: Any, path: str, sha256: str) -> bool:
    """Whether the file is there as it should be."""
    return bool(system.exists(path)) and hashlib.sha256(system.cat_file(path)).hexdigest() == sha256


def _to_mlflow(folder: Path, address: str) -> str:
    """A new version of a registered model of MLflow, whose files are those of the bundle; its address."""
    try:
        import mlflow  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise BundleError(f"{address} needs mlflow: pip install mlflow") from error
    name = address.removeprefix(MLFLOW)
    if "/" in name or not name:
        raise BundleError(f"{address}: name the registered model alone, as models:/shop: MLflow counts versions itself")
    client = mlflow.MlflowClient()
    try:
        with mlflow.start_run(run_name=f"tailguard push {name}") as run:
            mlflow.log_artifacts(str(folder), "bundle")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/bundle"
        made = client.create_model_version(name, source, run.info.run_id)
    except Exception as error:
        raise BundleError(f"{address} cannot be written: {said(error)}") from error
    return f"{MLFLOW}{name}/{made.version}"
