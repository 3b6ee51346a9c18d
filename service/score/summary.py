"""Counts over the rows of a run, printed beside what the manifest promised."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from service.contract.bundle import Manifest
from service.contract.decision import Scope
from service.score.rows import ResultRow


@dataclass
class Summary:
    """Counts of the rows that were passed through `over`."""

    decided: Counter[tuple[str, str]] = field(default_factory=Counter)  # (predicted group, decision)
    errors: Counter[str] = field(default_factory=Counter)

    def over(self, rows: Iterable[ResultRow]) -> Iterator[ResultRow]:
        """Yield `rows` and count them."""
        for row in rows:
            if row["error"] is None:
                self.decided[str(row["group"]), str(row["decision"])] += 1
            else:
                self.errors[str(row["error"])] += 1
            yield row

    def text(self, manifest: Manifest, operating_point: str, scope: Scope) -> str:
        """Shares rejected, overall and by the group of the predicted class, beside those of the calibration images."""
        point = manifest.operating_points[operating_point]
        cost = point.cost(scope).calibration
        groups = manifest.group_names
        accepted = {g: self.decided[g, "accept"] for g in groups}
        rejected = {g: self.decided[g, "reject"] for g in groups}
        good, bad = sum(accepted.values()), sum(rejected.values())
        failed = self.errors.total()
        lines = [
            f"{good + bad + failed} images: {good} accepted, {bad} rejected, {failed} with an error",
            *(f"  {count} {kind}" for kind, count in self.errors.most_common()),
            f"{manifest.name} {manifest.version}, operating point {operating_point}, thresholds {scope}, "
            f"score {manifest.deciding_score}",
            f"{'predicted group':<16}{'images':>9}{'rejected':>10}{'promised':>10}",
        ]
        shown = [(g, accepted[g], rejected[g], cost.id_rejected_by_predicted_group.get(g)) for g in groups]
        for name, kept, dropped, promise in [*shown, ("all", good, bad, cost.id_rejected)]:
            share = dropped / (kept + dropped) if kept + dropped else None
            lines.append(f"{name:<16}{kept + dropped:>9}{_percent(share):>10}{_percent(promise):>10}")
        lines.append(
            "promised: the share of in-distribution images rejected at calibration; far more means other images"
        )
        return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
