"""The former name of `activation_store.capture`."""

import warnings

from .capture import Capture, Hooks, capture

__all__ = ["Capture", "Hooks", "capture"]

warnings.warn("activation_store.hooks is now activation_store.capture, and goes with the next release: import from there, or from activation_store",
              DeprecationWarning, stacklevel=2)  # fmt: skip
