"""Machine kinds: how long an iteration takes, how many watts it draws, what an hour costs.

``load_profile`` gives the ``IterationTimes`` of a machine kind with a model.
"""

from splitwise.hardware.errors import HardwareError
from splitwise.hardware.iteration_times import IterationTimes
from splitwise.hardware.loading import load_profile

__all__ = ["HardwareError", "IterationTimes", "load_profile"]
