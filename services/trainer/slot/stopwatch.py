"""How long each step of a task takes."""

import time
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds by step; a step that is taken again, for the next client of a batch, adds up."""

    timings: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter)
    _lap: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> float:
        """The step that ends now, and its seconds."""
        now = time.perf_counter()
        seconds = now - self._lap
        self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 6)
        self._lap = now
        return seconds

    def total(self) -> dict[str, float]:
        return {**self.timings, "total": round(time.perf_counter() - self._began, 6)}
