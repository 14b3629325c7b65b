"""What the scripts share: options from a YAML file, and errors on one line."""

import argparse
import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from snnzoo.errors import InputError


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse options; ``-c FILE`` gives other defaults, by option name, and the command line wins.

    Raises:
        InputError: the file cannot be read, names an option that does not exist, or gives one a bad value.
    """
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of options; the command line overrides it")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("-c", "--config")
    path = first.parse_known_args(argv)[0].config
    if path:
        try:
            config = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"config {path!r} cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise InputError(f"config {path!r} must hold 'option: value' lines, it holds a {type(config).__name__}")
        parser.set_defaults(**_checked(config, parser, path))
    return parser.parse_args(argv)


def _checked(config: dict, parser: argparse.ArgumentParser, path: str) -> dict:
    """The values of a config as the command line would have made them; what it gives is no longer required."""
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    checked = {}
    for key, value in config.items():
        action = actions.get(str(key).replace("-", "_"))
        if action is None:
            raise InputError(f"config {path!r}: there is no option {key!r}; --help lists the options")
        if value is None or action.dest == "config":  # as in the args.yaml that a run leaves
            continue
        try:
            value = _converted(action, value)
        except (TypeError, ValueError) as error:
            raise InputError(f"config {path!r}: {key} must be {error}, got {value!r}") from error
        if action.choices and value not in action.choices:
            raise InputError(f"config {path!r}: {key} must be one of {list(action.choices)}, got {value!r}")
        checked[action.dest] = value
        action.required = False
    return checked


def _converted(action: argparse.Action, value):
    """A YAML value as the option's own type; the error says what it must be."""
    convert = action.type or str
    if action.nargs == 0:
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(action.default, dict):
        expected, fits = "a mapping", isinstance(value, dict)
    elif action.nargs not in (None, "?"):
        expected, fits = f"a list of {convert.__name__}", isinstance(value, list)
    else:
        expected, fits = f"one {convert.__name__}", not isinstance(value, (bool, list, dict))
    if not fits:
        raise ValueError(expected)
    if isinstance(value, (bool, dict)):
        return value
    try:
        return [convert(str(item)) for item in value] if isinstance(value, list) else convert(str(value))
    except ValueError as error:
        raise ValueError(expected) from error


def in_chans(args: argparse.Namespace) -> int | None:
    """``--in-chans``, or as many as ``--input-size`` has; None for the model's own."""
    return args.in_chans if args.in_chans is not None else args.input_size and args.input_size[0]


def model_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--model-kwargs`` adds to the options that have a name of their own.

    Raises:
        InputError: it repeats one of them.
    """
    for key in args.model_kwargs:
        option = {"drop_rate": "drop"}.get(key, key)
        if hasattr(args, option):
            raise InputError(f"--model-kwargs {key}=…: use --{option.replace('_', '-')}")
    return args.model_kwargs


@contextlib.contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Whatever a library raises in the block is a bad value of ``what``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = str(error).strip().replace("\n", " ")[:500]
        raise InputError(f"{what} does not fit: {message or type(error).__name__}") from error


def open_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: there is none.
    """
    with as_input_error(f"--device {name}"):
        device = torch.device(name)
        torch.empty(1, device=device)
    return device


_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),  # of a path that cannot be
)


def run(main: Callable[[], None], name: str) -> None:
    """Run a script's main; an :class:`InputError` becomes one line and exit status 2, Ctrl-C status 130.

    A disk that is full or not to be written to, or a path that cannot be, is an input error too.
    """
    try:
        main()
    except InputError as error:
        # one from a data loading worker carries the worker's traceback before it
        sys.exit(_complain(name, f"error: {str(error).rpartition('InputError: ')[2].strip()}", 2))
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        sys.exit(_complain(name, f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_complain(name, "interrupted", 130))


def _complain(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return status
