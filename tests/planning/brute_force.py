"""Planning without wits: simulate every cluster there could be, and look."""

from collections.abc import Iterator
from itertools import product

from splitwise.planning.question import Objective, Offer, Question
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import MachineGroup, simulate
from splitwise.simulation.slowdown import check_slos, experience
from splitwise.workload import open_source

Cluster = tuple[tuple[Pool, Offer, int], ...]


def every_cluster(question: Question) -> Iterator[Cluster]:
    """All that stock and limits allow."""
    for offer in question.offers:
        for count in range(1, offer.stock + 1):
            yield from _if_allowed(question, ((Pool.MIXED, offer, count),))
    for one, other in product(question.offers, repeat=2):
        for prompts, tokens in product(range(1, one.stock + 1), range(1, other.stock + 1)):
            if one is not other or prompts + tokens <= one.stock:
                cluster = (Pool.PROMPT, one, prompts), (Pool.TOKEN, other, tokens)
                yield from _if_allowed(question, cluster)


def _if_allowed(question: Question, cluster: Cluster) -> Iterator[Cluster]:
    limits = question.limits
    if (
        dollars_of(cluster) <= limits.dollars_per_hour
        and watts_of(cluster) <= limits.watts
        and machines_of(cluster) <= limits.machines
    ):
        yield cluster


def dollars_of(cluster: Cluster) -> float:
    return sum(count * offer.times.dollars_per_hour for _, offer, count in cluster)


def watts_of(cluster: Cluster) -> float:
    return sum(count * offer.times.provisioned_watts for _, offer, count in cluster)


def machines_of(cluster: Cluster) -> int:
    return sum(count for _, _, count in cluster)


def run(question: Question, cluster: Cluster, rate_per_s: float, seed: int) -> tuple[bool, float]:
    """Whether the SLOs hold, and joules a token."""
    demand = question.demand
    load = open_source(demand.source, rate_per_s, demand.duration_s, seed, demand.arrivals)
    groups = [MachineGroup(offer.name, offer.times, pool, count) for pool, offer, count in cluster]
    result = simulate(load, groups, question.options)
    late = load.arrival_s >= (demand.duration_s or 0.0) * demand.warm_up_share
    checks = check_slos(experience(result, question.reference).of(late), question.slos)
    joules = result.energy_joules.sum() / result.tokens_out.sum()
    return all(check.is_met for check in checks), float(joules)


def carries(question: Question, cluster: Cluster, rate_per_s: float) -> bool:
    return all(run(question, cluster, rate_per_s, seed)[0] for seed in question.seeds)


def joules_of(question: Question, cluster: Cluster, rate_per_s: float) -> float:
    seeds = question.seeds
    return sum(run(question, cluster, rate_per_s, seed)[1] for seed in seeds) / len(seeds)


def highest_rate(question: Question, cluster: Cluster) -> float:
    """The last rate of the grid before the first that is not carried."""
    steps = 0
    while carries(question, cluster, (steps + 1) * question.resolution_per_s):
        steps += 1
    return steps * question.resolution_per_s


def least(question: Question) -> float:
    """The least of the objective's figure that any cluster has at the question's rate."""
    rate = question.rate_per_s or 0.0
    carrying = [one for one in every_cluster(question) if carries(question, one, rate)]
    match question.objective:
        case Objective.COST:
            return min(map(dollars_of, carrying))
        case Objective.POWER:
            return min(map(watts_of, carrying))
        case Objective.MACHINES:
            return float(min(map(machines_of, carrying)))
        case _:
            return min(joules_of(question, one, rate) for one in carrying)
