"""Checkpoints to the Hub and from it. Nothing is ever pickled."""

import logging
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from snnzoo.errors import InputError
from snnzoo.files import copy
from snnzoo.hub.cards import RECIPE, RESULTS
from snnzoo.hub.packing import CARD, FILES, LICENSE, copy_packed, pack, validate
from snnzoo.models._pretrained import CONFIG, HUB_CONFIGS, SHIPPED, hub_errors, on_hub, organisation
from snnzoo.version import __version__

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushed:
    """What :func:`push` did.

    Attributes:
        files: sizes in bytes by name.
        url: of the commit; None for a dry run.
    """

    files: Mapping[str, int]
    url: str | None


def push(
    source: nn.Module | str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    message: str = "Add model",
    **details: Any,
) -> Pushed:
    """Put a checkpoint into a Hub repository, in one commit and as safetensors alone.

    It is packed, loaded back and compared before anything is sent.

    Args:
        source: a model, or a folder from :func:`pack`.
        repo: ``owner/name``, made if it does not exist. With a name ``<model>.<tag>`` and the owner in
            ``SNNZOO_HUB_ORG``, ``create_model('<model>.<tag>', pretrained=True)`` finds it.
        private: make it private; one that exists must be.
        revision: branch, made if it does not exist; main by default.
        token: of the Hub; by default from HF_TOKEN or ``hf auth login``.
        dry_run: do everything but talk to the Hub.
        message: of the commit.
        **details: of a model, as for :func:`pack`; a folder is pushed as it is, its card for this repository if it is
            one of ours.

    Raises:
        InputError: the checkpoint does not come back as it was, or the Hub refuses it or cannot be reached.
    """
    name = _name_in(repo)
    to = f"{repo}@{revision}" if revision else repo
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        model = source if isinstance(source, nn.Module) else None
        if model is not None:
            pack(folder, model, repo=to, **details)
        elif details:
            raise InputError(f"{', '.join(details)}: a folder is pushed as it is, pack({str(source)!r}, …) changes it")
        else:
            copy_packed(Path(source), folder, to)
        validate(folder, model)
        files = {file: (folder / file).stat().st_size for file in FILES if (folder / file).is_file()}
        url = None if dry_run else _commit(folder, files, repo, private, revision, token, message)
    return Pushed(files, url)


def _name_in(repo: str) -> str:
    try:
        validate_repo_id(repo)
        _, name = repo.split("/")
    except ValueError as error:  # the client's own are ValueErrors
        raise InputError(
            f"{repo!r} is not a Hub repository: to push to it must be OWNER/NAME, and a branch is the revision"
        ) from error
    return name


