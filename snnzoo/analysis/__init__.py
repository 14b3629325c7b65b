"""Looking inside trained networks."""

from snnzoo.analysis.curves import draw_curves
from snnzoo.analysis.firing import SpikeCounter, firing_rates
from snnzoo.analysis.profiling import Energy, Profile, profile

__all__ = ["Energy", "Profile", "SpikeCounter", "draw_curves", "firing_rates", "profile"]
