"""Splitwise: the prompt phase and the token phase of a language model on different machines."""

__version__ = "0.1.0"