def _commit(
    folder: Path, files: Iterable[str], repo: str, private: bool, revision: str | None, token: str | None, message: str
) -> str:
    # A token read from a file ends in a newline, which the client would refuse with the token in its message.
    api = HfApi(token=(token or "").strip() or None, library_name="snnzoo", library_version=__version__)
    with hub_errors(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and api.repo_info(repo).private is False:
            raise InputError(f"the Hub's {repo!r} exists and is public: make it private on its page, or leave that out")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        for attempt in range(6):
            try:
                parent = api.repo_info(repo, revision=revision).sha
                there = api.list_repo_files(repo, revision=parent)
                # What came with other weights does not belong to these.
                operations = [CommitOperationDelete(file) for file in FILES if file in there and file not in files]
                operations += [CommitOperationAdd(file, folder / file) for file in files]
                commit = api.create_commit(
                    repo, operations, commit_message=message, revision=revision, parent_commit=parent
                )
                return commit.commit_url
            except HfHubHTTPError as error:
                # somebody else's commit came in between
                if error.response.status_code not in (409, 412) or attempt == 5:
                    raise
                time.sleep(random.uniform(0.1, 0.5) * 2**attempt)
    raise AssertionError


def pull(repo: str, revision: str | None = None, folder: str | Path | None = None) -> Path:
    """Fetch a checkpoint from the Hub: config, weights (safetensors alone, verified), card, recipe, results, licence.

    Args:
        repo: ``owner/name``, or ``<model>.<tag>`` of our organisation.
        revision: branch, tag or commit.
        folder: to copy it to; by default it stays in the Hub's cache.

    Returns:
        The folder; ``timm.create_model('local-dir:<folder>', pretrained=True)`` makes the model.

    Raises:
        InputError: there is no such checkpoint, it may not be read, or it is damaged.
    """
    repo = repo.removeprefix("hf-hub:")
    if revision and "@" in repo:
        raise InputError(f"{repo!r} names a revision, and so does revision={revision!r}: name one")
    repo = repo if "/" in repo else f"{organisation()}/{repo}"
    name, _, named_revision = repo.partition("@")
    revision = revision or named_revision or None
    here = on_hub(f"{name}@{revision}" if revision else name).file.parent
    at_commit = dict(repo_id=name, revision=here.name)
    try:
        with hub_errors(repo):
            newest = HfApi().repo_info(name, revision=revision).sha
    except InputError as error:  # its client then takes what it has without a word
        _logger.warning("%s is as the cache has it, commit %.8s: %s", repo, here.name, error)
    else:
        if newest != here.name:
            _logger.warning("%s is as the cache has it, commit %.8s: the newest is %.8s", repo, here.name, newest)
    # Of a commit the cache knows for good what it has and has not.
    beside = (CARD, RECIPE, RESULTS, LICENSE)
    unknown = [file for file in beside if try_to_load_from_cache(filename=file, **at_commit) is None]
    for i, file in enumerate(unknown):
        with hub_errors(repo):
            try:
                hf_hub_download(filename=file, **at_commit)
            except LocalEntryNotFoundError:
                _logger.warning("%s of %s: not asked for, the Hub cannot be reached", ", ".join(unknown[i:]), repo)
                break
            except EntryNotFoundError:
                _logger.debug("%s has no %s", repo, file)
    if folder is None:
        return here
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file: name a folder to copy to")
    there = [file for file in FILES if (folder / file).is_file()]
    if there and CONFIG not in there:
        raise InputError(f"folder {str(folder)!r} has a {there[0]} and is no checkpoint's: name another folder")
    fetched = [file for file in FILES if (here / file).is_file()]
    strange = [file for file in there if file not in fetched]
    if strange:
        raise InputError(
            f"folder {str(folder)!r} has {', '.join(strange)}, which {repo} has not: name another folder, lest they mix"
        )
    for file in fetched:
        copy(here / file, folder / file)
    return folder


@dataclass(frozen=True)
class Listed:
    """A model of the zoo.

    Attributes:
        name: with its tag.
        weights: where its pretrained weights are, ``''`` if there are none.
    """

    name: str
    weights: str


def list_models(pattern: str = "*", pretrained: bool = False) -> list[Listed]:
    """The zoo's models with their tags.

    Args:
        pattern: of names, with ``*``.
        pretrained: only those with weights, for which the Hub is asked what our organisation has published; where it
            cannot be reached, a warning says so.
    """
    wanted = set(timm.list_models(pattern, include_tags=True))
    published = set()
    if pretrained:
        try:
            with hub_errors(organisation()):
                published = {model.id for model in HfApi().list_models(author=organisation())}
        except InputError as error:
            _logger.warning("what the Hub has is not listed: %s", error)
    listed = []
    for name in timm.list_models(["snn_*", "cifar_*"], include_tags=True):
        weights = ""
        if name in SHIPPED:
            weights = f"in the package, {HUB_CONFIGS.name}/{name}"
        elif (cfg := timm.get_pretrained_cfg(name)).hf_hub_id:
            weights = f"initialisation, {cfg.hf_hub_id}"
        elif f"{organisation()}/{name}" in published:
            weights = f"on the Hub, {organisation()}/{name}"
        if name in wanted and (weights or not pretrained):
            listed.append(Listed(name, weights))
    return listed
