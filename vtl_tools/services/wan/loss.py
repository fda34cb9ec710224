"""Loss of frames: independent of each other, or in bursts (Gilbert 1960, Elliott 1963)."""

from math import log
from random import Random

from vtl_tools.services.wan.settings import PathSettings


class Loss:
    """Decides which frames are lost. Chances are drawn for runs of frames, not for each."""

    def __init__(self, settings: PathSettings, rng: Random) -> None:
        self._rng = rng
        self._is_bad = False
        self.apply(settings)

    def apply(self, settings: PathSettings) -> None:
        """Use other settings from the next frame on. The state, good or bad, stays."""
        self._settings = settings
        self._is_bad = self._is_bad and settings.to_bad > 0
        self._draw_state()
        self._draw_loss()

    def _draw_state(self) -> None:
        """Draw how many frames the present state still stays."""
        self._stays = self._run(self._settings.to_good if self._is_bad else self._settings.to_bad)

    def _draw_loss(self) -> None:
        """Draw how many frames pass before the next is lost."""
        self._passes = self._run(self._settings.loss_bad if self._is_bad else self._settings.loss)

    def _run(self, probability: float) -> float:
        """Return a random number of frames before an event of this probability: geometric."""
        if probability <= 0:
            return float("inf")
        if probability >= 1:
            return 0
        return log(1.0 - self._rng.random()) // log(1.0 - probability)

    def spares(self, count: int) -> bool:
        """Return whether none of the next `count` frames is lost. If so, they have passed."""
        if self._stays < count or self._passes < count:
            return False
        self._stays -= count
        self._passes -= count
        return True

    def takes(self) -> bool:
        """Return whether the next frame is lost."""
        if self._stays <= 0:
            self._is_bad = not self._is_bad
            self._draw_state()
            self._draw_loss()
        else:
            self._stays -= 1
        if self._passes > 0:
            self._passes -= 1
            return False
        self._draw_loss()
        return True
