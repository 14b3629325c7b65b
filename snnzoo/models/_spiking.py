"""What every spiking family shares: the neuron, the number of steps, the kind of gradient, the input's coding."""

from collections.abc import Mapping
from functools import partial
from numbers import Integral
from typing import Any

import torch.fx
from timm.layers import SelectAdaptivePool2d, register_notrace_module
from timm.models._input import update_model_args  # what timm's own models record their arguments with
from torch import Tensor, nn

from snnzoo import layers
from snnzoo.errors import InputError
from snnzoo.layers import LIF, Signal, TimeSeries, hold, settle, spatial, to_rate
from snnzoo.models._base import Layers, check_choice
from snnzoo.neurons import LIFParams, Surrogate
from snnzoo.rate import checked_readout_decay, time_mean

GRAD_METHODS = ("rate", "bptt")

# torch.fx is to see the layers and functions that know about time as wholes.
for _layer in (layers.Conv2d, layers.BatchNorm2d, layers.MaxPool2d, layers.Linear, layers.DropPath, LIF):
    register_notrace_module(_layer)
for _function in ("encode", "hold", "pool_steps", "settle", "to_rate"):
    torch.fx.wrap(_function)


def encode(x: Tensor, in_chans: int, num_steps: int, as_signal: bool) -> tuple[TimeSeries, int]:
    """Direct coding: the image itself is the input current of every step.

    Args:
        x: ``[B, C, H, W]``, the same image at every step, or ``[B, T, C, H, W]``, a frame for each step.
        in_chans: C.
        num_steps: T for images.
        as_signal: for rate-based backpropagation.

    Returns:
        The time series that the layers pass on, time-major (one step long for a static image, so that what comes
        before the first neuron is computed once), and T.

    Raises:
        InputError: ``x`` has another number of axes or channels, or is empty.
    """
    if 0 in x.shape:
        raise InputError(f"input of shape {tuple(x.shape)}: no axis may be empty, give at least one image and one step")
    if x.ndim not in (4, 5) or x.shape[-3] != in_chans:
        raise InputError(
            f"input of shape {tuple(x.shape)}: expected images [B, {in_chans}, H, W] or frames "
            f"[B, T, {in_chans}, H, W]; a model with other input channels is made by create_model(…, in_chans=…)"
        )
    steps, num_steps = (x.unsqueeze(0), num_steps) if x.ndim == 4 else (x.transpose(0, 1), x.shape[1])
    if as_signal:
        return Signal(steps.detach(), time_mean(steps)), num_steps
    return steps, num_steps


def pool_steps(x: TimeSeries, pool_type: str) -> TimeSeries:
    """Global pooling at every step: ``[T, B, C, H, W]`` to ``[T, B, F]``. One that is not linear acts on the rates."""
    return spatial(x, SelectAdaptivePool2d(pool_type=pool_type, flatten=True))


def _version(x: Tensor) -> int:
    """How often ``x`` was changed in place; torch does not count where inference mode made it."""
    return 0 if x.is_inference() else x._version


def _checked_steps(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"num_steps must be a whole number of at least 1, got {value!r}")
    return int(value)  # numpy's have no form in JSON


def _checked_method(value: Any) -> str:
    check_choice("grad_method", value, GRAD_METHODS)
    return value


# What may be changed after a model is made, and is recorded with its arguments.
_CHECKS = {"num_steps": _checked_steps, "grad_method": _checked_method, "readout_decay": checked_readout_decay}


