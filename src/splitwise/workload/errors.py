"""What goes wrong with a workload."""


class WorkloadError(ValueError):
    """A workload that cannot be read, built or written; says what, where and what to do."""
