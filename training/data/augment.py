"""Random views of images, drawn and made for a whole batch on its own device. `--augment` names the kind:

    none    the image as it is
    flip    mirrored left to right half of the time
    crop    a window of the zero-padded image
    paper   crop, flip, with p = .8 colour jitter in random order, with p = .2 grey (PASCL, REFERENCE A3)
    photo   a resized crop of 35 to 100% of the area, flip, with p = .8 mild colour jitter

In-distribution images and outliers take the same kind, so that neither carries a cue. Nothing here waits for the
device: what the host has to know (the order of the jitters) is drawn on the host.
"""

import hashlib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.crops import PHOTO_AREA, PHOTO_RATIO

LUMA = (0.299, 0.587, 0.114)
CHUNK = 64  # images that share one order of the four jitters; small enough for a core's cache


class Windows(NamedTuple):
    """A window of each of N padded images: its corner's row and column [N, 1], and whether it is mirrored [N, 1]."""

    row: Tensor
    column: Tensor
    mirrored: Tensor


def draw_windows(n: int, generator: torch.Generator, *, padding_px: int, flip: bool) -> Windows:
    """Corners uniform in 0..2·padding_px; mirrored half of the time where `flip` is set."""
    device = generator.device
    corner = torch.randint(2 * padding_px + 1, (2, n, 1), generator=generator, device=device)
    mirrored = torch.rand(n, 1, generator=generator, device=device) < (0.5 if flip else 0.0)
    return Windows(corner[0], corner[1], mirrored)


def crop_and_flip(images: Tensor, windows: Windows, *, padding_px: int) -> Tensor:
    """uint8 [N, H, W, 3] → uint8 [N, H, W, 3]: the windows of the zero-padded images."""
    n, height, width, _ = images.shape
    device = images.device
    padded = F.pad(images, (0, 0, padding_px, padding_px, padding_px, padding_px)) if padding_px else images
    rows = windows.row + torch.arange(height, device=device)  # (N, H)
    columns = torch.arange(width, device=device).expand(n, -1)
    columns = windows.column + torch.where(windows.mirrored, width - 1 - columns, columns)  # (N, W)
    which = torch.arange(n, device=device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]


