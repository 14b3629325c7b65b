"""Looking inside trained networks."""

from snnzoo.analysis.firing import firing_rates

__all__ = ["firing_rates"]
