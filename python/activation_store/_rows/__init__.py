"""Rows on their way in and out: arrays become rows of a component, and minibatches become arrays.

In comes what a user hands over: numpy arrays and torch tensors, masks, dtypes, indices. Out go rows for the native side, and tensors or arrays
over its memory. What all other folders need, too, is here: torch where it is installed, checks of numbers, warnings.
"""
