"""Guides in plain Pyro, each for the model of the same file name in `ingle.models`."""
