"""AdaptFormer (Chen et al. 2022): a small bottleneck beside the MLP of each block of a vision transformer."""

import math
from typing import Any

from torch import Tensor, nn

from training.network.preprocessing import BackboneError

SCALE = 0.1
ALTERNATIVES = "use --tune full, or a vision transformer such as vit_small_patch16_224"


class ParallelAdapter(nn.Module):
    """mlp(x) + .1·W_up·relu(W_down·x) of a block's normalised tokens [N, T, D]. W_up begins at 0: nothing changes then.

    Where the block has a LayerScale, it scales the sum.
    """

    def __init__(self, mlp: nn.Module, width: int, bottleneck: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        beside: Tensor = self.up(self.down(tokens).relu())
        out: Tensor = self.mlp(tokens) + SCALE * beside
        return out


def bottleneck(num_classes: int, blocks: int) -> int:
    """LIFT's width (Shi et al. 2024): 2^⌊log2(C / 2L)⌋, at least 1. The adapters then have at most what a head has."""
    return int(2 ** max(0, math.floor(math.log2(num_classes / (2 * blocks)))))


def require_blocks(module: nn.Module, name: str) -> list[Any]:
    """The blocks of a vision transformer; BackboneError in words for any other model."""
    blocks = getattr(module, "blocks", None)
    found = list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
    if not found or not all(hasattr(b, "attn") and hasattr(b, "mlp") and hasattr(b, "norm2") for b in found):
        raise BackboneError(
            f"--tune adapters sets an adapter beside the MLP of each block of a vision transformer, and {name} has no "
            f"such blocks: {ALTERNATIVES}"
        )
    return found


def add(module: nn.Module, num_classes: int, width: int | None = None) -> None:
    """Set an adapter into each block, `width` channels at its narrowest (not given: LIFT's)."""
    blocks = require_blocks(module, type(module).__name__)
    for block in blocks:
        size = int(block.norm2.weight.shape[0])
        block.mlp = ParallelAdapter(block.mlp, size, width or bottleneck(num_classes, len(blocks)))
