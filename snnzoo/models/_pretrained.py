"""Where pretrained weights lie: where the caller says, with the package, on the Hub or in its local cache.

timm finds the file of a registered configuration; this finds a model's own folder besides, checks what is in it, and
gives timm the path. From the Hub it takes safetensors alone.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from timm.models import PretrainedCfg, resolve_pretrained_cfg

from snnzoo import hub_configs
from snnzoo.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_CONFIGS = Path(next(iter(hub_configs.__path__)))
SHIPPED = frozenset(path.parent.name for path in HUB_CONFIGS.glob(f"*/{WEIGHTS}"))

# What an overlay can name, besides a Hub repository.
ELSEWHERE = ("file", "url", "state_dict")

_NO_REPOSITORY = "{!r} is not a Hub repository: it must be OWNER/NAME or OWNER/NAME@REVISION"

# Suffixes of what is a pickle, or may hold one.
PICKLES = (".bin", ".pt", ".pth", ".tar", ".pkl", ".pickle", ".ckpt")


def organisation() -> str:
    """Whose Hub repositories ``pretrained=True`` looks for: ``SNNZOO_HUB_ORG``, or ours."""
    return os.environ.get("SNNZOO_HUB_ORG") or "snnzoo"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights and the ``config.json`` beside it, which says how to make the model.

    Attributes:
        where: for messages.
        file: safetensors.
        config: in timm's format; ``sha256`` is the file's, where it is given.
    """

    where: str
    file: Path
    config: Mapping[str, Any]

    def verify(self) -> "Checkpoint":
        """Itself.

        Raises:
            InputError: the file has another sha256 than its config says.
        """
        expected = self.config.get("sha256")
        if expected and sha256(self.file) != expected:
            # In the Hub's cache the name is a link, which the client would set again to the same damaged file.
            file = str(self.file.resolve())
            raise InputError(
                f"weights of {self.where}: {file!r} has the sha256 {sha256(self.file)}, its {CONFIG} says "
                f"{expected}: the file is damaged; delete it and fetch it again"
            )
        return self


def sha256(path: Path) -> str:
    """Of a file's contents, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_folder(folder: Path, where: str | None = None) -> Checkpoint:
    """The checkpoint in a folder of a Hub repository's content.

    Raises:
        InputError: a file is missing, or damaged.
    """
    where = where or repr(str(folder))
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"folder {str(folder)!r} has no {name}: it is not a checkpoint of the Hub's form")
    return Checkpoint(where, folder / WEIGHTS, read_config(folder / CONFIG, where)).verify()


def on_hub(hub_id: str, filename: str | None = None, cache_dir: str | Path | None = None) -> Checkpoint:
    """The checkpoint in a Hub repository, by way of the local cache; from the cache alone when offline.

    Args:
        hub_id: ``owner/name``, or ``owner/name@revision``.
        filename: of the weights; ``model.safetensors`` by default.
        cache_dir: instead of the client's own.

    Raises:
        InputError: there is none, it may not be read, it is not safetensors, or it is damaged.
    """
    filename = filename or WEIGHTS
    if not filename.endswith(".safetensors"):
        raise InputError(f"hf_hub_filename {filename!r}: from the Hub only .safetensors files are loaded")
    commit, config = config_on_hub(hub_id, cache_dir)
    with hub_errors(hub_id):
        # Both files from one commit, whoever pushes in the meantime: the cache has a folder for each.
        file = Path(hf_hub_download(hub_id.partition("@")[0], filename, revision=commit, cache_dir=cache_dir))
    return Checkpoint(f"the Hub's {hub_id!r}", file, config).verify()


def config_on_hub(hub_id: str, cache_dir: str | Path | None = None) -> tuple[str, dict[str, Any]]:
    """The commit that a repository is at, and its ``config.json``; arguments and errors as of :func:`on_hub`."""
    repo, _, revision = hub_id.partition("@")
    if "@" in revision:
        raise InputError(_NO_REPOSITORY.format(hub_id))
    with hub_errors(hub_id):
        path = Path(hf_hub_download(repo, CONFIG, revision=revision or None, cache_dir=cache_dir))
    return path.parent.name, read_config(path, f"the Hub's {hub_id!r}")


def read_config(path: Path, where: str) -> dict[str, Any]:
    """A ``config.json`` in timm's format.

    Raises:
        InputError: it is not one.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {"architecture": config["architecture"], "pretrained_cfg": config, **config}  # or timm's older form
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{CONFIG} of {where} ({str(path.resolve())!r}) is not in timm's format: {type(error).__name__}: {error}"
        ) from error


