"""This module is called `activation_store.capture` now. It keeps the former name for one release."""

import warnings

from .capture import Capture, Hooks, capture

__all__ = ["Capture", "Hooks", "capture"]

warnings.warn("activation_store.hooks is now activation_store.capture, and goes with the next release: import from there, or from activation_store",
              DeprecationWarning, stacklevel=2)  # fmt: skip
