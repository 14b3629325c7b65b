"""Checkpoints in the form of a Hub repository: packed into a folder, pushed, pulled."""

from snnzoo.hub.packing import model_args, pack, validate
from snnzoo.hub.run import Run, load
from snnzoo.hub.transfer import Listed, Pushed, list_models, pull, push

__all__ = ["Listed", "Pushed", "Run", "list_models", "load", "model_args", "pack", "pull", "push", "validate"]
