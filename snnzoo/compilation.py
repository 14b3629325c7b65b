"""What ``torch.compile`` has to be told so that what it makes is right."""

from typing import Any

import torch


def compile_options(backend: str, mode: str | None, device_type: str, dtype: torch.dtype) -> dict[str, Any]:
    """``mode`` or ``options`` for ``torch.compile``, to train in ``dtype``.

    At -O3, g++ before 14 deletes stores of the 512-bit transposes that inductor writes for 16-bit numbers, and
    gradients are made of uninitialised memory, some of it NaN. Vectors of 256 bits need no such transposes.

    Raises:
        RuntimeError: no such mode.
    """
    wide = device_type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if backend != "inductor" or not wide or dtype not in (torch.bfloat16, torch.float16):
        return {"mode": mode}
    from torch import _inductor

    return {"options": {**_inductor.list_mode_options(mode or "default"), "cpp.simdlen": 256}}
