"""Looking inside trained networks."""

from snnzoo.analysis.charts import draw_accuracy, draw_profile, draw_rates
from snnzoo.analysis.curves import draw_curves, draw_hybrids, save_curves
from snnzoo.analysis.figure import save
from snnzoo.analysis.firing import SpikeCounter, firing_rates
from snnzoo.analysis.profiling import Energy, Profile, profile
from snnzoo.analysis.rasters import Recording, draw_raster, record

__all__ = [
    "Energy",
    "Profile",
    "Recording",
    "SpikeCounter",
    "draw_accuracy",
    "draw_curves",
    "draw_hybrids",
    "draw_profile",
    "draw_raster",
    "draw_rates",
    "firing_rates",
    "profile",
    "record",
    "save",
    "save_curves",
]
