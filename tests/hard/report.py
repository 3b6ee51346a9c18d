"""What one hard test found: figures, and every criterion that was not met."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.hard.plan import Seen
from tests.hard.server import BUNDLE


@dataclass
class Report:
    """`quick`: small counts, for a look; the criteria stay the same. `wrong` empty: passed."""

    quick: bool = False
    bundle: Path = BUNDLE
    figures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def say(self, figure: str, **numbers: float) -> None:
        """Add a figure to the line that is printed, and its numbers to the JSON."""
        self.figures.append(figure)
        self.numbers |= {name: round(value, 3) for name, value in numbers.items()}

    def need(self, met: bool, otherwise: str) -> None:
        """A criterion; `otherwise` says what is wrong."""
        if not met:
            self.wrong.append(otherwise)

    def need_right(self, seen: Seen, who: str) -> None:
        """Every answer was one that its sample allows, and every request got one."""
        self.need(not seen.unexpected, f"{who}: {seen.unexpected} wrong answers, such as {seen.examples[:2]}")
        self.need(not seen.lost, f"{who}: {seen.lost} requests without an answer")

    def of(self, full: int, quick: int) -> int:
        """A count, by how thorough this run is."""
        return quick if self.quick else full
