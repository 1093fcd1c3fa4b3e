"""What every part of the campaign counts: kills by window and kind of town, and what differed from the oracle."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Kills:
    """``windows`` are those in which kills are to land; ``landed`` by window and kind; ``missed`` moments by aim."""

    windows: tuple[str, ...]
    landed: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.landed.total()

    @property
    def by_window(self) -> dict[str, int]:
        return {name: sum(count for (found, _), count in self.landed.items() if found == name) for name in self.windows}

    @property
    def empty_windows(self) -> list[str]:
        return [name for name, count in self.by_window.items() if not count]

    def table(self, width: int) -> list[str]:
        """A line for each window, its name in so many characters."""
        kinds = sorted({kind for _, kind in self.landed})
        lines = [f"{'killed in':{width}}{'kills':>7}   " + "   ".join(kinds)]
        for name, count in self.by_window.items():
            shares = "   ".join(f"{self.landed[name, kind]:>{len(kind)}}" for kind in kinds)
            lines.append(f"{name:{width}}{count:>7}   {shares}" + ("   ← none" if not count else ""))
        return lines

    def differences(self) -> list[str]:
        return [f"{len(self.problems)} differences from the oracle", *(f"  {problem}" for problem in self.problems)]
