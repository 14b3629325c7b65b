"""Looking inside trained networks."""

from snnzoo.analysis.curves import draw_curves
from snnzoo.analysis.firing import SpikeCounter, firing_rates

__all__ = ["SpikeCounter", "draw_curves", "firing_rates"]
