"""The ``snnzoo`` command."""


def main() -> None:
    """Entry point."""
