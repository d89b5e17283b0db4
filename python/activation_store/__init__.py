"""A store between a transformer's hooks and SAE training: capture and train at the same time.

`activations` runs a torch model on a thread of its own and gives what its modules put out, as shuffled minibatches, in one loop.

`RingStore` is extended by hooks and drained, as shuffled minibatches, by a training loop, at once. `TensorActivationStore`
is filled, shuffled and indexed. Both are an `ActivationStore`, with the interface of the `sparse_autoencoder` library's.
`capture` hooks a torch model that you run yourself up to either.

`record` writes what a model's modules put out to disk, and a `Recording` gives it out again, as often as you like.
`read_cache` reads what other programs wrote.
"""

from ._native import ComponentStats, Dropped, Stats, __version__
from .activations import Activations, activations
from .base_store import ActivationStore
from .caches import Cache, read_cache
from .capture import Capture, capture
from .equally import Equally, equally
from .errors import StoreClosedError, StoreFullError
from .future import Future, Written
from .producer import Producer
from .record import record
from .recorder import Recorder, Safe, Tee
from .recording import Recording
from .ring_store import RingStore
from .snapshots import ResumeAt, Snapshots
from .tensor_store import TensorActivationStore

__all__ = [
    "ActivationStore",
    "Activations",
    "Cache",
    "Capture",
    "ComponentStats",
    "Dropped",
    "Equally",
    "Future",
    "Producer",
    "Recorder",
    "Recording",
    "ResumeAt",
    "RingStore",
    "Safe",
    "Snapshots",
    "Stats",
    "StoreClosedError",
    "StoreFullError",
    "Tee",
    "TensorActivationStore",
    "Written",
    "__version__",
    "activations",
    "capture",
    "equally",
    "read_cache",
    "record",
]
