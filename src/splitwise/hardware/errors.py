"""What is wrong with a description of hardware."""


class HardwareError(ValueError):
    """A profile, a model or a GPU that cannot be used; says which field, and what to do."""
