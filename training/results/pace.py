"""The speed of a run, and forecasts based on it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from ..config import TrainConfig
from ..run_state import Progress


@dataclass
class Pace:
    """Seconds per step and per checkpoint, measured in this session."""

    steps: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    checkpoint: float = 0.0
    """Seconds of the latest checkpoint: validating, drawing the strip and saving."""
    last_time: float | None = None

    def record_step(self) -> None:
        """Record the time since the last call. The first step of a session is not counted because it is slower than the others."""
        now = time.monotonic()
        if self.last_time is not None:
            self.steps.append(now - self.last_time)
        self.last_time = now

    def record_checkpoint(self, seconds: float) -> None:
        """Record the time of a checkpoint; the next step starts now."""
        self.checkpoint, self.last_time = seconds, time.monotonic()

    def is_known(self) -> bool:
        """Whether enough has been measured for a forecast: ten seconds or ten steps."""
        return len(self.steps) >= 10 or (len(self.steps) >= 2 and sum(self.steps) >= 10)

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds per step, without checkpoints; needs at least one measured step."""
        return fmean(self.steps)

    def steps_per_second(self) -> str:
        """Format the speed: `1.6 steps/s`, or `2.5 s/step` for slower steps."""
        seconds = self.seconds_per_step
        return f"{1 / seconds:.1f} steps/s" if seconds < 1 else f"{seconds:.1f} s/step"

    def steps_in(self, config: TrainConfig, seconds: float) -> int:
        """Number of steps that fit into a time, including checkpoints."""
        return int(seconds / self._seconds_per_step_with_checkpoints(config))

    def seconds_left(self, config: TrainConfig, progress: Progress) -> float:
        """Seconds until the run reaches its minutes or steps."""
        if config.minutes:
            return max(0.0, 60 * config.minutes - progress.seconds)
        return max(0, config.steps - progress.step) * self._seconds_per_step_with_checkpoints(config)

    def forecast(self, config: TrainConfig, progress: Progress) -> str:
        """Forecast the length of the run in a sentence."""
        left = self.seconds_left(config, progress)
        if config.minutes:
            total = progress.step + self.steps_in(config, left)
            return f"{self.steps_per_second()}: about {round_two_digits(total):,} steps in {config.minutes:g} minutes on this machine"
        return f"{self.steps_per_second()}: about {duration(progress.seconds + left)} for {config.steps:,} steps on this machine"

    def _seconds_per_step_with_checkpoints(self, config: TrainConfig) -> float:
        """Seconds per step, including its share of a checkpoint."""
        step = self.seconds_per_step
        shares = [self.checkpoint / config.save_every] if config.save_every else []
        shares += [self.checkpoint * step / (60 * config.save_minutes)] if config.save_minutes else []
        return step + max(shares, default=0.0)


def duration(seconds: float) -> str:
    """Format a time: 45 s, 20 min, 2 h 05 min."""
    if seconds < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def round_two_digits(number: int) -> int:
    """Round a forecast to two significant digits: 438 becomes 440."""
    return int(float(f"{number:.2g}"))
