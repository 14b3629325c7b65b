"""What every spiking family shares: the number of steps, the way gradients are taken, and the coding of the input."""

from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.layers import TimeSeries
from snnzoo.neurons import LIFParams, Surrogate
from snnzoo.rate import Signal, time_mean

GRAD_METHODS = ("rate", "bptt")


class SpikingModel(nn.Module):
    """Base of the spiking families; sits before the family's network in the class's bases.

    Args:
        num_steps: T, the number of time steps a static image is shown for; may be changed later.
        grad_method: ``'rate'`` (rate-based backpropagation) or ``'bptt'`` (surrogate gradients through time); used in
            training mode, may be changed later. In evaluation mode gradients, if asked for, go through time.

    Raises:
        InputError: a value outside its range.
    """

    def __init__(self, *args, num_steps: int = 4, grad_method: str = "rate", **kwargs):
        super().__init__(*args, **kwargs)
        self.num_steps = num_steps
        self.grad_method = grad_method

    def __setattr__(self, name, value):
        if name == "num_steps" and not (isinstance(value, int) and value >= 1):
            raise InputError(f"num_steps must be a whole number of at least 1, got {value!r}")
        if name == "grad_method" and value not in GRAD_METHODS:
            raise InputError(f"grad_method must be 'rate' or 'bptt', got {value!r}")
        super().__setattr__(name, value)

    def encode(self, x: Tensor) -> tuple[TimeSeries, int]:
        """Direct coding: the image itself is the input current of every step.

        Args:
            x: ``[B, C, H, W]``, the same image at every step, or ``[B, T, C, H, W]``, a frame for each step.

        Returns:
            The time series that the layers pass on, time-major (one step long for a static image, so that what comes
            before the first neuron is computed once), and T.

        Raises:
            InputError: ``x`` has another number of axes or channels.
        """
        if x.ndim not in (4, 5) or x.shape[-3] != self.in_chans or 0 in x.shape:
            c = self.in_chans
            raise InputError(
                f"input of shape {tuple(x.shape)}: expected images [B, {c}, H, W] or frames [B, T, {c}, H, W]; "
                f"a model with other input channels is made by create_model(…, in_chans=…)"
            )
        steps, num_steps = (x.unsqueeze(0), self.num_steps) if x.ndim == 4 else (x.transpose(0, 1), x.shape[1])
        if self.training and self.grad_method == "rate":
            return Signal(steps.detach(), time_mean(steps)), num_steps
        return steps, num_steps


def neuron_params(
    decay: float, threshold: float, reset: str, detach_reset: bool, surrogate: str | Surrogate
) -> LIFParams:
    """The neuron that a model's keyword arguments describe."""
    if isinstance(surrogate, str):
        surrogate = Surrogate(surrogate)
    return LIFParams(decay, threshold, reset, detach_reset, surrogate)
