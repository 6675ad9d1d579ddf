"""A counter with a series a machine, told what each machine itself has counted so far."""

from prometheus_client import Counter


class RunningTotals:
    """Adds what is new in each machine's total, which begins anew at 0 where its process does."""

    def __init__(self, family: Counter, model_name: str) -> None:
        """``family`` has the labels ``model_name`` and ``machine``."""
        self._family = family
        self._model_name = model_name
        self._told: dict[str, int] = {}

    def tell(self, machine: str, total: int) -> None:
        before = self._told.get(machine)
        if total == before:
            return
        self._told[machine] = total
        new = total if before is None or total < before else total - before
        self._family.labels(self._model_name, machine).inc(new)

    def gone(self, machine: str) -> None:
        """The machine left: its series ends."""
        if self._told.pop(machine, None) is not None:
            self._family.remove(self._model_name, machine)
