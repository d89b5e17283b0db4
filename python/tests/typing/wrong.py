"""Mistakes that a type checker must find: one on each line that says so, and no others. Not run."""

import torch

from activation_store import RingStore, activations, capture

model = torch.nn.Linear(4, 4)
batches = [torch.zeros(8, 4)]
store = RingStore(16)

for batch in store:
    batch.backwrad()  # mistake
for batch in activations(model, batches, "0"):
    batch.backwrad()  # mistake
for both in activations(model, batches, ["0", "1"]):
    both.sum()  # mistake
for one in activations(model, batches, ["0"]):
    one.sum()  # mistake
for stacked in RingStore({"a": 4, "b": 4}, stacked=True):
    stacked["a"]  # mistake
declared: RingStore[dict[str, torch.Tensor]] = RingStore({"a": 4, "b": 4})
next(declared).backward()  # mistake
RingStore(16, batchsize=4)  # mistake
RingStore(16, when_full="block")  # mistake
RingStore([4, 4])  # mistake
activations(model, batches, "0", windows=3)  # mistake
capture(model, ["0"], store)  # mistake
capture(model, {0: "a"}, store)  # mistake
capture(model, {"0": 0}, store, point="inputs")  # mistake
store.extend_pass([torch.zeros(2, 16)])  # mistake
store.batch_size = 3  # mistake
