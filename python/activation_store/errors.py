"""The errors that Python has no kind of its own for."""


class StoreFullError(IndexError):
    """The store has no room for the rows, and took none of them."""

    def __init__(self, message: str = "Activation store is full") -> None:
        super().__init__(message)


class StoreClosedError(ValueError):
    """The store, or this lane of it, takes no more rows."""


class ClosedWithError(Exception):
    """The store was closed with an error. The package raises that error in its place."""
