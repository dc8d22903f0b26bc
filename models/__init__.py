"""Generative programs in plain Pyro, each with a guide of the same file name in `ingle.guides`."""
