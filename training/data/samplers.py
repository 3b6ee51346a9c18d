"""Which images an epoch shows: (labels, num_classes, draws, progress, generator) → int64 [draws], indices of images.

    labels: int [N], the class of each training image.    num_classes: C; a class without images is never drawn.
    draws: images in the epoch, at least 1; the same for every sampler, so that methods compare at equal compute.
    progress: in [0, 1], how far training has come.       generator: on the labels' device; it alone decides the draw.

Data are never copied, only indices; everything stays on the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Sampler = Callable[[Tensor, int, int, float, torch.Generator], Tensor]


def natural(labels: Tensor, num_classes: int, draws: int, progress: float, generator: torch.Generator) -> Tensor:
    """Every image once, in a new order; past N draws again, in another order."""
    return _shuffled(torch.arange(len(labels), device=labels.device), draws, generator)


def under(labels: Tensor, num_classes: int, draws: int, progress: float, generator: torch.Generator) -> Tensor:
    """Undersampling: only the first n_min images of each class, again and again, each round in a new order.

    The images are the same in every epoch: the others are thrown away, as the method's name says.
    """
    members, starts, counts = _by_class(labels, num_classes)
    kept = torch.arange(int(counts.min()), device=labels.device)
    return _shuffled(members[starts[:, None] + kept].flatten(), draws, generator)


def over(labels: Tensor, num_classes: int, draws: int, progress: float, generator: torch.Generator) -> Tensor:
    """Oversampling: a shuffled deck with n_max cards of every class, dealt once or several times.

    Each image of class c stands on ⌊n_max/n_c⌋ cards, and a random n_max mod n_c of them on one more.
    """
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    members, starts, counts = _by_class(labels[order], num_classes)  # each class in random order, so the remainder is
    cards = torch.arange(int(counts.max()), device=labels.device)
    deck = members[starts[:, None] + cards % counts[:, None]].flatten()
    return _shuffled(order[deck], draws, generator)


def class_balanced(labels: Tensor, num_classes: int, draws: int, progress: float, generator: torch.Generator) -> Tensor:
    """A class uniformly, then an image of it, with replacement: p_c ∝ n_c^q with q = 0 (Kang et al. 2020)."""
    return _drawn(labels, num_classes, draws, torch.ones_like, generator)


def square_root(labels: Tensor, num_classes: int, draws: int, progress: float, generator: torch.Generator) -> Tensor:
    """A class with p_c ∝ n_c^(1/2), then an image of it uniformly, with replacement (Kang et al. 2020, q = 1/2)."""
    return _drawn(labels, num_classes, draws, torch.sqrt, generator)


def progressive(labels: Tensor, num_classes: int, draws: int, progress: float, generator: torch.Generator) -> Tensor:
    """From natural to class-balanced: p_c(t) = (1 − t)·n_c/N + t/C, t = progress (Kang et al. 2020)."""

    def shares(counts: Tensor) -> Tensor:
        return (1 - progress) * counts / counts.sum() + progress / len(counts)

    return _drawn(labels, num_classes, draws, shares, generator)


SAMPLERS: dict[str, Sampler] = {
    "natural": natural,
    "under": under,
    "over": over,
    "balanced": class_balanced,
    "square-root": square_root,
    "progressive": progressive,
}


def _by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images sorted by class, in data order within one [N]; where each class starts, and its count, both [C'].

    C' counts the classes that have images: the others are left out here, so that nothing below can draw them.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    counts = counts[counts > 0]
    return labels.argsort(stable=True), counts.cumsum(0) - counts, counts


def _shuffled(cards: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """`draws` cards: the whole deck in a new order, again and again; the last round is cut short."""
    rounds = -(-draws // len(cards))
    orders = [torch.randperm(len(cards), generator=generator, device=cards.device) for _ in range(rounds)]
    return cards[torch.cat(orders)[:draws]]


def _drawn(
    labels: Tensor, num_classes: int, draws: int, shares: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Tensor:
    """With replacement: a class in proportion to shares(counts), then one of its images uniformly."""
    members, starts, counts = _by_class(labels, num_classes)
    chosen = torch.multinomial(shares(counts.float()), draws, replacement=True, generator=generator)
    # the remainder of 62 random bits: never n_c itself, as a rounded fraction could be; its bias is below 1e-12
    bits = torch.randint(2**62, (draws,), generator=generator, device=labels.device)
    return members[starts[chosen] + bits % counts[chosen]]
