"""Checkpoints in the form of a Hub repository: packed into a folder, pushed, pulled."""

from snnzoo.hub.identity import digest, model_args
from snnzoo.hub.packing import pack, validate
from snnzoo.hub.run import Run, load
from snnzoo.hub.transfer import Listed, Pushed, list_models, pull, push

__all__ = ["Listed", "Pushed", "Run", "digest", "list_models", "load", "model_args", "pack", "pull", "push", "validate"]
