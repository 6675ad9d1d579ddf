"""What makes a question unanswerable."""


class PlanningError(ValueError):
    """A question that cannot be asked; names the field, the value and what to do."""


class Infeasible(PlanningError):
    """No cluster fulfils the question; says what binds, and by how much it would have to give."""
