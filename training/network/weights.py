"""Files of weights: what is in them, and which tensor of a model each one is."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from service.contract.lines import one_line
from training.network.preprocessing import BackboneError
from training.network.pretrained import digest

DOWNLOADED = "tensors_sha256"
STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")  # under which training scripts save the weights


def fill(module: nn.Module, name: str, path: Path) -> dict[str, str]:
    """Fill `module` from a file; what the card says of it. Raises BackboneError unless every tensor is found."""
    given = read_weights(path)
    wanted = module.state_dict()
    chosen, how = match_weights(wanted, given)
    missing = [key for key, value in wanted.items() if key not in chosen and value.is_floating_point()]
    if not chosen or missing:
        example = f", {missing[0]} {list(wanted[missing[0]].shape)} for one" if chosen else ""
        raise BackboneError(
            f"--weights {path}: {len(chosen)} of the {len(wanted)} tensors of {name} are in the file's {len(given)}; "
            f"{len(missing)} are not{example}: give weights of this very model"
        )
    for key, value in chosen.items():
        if value.shape != wanted[key].shape:
            chosen[key] = _resampled(module, value)
    module.load_state_dict(chosen, strict=False)
    return {
        "weights": path.name,
        "weights_sha256": digest(path),
        "tensors": f"{len(chosen)} of {len(given)} tensors of the file taken, matched {how}",
    }


def content_digest(state: Mapping[str, Tensor]) -> str:
    """The sha256 of every tensor of a network's state with its name: of weights that came in no file of ours."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch file. Raises BackboneError; no code of the file is run."""
    if not path.is_file():
        raise BackboneError(f"--weights {path} is no file: name the .pth or .safetensors file of the weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(str(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise nearly anything
        raise BackboneError(f"--weights {path} cannot be read: {one_line(error)}") from error
    for key in STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise BackboneError(f"--weights {path} holds a {type(content).__name__}, not named tensors: save a state_dict")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise BackboneError(f"--weights {path} holds no tensor: save a state_dict")
    if bad := next((k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()), None):
        raise BackboneError(f"--weights {path}: {bad} is not finite; fetch the file again")
    return tensors


def match_weights(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """(tensors for the names in `wanted`, "by name" or "by order").

    By name where names agree, a grid of positions in any size. Where no name agrees, by order: other libraries keep
    timm's order of layers under names of their own. The shapes must then agree one by one; a head may follow.
    """
    named = {
        key: given[key]
        for key, value in wanted.items()
        if key in given and (given[key].shape == value.shape or (key == "pos_embed" and given[key].ndim == 3))
    }
    if named:
        return named, "by name"
    ours = [key for key, value in wanted.items() if value.is_floating_point()]  # the counters of BatchNorm do not count
    theirs = [value for value in given.values() if value.is_floating_point()]
    pairs = list(zip(ours, theirs, strict=False))
    if len(theirs) < len(ours) or any(wanted[key].shape != value.shape for key, value in pairs):
        return {}, "by order"
    return dict(pairs), "by order"


def _resampled(module: nn.Module, positions: Tensor) -> Tensor:
    """A grid of positions [1, prefix + H·W, D] in the size that `module` has."""
    from timm.layers import pos_embed  # imported by whoever made `module`

    grid: Any = module.patch_embed.grid_size  # type: ignore[union-attr]
    prefix = 0 if getattr(module, "no_embed_class", False) else int(getattr(module, "num_prefix_tokens", 1))
    resampled: Tensor = pos_embed.resample_abs_pos_embed(positions, new_size=list(grid), num_prefix_tokens=prefix)
    return resampled
