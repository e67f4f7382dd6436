"""What was measured, beside what it must reach."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Better(Enum):
    """In which direction a figure is good."""

    HIGHER = "at least"
    LOWER = "at most"


@dataclass(frozen=True)
class Row:
    """One line of a table. `target` is in the figure's own unit; None: there is nothing to reach."""

    what: str
    figure: float
    unit: str
    target: float | None = None
    better: Better = Better.HIGHER

    @property
    def ratio(self) -> float | None:
        """How well the target is reached: 1 is just reached, more is better, whatever the direction."""
        if self.target is None:
            return None
        return self.figure / self.target if self.better is Better.HIGHER else self.target / self.figure

    def cells(self) -> tuple[str, str, str]:
        """The columns: what, figure with unit, target with ratio."""
        figure = f"{self.figure:,.{digits(self.figure)}f} {self.unit}"
        if self.target is None or self.ratio is None:
            return self.what, figure, ""
        target = f"{self.better.value} {self.target:,.{digits(self.target)}f}"
        return self.what, figure, f"{target}: {'reached' if self.ratio >= 1 else 'MISSED'}, x{self.ratio:.2f}"


def digits(figure: float) -> int:
    """Decimals that leave about three significant digits."""
    return 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2


def print_table(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Print rows under a title, aligned, with notes below."""
    cells = [row.cells() for row in rows]
    width = [max((len(line[column]) for line in cells), default=0) for column in range(2)]
    print(f"\n{title}")
    for what, figure, target in cells:
        print(f"  {what:<{width[0]}}  {figure:>{width[1]}}  {target}".rstrip())
    for note in notes:
        print(f"  ({note})")


def median(samples: Sequence[float]) -> float:
    """The median; benchmarks quote no means, which one interruption spoils."""
    return statistics.median(samples)
