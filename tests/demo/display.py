"""The demo on a terminal: a few lines redrawn in place, or a plain line per step where nobody watches a screen."""

import math
import sys
from typing import TextIO

from tests.demo.watch import ROWS, Seen

BAR, HISTORY = 28, 44
LEVELS = " ▁▂▃▄▅▆▇█"
PLAIN_EVERY_S = 5
GREEN, RED, DIM, OFF = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


def share(value: float) -> str:
    return "   –  " if math.isnan(value) else f"{value:6.1%}"


def bar(value: float, width: int = BAR) -> str:
    filled = 0 if math.isnan(value) else round(min(max(value, 0.0), 1.0) * width)
    return "█" * filled + "·" * (width - filled)


def sparkline(values: list[float], width: int = HISTORY) -> str:
    """The last values, each in 0..1, as blocks; where there are more than fit, the last that fit."""
    top = len(LEVELS) - 1
    return "".join(" " if math.isnan(v) else LEVELS[round(min(max(v, 0.0), 1.0) * top)] for v in values[-width:])


def line(second: float, kind: str, seen: Seen) -> str:
    """One step in one plain line."""
    groups = ", ".join(f"{row} {share(seen.rejected[row]).strip()}" for row in ROWS if row != "all")
    return (
        f"{second:4.0f} s {kind:>3}: {seen.images:4.0f} images, rejected {share(seen.rejected['all']).strip()} "
        f"({groups}; expected {share(seen.expected['all']).strip()}), KS {seen.ks:.3f} (bound {seen.ks_bound:.3f})"
    )


def screen(second: float, total_s: float, turn_s: float, kind: str, window_s: float, history: list[Seen]) -> list[str]:
    """The picture of a moment; every line has a fixed meaning, so that it can be redrawn in place."""
    seen = history[-1]
    strange = second >= turn_s
    colour = RED if strange else GREEN
    when = f"since {turn_s:.0f} s" if strange else f"OOD from {turn_s:.0f} s on"
    lines = [
        f"{second:4.0f} s of {total_s:.0f}   traffic {colour}{kind}{OFF} ({when})   {seen.images:.0f} images "
        f"in the last {window_s:.0f} s",
        f"{DIM}          rejected{' ' * (BAR + 2)}expected{OFF}",
    ]
    for row in ROWS:
        now, usual = seen.rejected[row], seen.expected[row]
        far = not math.isnan(now) and now > usual + 0.1
        lines.append(f"{row:>8}  {RED if far else ''}{share(now)} {bar(now)}{OFF}    {share(usual)}")
    far = seen.ks > seen.ks_bound
    lines += [
        f"      KS  {RED if far else ''}{seen.ks:6.3f} {bar(seen.ks)}{OFF}     {seen.ks_bound:.3f} at most, by chance",
        f"{DIM}rejected{OFF}  {sparkline([s.rejected['all'] for s in history])}",
        f"{DIM}      KS{OFF}  {sparkline([s.ks for s in history])}",
    ]
    return lines


class Display:
    def __init__(self, total_s: float, turn_s: float, window_s: float, out: TextIO | None = None) -> None:
        self._total_s, self._turn_s, self._window_s, self._out = total_s, turn_s, window_s, out or sys.stdout
        self._history: list[Seen] = []
        self._drawn = 0
        self._said = -math.inf

    def show(self, second: float, kind: str, seen: Seen) -> None:
        self._history.append(seen)
        if not self._out.isatty():
            if second - self._said >= PLAIN_EVERY_S:
                self._said = second
                print(line(second, kind, seen), file=self._out, flush=True)
            return
        lines = screen(second, self._total_s, self._turn_s, kind, self._window_s, self._history)
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._drawn = len(lines)
        print(up + "\n".join(f"\x1b[2K{text}" for text in lines), file=self._out, flush=True)
