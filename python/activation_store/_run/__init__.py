"""A run of a model over batches, for `activations` and `record`.

In come models, or functions, and batches. Out go passes, on the lanes of a ring or a recorder, and the minibatches of the run.
"""
