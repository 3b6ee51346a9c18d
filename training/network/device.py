"""The device that a run uses, by the name in its settings."""

import torch

from training.network import distributed


def find_device(name: str) -> torch.device:
    """auto (the GPU where there is one), cpu, cuda or cuda:N. ValueError in words where that device cannot be used."""
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"--device {name}: there is no such device; use auto, cpu, cuda or cuda:N")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name.startswith("cuda") and not gpus:
        raise ValueError(f"--device {name}: no GPU is available; use --device cpu")
    if number and int(number) >= gpus:
        raise ValueError(f"--device {name}: this machine has {gpus} GPUs; use cuda:0 to cuda:{gpus - 1}")
    if name == "cuda" and distributed.launched():
        return torch.device("cuda", distributed.local_rank())
    return torch.device(name)
