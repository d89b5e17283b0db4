"""What touches the modules of a torch model: hooks, views, and the rows of one forward pass.

In come a model and the paths of its modules. Out go the rows of whole passes, to a store or a recorder.
"""
