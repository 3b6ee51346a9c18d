"""How much can still be said of refused images: a counter by the depth of the node that was promised, 0 for none."""

from prometheus_client import CollectorRegistry, Counter

from service.contract.bundle import Manifest
from service.contract.taxonomy import Node


class ToldMetrics:
    """In the registry of one model; it has no series where the bundle has no taxonomy."""

    def __init__(self, registry: CollectorRegistry, manifest: Manifest) -> None:
        family = Counter(
            "tailguard_refused_told", "Refused images by the depth of the node of the taxonomy that was told, 0: none",
            ["model", "version", "depth"], registry=registry,
        )  # fmt: skip
        depths = 0 if manifest.taxonomy is None else len(manifest.taxonomy.levels) + 1
        self._series = [family.labels(manifest.name, manifest.version, str(depth)) for depth in range(depths)]

    def count(self, node: Node | None) -> None:
        """Count a refused image of a model with a taxonomy."""
        self._series[0 if node is None else node.depth].inc()
