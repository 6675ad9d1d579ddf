"""A plan as JSON holds it: ``msgspec.json.encode(record_of(plan, commands))``."""

from dataclasses import dataclass

from splitwise.planning.confidence import Sureness
from splitwise.planning.design import Design
from splitwise.planning.plan import Breaks, Plan
from splitwise.planning.search import FamilyAnswer, Found
from splitwise.planning.sensitivity import Case


@dataclass(frozen=True)
class GroupRecord:
    """Machines of one kind in one pool."""

    pool: str
    kind: str
    count: int


@dataclass(frozen=True)
class ClusterRecord:
    """A cluster, what it takes, and the rate it carries; ``watts`` are provisioned."""

    name: str
    groups: tuple[GroupRecord, ...]
    queue_threshold_tokens: int | None
    dollars_per_hour: float
    watts: float
    machines: int
    rate_per_s: float
    joules_per_token: float


@dataclass(frozen=True)
class FamilyRecord:
    """The best of a family, and what the search did there."""

    family: str
    best: ClusterRecord | None
    splits: int
    tried: int
    simulated: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class QuestionRecord:
    """What was asked; a limit that was not set is infinite, which JSON shows as null."""

    source: str
    arrivals: str | None
    objective: str
    rate_per_s: float | None
    max_dollars_per_hour: float
    max_watts: float
    max_machines: float
    slos: tuple[str, ...]
    offers: dict[str, int]
    seeds: tuple[int, ...]
    resolution_per_s: float
    policy: str


@dataclass(frozen=True)
class PlanRecord:
    """See ``plan.Plan``."""

    question: QuestionRecord
    best: ClusterRecord
    most: Sureness
    breaks: Breaks
    families: tuple[FamilyRecord, ...]
    front: tuple[ClusterRecord, ...]
    sensitivity: tuple[Case, ...]
    simulate_command: str
    serve_command: str


def record_of(plan: Plan, commands: tuple[str, str]) -> PlanRecord:
    """All of a plan but its arrays of times."""
    return PlanRecord(
        question_record(plan),
        cluster_record(plan.best),
        plan.most,
        plan.breaks,
        tuple(family_record(answer) for answer in plan.answers),
        tuple(cluster_record(found) for found in plan.front),
        plan.sensitivity,
        *commands,
    )


def question_record(plan: Plan) -> QuestionRecord:
    """What was asked."""
    question = plan.question
    return QuestionRecord(
        question.demand.source,
        question.demand.arrivals,
        question.objective.value,
        question.rate_per_s,
        question.limits.dollars_per_hour,
        question.limits.watts,
        question.limits.machines,
        tuple(str(slo) for slo in question.slos),
        {offer.name: offer.stock for offer in question.offers},
        question.seeds,
        question.resolution_per_s,
        question.options.policy.name,
    )


def cluster_record(found: Found) -> ClusterRecord:
    """A cluster and its rate."""
    design = found.design
    return ClusterRecord(
        design.name,
        group_records(design),
        design.queue_threshold_tokens,
        design.dollars_per_hour,
        design.watts,
        design.machines,
        found.rate_per_s,
        found.joules_per_token,
    )


def group_records(design: Design) -> tuple[GroupRecord, ...]:
    """Its machines."""
    parts = zip(design.family.pools, design.family.offers, design.counts, strict=True)
    return tuple(GroupRecord(pool.name.lower(), offer.name, count) for pool, offer, count in parts)


def family_record(answer: FamilyAnswer) -> FamilyRecord:
    """The best, if any, and the effort."""
    best = None if answer.best is None else cluster_record(answer.best)
    return FamilyRecord(
        answer.family.name,
        best,
        answer.splits,
        answer.tried,
        answer.simulated,
        dict(answer.left_out),
    )