def draw_boxes(n: int, generator: torch.Generator, *, flip: bool) -> Tensor:
    """float [N, 2, 3]: affine maps from a view to its window in the image, both in -1..1, for F.affine_grid."""
    draws = torch.rand(5, n, generator=generator, device=generator.device)
    area = PHOTO_AREA[0] + (PHOTO_AREA[1] - PHOTO_AREA[0]) * draws[0]
    low, high = (math.log(ratio) for ratio in PHOTO_RATIO)
    ratio = (low + (high - low) * draws[1]).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * (2 * draws[2] - 1), (1 - height) * (2 * draws[3] - 1)
    mirrored = torch.where(draws[4] < (0.5 if flip else 0.0), -1.0, 1.0)
    zero = torch.zeros_like(width)
    return torch.stack([torch.stack([width * mirrored, zero, left], 1), torch.stack([zero, height, top], 1)], 1)


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """float [N, 3, H, W] → the windows `boxes` of draw_boxes, each enlarged to [3, H, W], bilinear."""
    grid = F.affine_grid(boxes, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def grey(images: Tensor) -> Tensor:
    """float [N, 3, H, W] → luma [N, 1, H, W] (ITU-R 601)."""
    return images[:, 0:1] * LUMA[0] + images[:, 1:2] * LUMA[1] + images[:, 2:3] * LUMA[2]


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the HSV hue by `turns` [N] (1 = a full circle). float [N, 3, H, W] in [0, 1] → the same shape."""
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    safe = chroma.clamp(min=1e-8)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turns[:, None, None]
    # HSV → RGB: channel(n) = v − c·clamp(min(k, 4 − k), 0, 1) with k = (n + hue) mod 6, n = 5, 3, 1
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(hue + n, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


class Colours(NamedTuple):
    """The colour jitter of N images: uniform draws [6, N, 1, 1, 1] and the order of the four changes."""

    draws: Tensor
    order: list[int]


def draw_colours(n: int, generator: torch.Generator) -> Colours:
    draws = torch.rand(6, n, 1, 1, 1, generator=generator, device=generator.device)
    return Colours(draws, torch.randperm(4, generator=_on_host(generator)).tolist())


def _on_host(generator: torch.Generator) -> torch.Generator:
    """`generator` where it is on the CPU; else one there whose seed follows from its state, read without waiting."""
    if generator.device.type == "cpu":
        return generator
    state = hashlib.blake2b(generator.get_state().numpy().tobytes(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(state, "big"))


def jitter(images: Tensor, colours: Colours, *, hue: float = 0.1, grey_share: float = 0.2) -> Tensor:
    """Brightness, contrast and saturation ±.4 and hue ±`hue` turns with p = .8, then grey with p = `grey_share`.

    float [N, 3, H, W] in [0, 1] → the same. The images of one call share the order in which the four are applied.
    """
    draws = colours.draws
    # torchvision's ranges; an image that is not jittered gets factor 1 and hue 0
    applied = draws[0] < 0.8
    brightness, contrast, saturation = torch.where(applied, 0.6 + 0.8 * draws[1:4], 1.0)
    turns = torch.where(applied, 2 * hue * draws[4] - hue, 0.0).flatten()
    for step in colours.order:
        if step == 0:
            images = (images * brightness).clamp_(0, 1)
        elif step == 1:
            mean = grey(images).mean(dim=(2, 3), keepdim=True)
            images = torch.lerp(mean, images, contrast).clamp_(0, 1)
        elif step == 2:
            images = torch.lerp(grey(images).expand_as(images), images, saturation.expand_as(images)).clamp_(0, 1)
        else:
            images = shift_hue(images, turns)
    return torch.where(draws[5] < grey_share, grey(images), images)


class Recipe(NamedTuple):
    """The parts of a kind of view."""

    crop: bool = False  # a window of the zero-padded image
    resized: bool = False  # a window of the image, enlarged
    flip: bool = False
    colours: bool = False
    hue: float = 0.1  # turns
    grey_share: float = 0.2


KINDS = {
    "none": Recipe(),
    "flip": Recipe(flip=True),
    "crop": Recipe(crop=True),
    "paper": Recipe(crop=True, flip=True, colours=True),
    "photo": Recipe(resized=True, flip=True, colours=True, hue=0.02, grey_share=0.0),
}


def draw_features(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the V views of each image, float [N, V, F] → [N, F]: the views of a frozen backbone are made before."""
    n, views, _ = images.shape
    which = torch.randint(views, (n,), generator=generator, device=images.device)
    return images[torch.arange(n, device=images.device), which]


def view(
    images: Tensor, generator: torch.Generator, *, kind: str = "paper", padding_px: int = 4, flip: bool = True,
    rows: slice = slice(None),
) -> Tensor:  # fmt: skip
    """One random view of each image: uint8 [N, H, W, 3] → float32 [n, 3, H, W] in [0, 1], channels last in memory.

    `kind` is one of KINDS. With `flip` off (a mirror image is another class) no kind mirrors. `rows` names the images
    whose views are made, n of them; what is drawn does not depend on it, so that processes can divide a batch.
    Features float32 [N, V, F] of a frozen backbone give one of their views each, [n, F], whatever `kind` is.
    """
    if images.is_floating_point():
        return draw_features(images, generator)[rows]
    recipe, n, device = KINDS[kind], len(images), images.device
    flip &= recipe.flip
    padding_px = padding_px if recipe.crop else 0
    boxes = draw_boxes(n, generator, flip=flip) if recipe.resized else None
    windows = None if recipe.resized else draw_windows(n, generator, padding_px=padding_px, flip=flip)
    begin, end, _ = rows.indices(n)
    out = torch.empty((end - begin, 3, *images.shape[1:3]), device=device, memory_format=torch.channels_last)
    # On a GPU a batch goes in four chunks, so that the order of the jitters still varies inside it at few launches.
    size = CHUNK if device.type == "cpu" else max(CHUNK, -(-n // 4))
    for start in range(0, n, size):
        colours = draw_colours(min(size, n - start), generator) if recipe.colours else None
        first, last = max(start, begin), min(start + size, end)
        if first >= last:
            continue
        part = images[first:last]
        if windows:
            part = crop_and_flip(part, Windows(*(t[first:last] for t in windows)), padding_px=padding_px)
        floats = part.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if boxes is not None:
            floats = resized_crop(floats, boxes[first:last])
        if colours:
            mine = Colours(colours.draws[:, first - start : last - start], colours.order)
            floats = jitter(floats, mine, hue=recipe.hue, grey_share=recipe.grey_share)
        out[first - begin : last - begin] = floats
    return out
