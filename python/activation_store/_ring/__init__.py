"""The sides of a ring that live in Python: loops of threads and tasks, the errors that they raise, and what a wait lacks.

In come native consumers and the minibatches that they give. Out go iterators for `RingStore`, `Recording` and a `DataLoader`.
"""
