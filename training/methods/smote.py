"""SMOTE: new tail points between old ones (Chawla et al. 2002), in feature space."""

import numpy as np
import torch
from imblearn.over_sampling import SMOTE  # type: ignore[import-untyped]
from torch import Tensor


def smote(features: Tensor, labels: Tensor, *, seed: int, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Bring every class to the count of the largest: x + u·(x' − x), u ~ U(0, 1), x' a near neighbour of x's class.

    A class of n images looks at min(neighbours, n − 1) neighbours; one of a single image has none to go towards, so
    that image is repeated as it is. The search runs on the CPU, in imbalanced-learn.

    Args:
        features: float [N, F].
        labels: int [N].
        seed: 0 to 2^32 − 1; it alone decides the draw.
        neighbours: at least 1.
    Returns (float32 [N', F], labels [N']) on the device of `features`: the N originals in order, then what is new.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}: SMOTE goes towards at least 1")
    x, y = features.detach().float().cpu().numpy(), labels.cpu().numpy()
    classes, counts = np.unique(y, return_counts=True)
    largest = int(counts.max(initial=0))
    # one generator for all calls: from a plain seed imbalanced-learn draws the same numbers again for every class
    random = np.random.RandomState(seed)
    grown_x, grown_y = [x], [y]
    for k in range(neighbours + 1):  # classes with as many neighbours are filled together
        small = classes[(np.minimum(neighbours, counts - 1) == k) & (counts < largest)]
        if len(small) == 0:
            continue
        if k == 0:
            missing = np.repeat(np.flatnonzero(np.isin(y, small)), largest - 1)
            grown_x.append(x[missing])
            grown_y.append(y[missing])
        else:
            filler = SMOTE(sampling_strategy=dict.fromkeys(small, largest), random_state=random, k_neighbors=k)
            filled_x, filled_y = filler.fit_resample(x, y)  # all of x, y, then what is new
            grown_x.append(filled_x[len(x) :])
            grown_y.append(filled_y[len(y) :])
    all_x, all_y = torch.from_numpy(np.concatenate(grown_x)), torch.from_numpy(np.concatenate(grown_y))
    return all_x.to(features.device), all_y.to(features.device)
