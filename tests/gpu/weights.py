"""A file of weights for a timm model: python -m tests.gpu.weights MODEL --out FILE [--weights FILE] [--random].

The file that is given, else what timm downloads, else random weights, on which speed means what it says and accuracy
nothing. Prints JSON that says which.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from training.network import backbones
from training.network.preprocessing import BackboneError
from training.network.pretrained import digest

RANDOM = "random weights: speed only, no accuracy"
HUB = {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "30"}  # seconds; a machine without a network says so soon


def prepare(model: str, out: Path, given: Path | None, size_px: int, *, random: bool) -> dict[str, str]:
    """Write `out`, or leave the `given` file where it is; {file, source}. Raises BackboneError for an unknown model."""
    if given is not None:
        return {"file": str(given), "source": f"{given.name}, sha256 {digest(given)[:16]}"}
    module, source = None, RANDOM
    if not random:
        try:
            found = backbones.load(model)
            module, source = found.module, f"timm's download, {found.provenance['weights']}"
        except BackboneError as error:
            source = f"{RANDOM} ({error})"
    if module is None:
        torch.manual_seed(0)
        module = backbones.untrained(model, size_px)
    begun = out.with_name(f".{out.name}.{os.getpid()}")
    torch.save(module.state_dict(), begun)
    os.replace(begun, out)
    return {"file": str(out), "source": source}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--random", action="store_true", help="ask no hub")
    parser.add_argument("--size-px", type=int, default=224)
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    for key, value in HUB.items():
        os.environ.setdefault(key, value)
    print(json.dumps(prepare(given.model, given.out, given.weights, given.size_px, random=given.random)))


if __name__ == "__main__":
    main()
