"""Ending between two steps when a scheduler or a person asks for it."""

import signal
import threading

from snnzoo.processes import Processes


class Stopped(BaseException):
    """The run was asked to end.

    Attributes:
        signum: by which signal.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interruption:
    """SIGTERM and Ctrl-C, noted when they come and acted on where :meth:`check` is called.

    A second signal ends the program at once. A signal that the program was told to ignore stays ignored.

    Args:
        processes: of the run; if one is told to end, all do, at the same step.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self._signum = 0
        self._before = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame) -> None:
        if self._signum:
            raise KeyboardInterrupt
        self._signum = signum

    def check(self) -> None:
        """Raise :class:`Stopped` in every process if any was told to end."""
        signum = self._processes.maximum(self._signum)
        if signum:
            raise Stopped(signum)


def ignore_signals() -> None:
    """For data loading workers: who started them decides when they end, whatever the terminal sends to all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
