"""What the scripts share: options from a YAML file, and errors on one line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from snnzoo.errors import InputError


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse options; ``-c FILE`` gives other defaults, by option name, and the command line wins.

    Raises:
        InputError: the file cannot be read, names an option that does not exist, or gives one a bad value.
    """
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of options; the command line overrides it")
    path = parser.parse_known_args(argv)[0].config
    if path:
        try:
            config = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"config {path!r} cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise InputError(f"config {path!r} must hold 'option: value' lines, it holds a {type(config).__name__}")
        actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
        config = {key.replace("-", "_"): value for key, value in config.items()}
        for key, value in config.items():
            if key not in actions:
                raise InputError(f"config {path!r}: there is no option {key!r}; --help lists the options")
            if actions[key].choices and value not in actions[key].choices:
                raise InputError(f"config {path!r}: {key} must be one of {list(actions[key].choices)}, got {value!r}")
        parser.set_defaults(**config)
    return parser.parse_args(argv)


def run(main: Callable[[], None], name: str) -> None:
    """Run a script's main; an :class:`InputError` becomes one line and exit status 2, Ctrl-C status 130."""
    try:
        main()
    except InputError as error:
        sys.exit(_complain(name, f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_complain(name, "interrupted", 130))


def _complain(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return status
