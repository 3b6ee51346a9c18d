"""Views of images, drawn for a whole batch on its own device.

One pipeline for in-distribution images and outliers, so that neither carries a cue (REFERENCE A3): random crop with
zero padding → horizontal flip → with p = .8 colour jitter in random order → with p = .2 grey.
"""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
CHUNK = 64  # images that share one order of the four jitters; small enough for a core's cache


def crop_and_flip(images: Tensor, generator: torch.Generator, *, padding_px: int, flip: bool) -> Tensor:
    """uint8 [N, H, W, 3] → uint8 [N, H, W, 3]: a random window of the zero-padded image, mirrored half of the time."""
    n, height, width, _ = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, (0, 0, padding_px, padding_px, padding_px, padding_px))
    corner = torch.randint(2 * padding_px + 1, (2, n, 1), generator=generator, device=device)
    mirrored = torch.rand(n, 1, generator=generator, device=device) < (0.5 if flip else 0.0)
    rows = corner[0] + torch.arange(height, device=device)  # (N, H)
    columns = torch.arange(width, device=device).expand(n, -1)
    columns = corner[1] + torch.where(mirrored, width - 1 - columns, columns)  # (N, W)
    which = torch.arange(n, device=device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]


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


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colour jitter (brightness, contrast, saturation ±.4, hue ±.1) with p = .8, then grey with p = .2.

    float [N, 3, H, W] in [0, 1] → the same. The images of one call share the order in which the four are applied.
    """
    n, device = images.shape[0], images.device
    draws = torch.rand(6, n, 1, 1, 1, generator=generator, device=device)
    # torchvision's ranges; an image that is not jittered gets factor 1 and hue 0
    applied = draws[0] < 0.8
    brightness, contrast, saturation = torch.where(applied, 0.6 + 0.8 * draws[1:4], 1.0)
    hue = torch.where(applied, 0.2 * draws[4] - 0.1, 0.0).flatten()
    for step in torch.randperm(4, generator=generator, device=device).tolist():
        if step == 0:
            images = (images * brightness).clamp_(0, 1)
        elif step == 1:
            mean = grey(images).mean(dim=(2, 3), keepdim=True)
            images = torch.lerp(mean, images, contrast).clamp_(0, 1)
        elif step == 2:
            images = torch.lerp(grey(images).expand_as(images), images, saturation.expand_as(images)).clamp_(0, 1)
        else:
            images = shift_hue(images, hue)
    return torch.where(draws[5] < 0.2, grey(images), images)


def view(images: Tensor, generator: torch.Generator, *, padding_px: int = 4, flip: bool = True) -> Tensor:
    """One random view of each image: uint8 [N, H, W, 3] → float32 [N, 3, H, W] in [0, 1], channels last in memory."""
    cropped = crop_and_flip(images, generator, padding_px=padding_px, flip=flip)
    out = torch.empty((len(images), 3, *images.shape[1:3]), device=images.device, memory_format=torch.channels_last)
    # On a GPU a batch goes in four chunks, so that the order of the jitters still varies inside it at few launches.
    size = CHUNK if images.device.type == "cpu" else max(CHUNK, -(-len(images) // 4))
    for start in range(0, len(images), size):
        part = (
            cropped[start : start + size].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        )
        out[start : start + size] = jitter(part.div_(255), generator)
    return out
