"""Uses that a type checker must accept. Not run."""

from collections.abc import Iterator, Mapping
from typing import Any, assert_type

import numpy as np
import torch

from activation_store import Activations, RingStore, TensorActivationStore, activations, capture

model = torch.nn.Linear(4, 4)
batches = [torch.zeros(8, 4)]
array = np.zeros((8, 4), np.float32)

# One component: tensors.
one = RingStore(16)
assert_type(one, RingStore[torch.Tensor])
for batch in one:
    assert_type(batch, torch.Tensor)
    print(batch.sum().item())
assert_type(next(one), torch.Tensor)
assert_type(one.next(timeout=1), torch.Tensor)

settings = RingStore(16, batch_size=64, window=1024, dtype=torch.bfloat16, seed=3, when_full="reject", max_skew=None)
assert_type(settings, RingStore[torch.Tensor])
assert_type(RingStore({"a": 4, "b": 4}, stacked=True), RingStore[torch.Tensor])
assert_type(next(RingStore(16, output="numpy")), np.ndarray[Any, Any])

# Several: a dict, which you may declare.
several = RingStore({"a": 4, "token": (1, "i64")}, batch_size=8)
assert_type(several, RingStore[Any])
declared: RingStore[dict[str, torch.Tensor]] = RingStore({"a": 4, "b": 4})
for rows in declared:
    assert_type(rows, dict[str, torch.Tensor])
    assert_type(rows["a"].sum(), torch.Tensor)


# Trainers of other libraries.
def train(data: Iterator[torch.Tensor]) -> None: ...


train(RingStore(16))
train(activations(model, batches, "0"))
torch.utils.data.DataLoader(RingStore(16), batch_size=None)
torch.utils.data.DataLoader(TensorActivationStore(10, 4, 1), batch_size=4)

# activations
assert_type(activations(model, batches, "0"), Activations[torch.Tensor])
assert_type(activations([model, model], batches, "0", merge="round_robin"), Activations[torch.Tensor])
assert_type(activations(model, batches, ("0",)), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, {"0": "a"}), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, ["0", "1"], batch_size=8), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, ("0", "1"), mask="mask"), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, {"0": "a", "1": "b"}, seed=1), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, ["0", "1"], stacked=True), Activations[Any])


def rows_of(batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {"a": batch}


assert_type(activations(rows_of, batches), Activations[Any])
for one_batch in activations(model, batches, "0"):
    assert_type(one_batch, torch.Tensor)
with activations(model, batches, ["0"]) as opened:
    assert_type(opened.next(timeout=1), dict[str, torch.Tensor])

# capture
with capture(model, {"0": 0}, one) as captured:
    assert_type(captured.stopped, bool)
    assert_type(captured.error, Exception | None)
with capture(model, {"0": "a", "1": "token"}, several.producer()):
    pass


async def loop() -> None:
    async for each in RingStore(16):
        assert_type(each, torch.Tensor)
    async for each in activations(model, batches, "0"):
        assert_type(each, torch.Tensor)
    assert_type((await one.extend(array)).rows, int)
