"""What torch is set to while a pass runs in the loop's own thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .._rows.torch import HAS_TORCH, torch


@contextlib.contextmanager
def like_a_new_thread() -> Iterator[None]:
    """Gives a pass what a new thread begins with, under `no_grad`; gives the loop its own settings back.

    Grad mode, inference mode, autocast and the default device belong to a thread. Other settings of torch, such as
    deterministic algorithms and the default dtype, belong to the process, so a pass has them in either case.
    """
    if not HAS_TORCH:
        yield
        return
    had_grad = torch.is_grad_enabled()
    try:
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            for device, dtype in _AUTOCAST:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            stack.enter_context(torch.no_grad())
            yield
    finally:
        # Ctrl-C may have come before `no_grad` could do it.
        if torch.is_grad_enabled() != had_grad:
            torch.set_grad_enabled(had_grad)


_AUTOCAST = [("cpu", torch.bfloat16), ("cuda", torch.float16), ("mps", torch.float16), ("xpu", torch.float16)] if HAS_TORCH else []
"""The kinds of devices, with the dtypes that `torch.autocast` has for them on a new thread."""
