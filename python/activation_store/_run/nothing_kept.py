"""What is wrong with a run that keeps no row."""

from __future__ import annotations


def nothing_kept(ran: int, mask: object, what: str = "batch") -> ValueError:
    """The error of a model that ran so many batches, of which nothing is kept."""
    ran_so_many = f"the model ran {ran} {what}{'' if ran == 1 else 'es'}, and no row was kept"
    if mask is None:
        return ValueError(f"{ran_so_many}: the activations had none")
    name = f"mask={mask!r}" if isinstance(mask, str) else "the mask"
    return ValueError(f"{ran_so_many}: {name} is False (or 0) everywhere, and True (or 1) keeps a row; if it marks the rows to leave out, invert it")
