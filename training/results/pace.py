"""How fast a run goes, and what that means for its end."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from ..config import TrainConfig
from ..run_state import Progress


@dataclass
class Pace:
    """Seconds a step and a checkpoint, as measured in this sitting."""

    steps: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    checkpoint: float = 0.0
    """Of the latest: measuring, drawing and saving."""
    before: float | None = None

    def step_done(self) -> None:
        """Count the time since the last call. The first step of a sitting is left out: it is slower than all others."""
        now = time.monotonic()
        if self.before is not None:
            self.steps.append(now - self.before)
        self.before = now

    def checkpoint_done(self, seconds: float) -> None:
        """The next step begins now."""
        self.checkpoint, self.before = seconds, time.monotonic()

    def is_known(self) -> bool:
        """Whether enough was measured to speak of it: ten seconds or ten steps."""
        return len(self.steps) >= 10 or (len(self.steps) >= 2 and sum(self.steps) >= 10)

    @property
    def seconds_a_step(self) -> float:
        """Without checkpoints; only once a step was measured."""
        return fmean(self.steps)

    def steps_per_second(self) -> str:
        """In words: `1.6 steps/s`, or `2.5 s a step` where that is the larger number."""
        seconds = self.seconds_a_step
        return f"{1 / seconds:.1f} steps/s" if seconds < 1 else f"{seconds:.1f} s a step"

    def steps_in(self, config: TrainConfig, seconds: float) -> int:
        """Steps that fit into some time, checkpoints counted."""
        return int(seconds / self._with_checkpoints(config))

    def seconds_left(self, config: TrainConfig, progress: Progress) -> float:
        """Until the run has its minutes or steps."""
        if config.minutes:
            return max(0.0, 60 * config.minutes - progress.seconds)
        return max(0, config.steps - progress.step) * self._with_checkpoints(config)

    def forecast(self, config: TrainConfig, progress: Progress) -> str:
        """What the run will come to, in a sentence."""
        left = self.seconds_left(config, progress)
        if config.minutes:
            total = progress.step + self.steps_in(config, left)
            return f"{self.steps_per_second()}: about {rounded(total):,} steps in {config.minutes:g} minutes on this machine"
        return f"{self.steps_per_second()}: about {duration(progress.seconds + left)} for {config.steps:,} steps on this machine"

    def _with_checkpoints(self, config: TrainConfig) -> float:
        """Seconds a step, with its share of a checkpoint."""
        step = self.seconds_a_step
        shares = [self.checkpoint / config.save_every] if config.save_every else []
        shares += [self.checkpoint * step / (60 * config.save_minutes)] if config.save_minutes else []
        return step + max(shares, default=0.0)


def duration(seconds: float) -> str:
    """A time for people: 45 s, 20 min, 2 h 05 min."""
    if seconds < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def rounded(number: int) -> int:
    """A forecast to two digits: 438 is about 440."""
    return int(float(f"{number:.2g}"))