def resolve(name: str, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find the pretrained weights that an entry point was asked for.

    The first of: what ``pretrained_cfg_overlay`` names; what the configuration names (``hf-hub:…``, ``local-dir:…``,
    weights that ship with the package, a tag's own repository); ``<organisation>/<name>.<tag>`` on the Hub.

    Args:
        name: of the entry point.
        kwargs: its arguments.

    Returns:
        How the weights' ``config.json`` says to make the model (nothing for weights that are not this model's own), and
        the entry point's arguments with a ``pretrained_cfg_overlay`` by which timm finds the file.

    Raises:
        InputError: there are no weights, or they are not to be had or damaged.
    """
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
    if overlay.get("file") and not Path(overlay["file"]).is_file():
        raise InputError(f"pretrained_cfg_overlay: there is no file {str(overlay['file'])!r}")
    if any(overlay.get(key) for key in ELSEWHERE):
        # timm would look at where the configuration came from first
        return {}, {**kwargs, "pretrained_cfg_overlay": {"source": None, **overlay}}
    own = False
    if cfg.source == "local-dir" and not overlay.get("hf_hub_id"):
        found = in_folder(Path(cfg.file))
        own = True
    elif cfg.hf_hub_id:
        found = on_hub(cfg.hf_hub_id, cfg.hf_hub_filename, kwargs.get("cache_dir"))
        own = cfg.source == "hf-hub"
    elif cfg.file or cfg.url or cfg.state_dict:
        return {}, dict(kwargs)
    else:
        found = _own_repository(name, cfg, kwargs.get("cache_dir"))
        own = True
    where = dict(file=str(found.file), source=None, state_dict=None)
    if not own:
        return {}, {**kwargs, "pretrained_cfg_overlay": {**overlay, **where}}
    if found.config["architecture"] != name:
        raise InputError(
            f"the weights of {found.where} are of a {found.config['architecture']!r}, not of a {name!r}: "
            f"create_model({found.config['architecture']!r}, …) makes that"
        )
    described = {
        **found.config["pretrained_cfg"],
        **{
            key: found.config[key]
            for key in ("num_classes", "label_names", "label_descriptions")
            if key in found.config
        },
    }
    return dict(found.config.get("model_args", {})), {
        **kwargs,
        "pretrained_cfg_overlay": {**described, **overlay, **where},
    }


def _own_repository(name: str, cfg: PretrainedCfg, cache_dir: str | Path | None) -> Checkpoint:
    full = f"{name}.{cfg.tag}" if cfg.tag else name
    try:
        return on_hub(f"{organisation()}/{full}", cache_dir=cache_dir)
    except InputError as error:
        raise InputError(
            f"No pretrained weights exist for {full}: none ship with the package, and {error}. Use pretrained=False "
            f"for random weights, give a file of weights as the checkpoint (checkpoint_path=…, or "
            f"pretrained_cfg_overlay=dict(file=…)), or 'hf-hub:OWNER/NAME' as the model's name"
        ) from error


@contextlib.contextmanager
def hub_errors(hub_id: str) -> Iterator[None]:
    """Whatever the Hub's client raises in the block, as an :class:`InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # its HTTP library's errors share no base with its own
        raise as_input_error(error, hub_id) from error


def as_input_error(error: Exception, hub_id: str) -> InputError:
    """What an error of the Hub's client means to the caller."""
    if isinstance(error, GatedRepoError):
        return InputError(f"the Hub's {hub_id!r} is gated: ask for access on its page, and use your token (HF_TOKEN)")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"the Hub has no repository {hub_id!r} that you may use: it does not exist, or it is private and the token "
            f"(HF_TOKEN, or `hf auth login`) is missing or not allowed to"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"the Hub's {hub_id!r} has no such revision")
    if isinstance(error, OfflineModeIsEnabled):
        return InputError(f"{hub_id!r}: the Hub is not asked, HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, LocalEntryNotFoundError):
        return InputError(f"the Hub cannot be reached, and the local cache does not have {hub_id!r} (or all of it)")
    if isinstance(error, EntryNotFoundError):
        return InputError(_missing(hub_id))
    if isinstance(error, HFValidationError):
        return InputError(_NO_REPOSITORY.format(hub_id))
    message = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
    message = re.sub(r"Bearer [^\s'\"]+", "Bearer ***", message)
    return InputError(f"the Hub's {hub_id!r}: {type(error).__name__}: {message}")


def _missing(hub_id: str) -> str:
    repo, _, revision = hub_id.partition("@")
    try:
        files = HfApi().list_repo_files(repo, revision=revision or None)
    except Exception:  # the message does without
        files = []
    missing = [name for name in (CONFIG, WEIGHTS) if name not in files]
    message = f"the Hub's {hub_id!r} has no {' and no '.join(missing) or 'such file'}"
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles and WEIGHTS in missing:
        message += f"; it offers {', '.join(pickles)}, a pickle, which could run code and is refused"
    return message


@contextlib.contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """What loading pretrained weights raises in the block, as an :class:`InputError`."""
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"pretrained weights of {name} cannot be read, the file may be truncated: {error}") from error
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise
        first = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"the pretrained weights are not those of a {name}: {first}") from error
