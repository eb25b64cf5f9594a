"""The version of the core; in a module of its own, so that other modules need not import the package for it."""

__version__ = "0.1.0"