class SpikingModel(nn.Module):
    """Base of the spiking families; sits before :class:`~snnzoo.models._base.StagedNet` in the class's bases.

    Feature maps are firing rates, means over time (of currents, where a family's stages pass on currents); so the
    logits, linear in them, are averages over time. (In rate-based training what is not linear over time, a max pooling
    or a product of spikes, is computed on the rates.) With a ``readout_decay`` below 1 the mean that the classifier
    reads (without a hidden head the last feature map) is weighted: the logits are the state of a leaky integrator after
    the last step, ``sum_t d^(T - t) y[t] / sum_t d^(T - t)``, of use where T is small and the first steps know little.
    (Rate-based training computes it of the steps as they came and gives it the gradient of the plain mean.)

    Args:
        num_steps: T, the number of time steps a static image is shown for; may be changed later.
        grad_method: ``'rate'`` (rate-based backpropagation) or ``'bptt'`` (surrogate gradients through time); used in
            training mode, may be changed later. In evaluation mode gradients, if asked for, go through time.
        readout_decay: d, what is left of the read-out's state after one step, in (0, 1]; 1 is the plain mean. May be
            changed later.
        decay, threshold, reset, detach_reset, surrogate: the neuron, see :class:`~snnzoo.neurons.LIFParams`; the
            surrogate by name, as a :class:`~snnzoo.neurons.Surrogate` or as a mapping of its fields.
        **kwargs: as for :class:`~snnzoo.models._base.StagedNet`.

    Raises:
        InputError: a value outside its range.
    """

    def __init__(
        self,
        *args,
        num_steps: int = 4,
        decay: float = 0.2,
        threshold: float = 1.0,
        reset: str = "soft",
        detach_reset: bool = True,
        surrogate: str | Mapping[str, Any] | Surrogate = "sigmoid",
        grad_method: str = "rate",
        readout_decay: float = 1.0,
        **kwargs,
    ):
        if isinstance(surrogate, str):
            surrogate = Surrogate(surrogate)
        elif isinstance(surrogate, Mapping):  # as it stands in a config.json
            surrogate = Surrogate(**surrogate)
        neuron = LIFParams(decay, threshold, reset, detach_reset, surrogate)
        time_layers = Layers(
            conv=layers.Conv2d,
            norm=layers.BatchNorm2d,
            act=partial(LIF, neuron),
            max_pool=layers.MaxPool2d,
            linear=layers.Linear,
            drop_path=layers.DropPath,
        )
        super().__init__(*args, layers=time_layers, **kwargs)
        self.num_steps = num_steps
        self.grad_method = grad_method
        self.readout_decay = readout_decay

    def __setattr__(self, name, value):
        if name in _CHECKS:
            value = _CHECKS[name](value)
        super().__setattr__(name, value)
        if name in _CHECKS and hasattr(self, "_model_args"):  # not before timm has made it
            update_model_args(self, **{name: value})

    def _make_head(self, num_classes: int, pool_type: str, dd: dict) -> None:
        before = self.head_fc
        super()._make_head(num_classes, pool_type, dd)
        if self.has_hidden_head and self.head_fc is not before:
            # No batch norm brings its neurons near their threshold, and pooled rates are small: begun with a bias near
            # zero they would all be silent, and with them every gradient of the network.
            nn.init.constant_(self.head_fc.bias, self.head_act.params.threshold)

    @property
    def _uses_rates(self) -> bool:
        return self.training and self.grad_method == "rate"

    def _rate(self, x: TimeSeries, decay: float = 1.0) -> Tensor:
        # The copies that DataParallel makes have no parameters, only attributes of those names.
        parameter = next(self.parameters(), None)
        return to_rate(x, self.conv1.weight.dtype if parameter is None else parameter.dtype, decay)

    def _check_norms(self) -> None:
        """Refuse norms that others have put in: they would take time for the batch, and the batch for channels."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, layers.BatchNorm2d):
                name = next(name for name, other in self.named_modules() if other is module)
                raise InputError(
                    f"{name} is a {type(module).__name__}, which does not know time: processes share statistics by "
                    f"snnzoo.sync.synchronise(model) (--sync-bn), norms are frozen by their eval() and "
                    f"requires_grad_(False) and thawed by the opposite"
                )

    def forward_stem(self, x: Tensor) -> TimeSeries:
        self._check_norms()
        x, num_steps = encode(x, self.in_chans, self.num_steps, self._uses_rates)
        x = hold(self.bn1(self.conv1(x)), num_steps)
        return settle(self.act1(x))

    def to_feature(self, x: TimeSeries) -> Tensor:
        feature = self._rate(x)
        if self.has_hidden_head:
            # The hidden layer's neurons need to know when the spikes came, which a rate does not say. So the map
            # takes them along; a view does, lest the series and its own rate keep each other alive.
            feature = feature.view_as(feature)
            feature.time_series = x, _version(feature)
        return feature

    def to_last_feature(self, x: TimeSeries) -> Tensor:
        """What the classifier reads, up to pooling; of a hidden head, whose neurons are read out, a rate."""
        return self.to_feature(x) if self.has_hidden_head else self._rate(x, self.readout_decay)

    def from_feature(self, x: Tensor) -> TimeSeries:
        """A feature map as a time series: the one it was made from, if it has it along unchanged, or a constant one."""
        steps = x.unsqueeze(0)
        if not self.has_hidden_head:
            return steps
        series, version = getattr(x, "time_series", (None, None))
        if series is None or version != _version(x):
            series = hold(Signal(steps.detach(), x) if self._uses_rates else steps, self.num_steps)
        return series

    def forward_pool(self, x: TimeSeries) -> Tensor:
        if not self.has_hidden_head:
            return self.global_pool(self._rate(x, self.readout_decay))
        x = self.head_act(self.head_fc(pool_steps(x, self.global_pool.pool_type)))
        return self._rate(x, self.readout_decay)
