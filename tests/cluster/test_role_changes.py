"""Role changes with real, tiny engines and real transfers: who is pulled serves, and goes home."""

import random
from collections.abc import Callable, Iterator
from functools import partial

import machine_rig
import msgspec
import pytest
from machine_rig import VOCABULARY, Rig, run_until, tiny_folder
from scripted_cluster import Counters

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.protocol.generation import GenerationRequest
from splitwise.protocol.messages import Cancel, Expect, Register, RunPrompt, Shutdown, Transferred
from splitwise.scheduling.pool import Pool
from splitwise.worker.machine import MachineLimits
from splitwise.worker.task import TaskState

LIMITS = ClusterLimits(prompt_queue_threshold_tokens=100)


class RigLink:
    """The way to a machine of this process; each message is a copy, as over the wire."""

    def __init__(self, rig: Rig, machine_id: str, pool: Pool, max_decodes: int) -> None:
        engine = rig.engine
        self.register = Register(
            *(machine_id, pool, engine.model, engine.layout, rig.addresses),
            max_decodes,
        )
        self._rig = rig
        self.is_told_to_end = False
        self.is_draining: Callable[[], bool] = lambda: False

    def send(self, message: msgspec.Struct) -> None:
        if isinstance(message, Shutdown):
            states = {task.state for task in self._rig.machine._tasks.values()}
            assert states <= {TaskState.SENDING, TaskState.RELEASING}, "it was not done"
            self.is_told_to_end = True
        if isinstance(message, RunPrompt | Expect):
            assert not self.is_draining(), "it got something new"
        if isinstance(message, RunPrompt | Expect | Cancel):
            self._rig.inbox.put(msgspec.convert(msgspec.to_builtins(message), type(message)))


class RigCluster:
    """A cluster scheduler over rigs."""

    def __init__(
        self,
        folder: ModelFolder,
        pools: str,
        blocks: int,
        limits: ClusterLimits,
        machines: MachineLimits,
    ) -> None:
        self.cluster = ClusterScheduler(limits, Counters())
        self.rigs = [Rig(folder, f"m{i}", blocks, machines) for i in range(len(pools))]
        self._heard = [0] * len(pools)
        self.links = [
            RigLink(rig, f"m{i}", Pool("PTM".index(letter)), machines.max_decodes)
            for i, (letter, rig) in enumerate(zip(pools, self.rigs, strict=True))
        ]
        for link in self.links:
            link.is_draining = partial(self.cluster.pools.is_draining, link.register.machine_id)
            self.cluster.join(link)

    def submit(self, prompt: int, output: int) -> LiveRequest:
        tokens = [(7 * prompt + 3 * output + 5 * i) % (VOCABULARY - 1) + 1 for i in range(prompt)]
        return self.cluster.submit(GenerationRequest("r", tokens, output, SamplingParams(), []))

    def run_until(self, done: Callable[[], bool]) -> None:
        def relayed() -> bool:
            for index, rig in enumerate(self.rigs):
                while self._heard[index] < len(rig.said):
                    self._heard[index] += 1
                    self.cluster.receive(index, rig.said[self._heard[index] - 1])  # type: ignore[arg-type]
            return done()

        run_until(relayed, *self.rigs)

    def finish(self, *requests: LiveRequest) -> list[list[int]]:
        """Serve them to their ends; what they then say."""
        self.run_until(lambda: all(live.is_finished for live in requests))
        self.run_until(lambda: all(rig.is_empty for rig in self.rigs))
        return [live.history for live in requests]

    @property
    def pools(self) -> str:
        return "".join("PTM"[pool] for pool in self.cluster.roster.cluster.pool)

    @property
    def role_changes(self) -> list[int]:
        changes: list[int] = self.cluster.roster.cluster.role_changes.tolist()
        return changes

    def close(self) -> None:
        for rig in self.rigs:
            rig.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


Build = Callable[..., RigCluster]


@pytest.fixture
def build(folder: ModelFolder) -> Iterator[Build]:
    built: list[RigCluster] = []

    def one(
        pools: str,
        blocks: int = 64,
        limits: ClusterLimits = LIMITS,
        machines: MachineLimits = machine_rig.LIMITS,
    ) -> RigCluster:
        built.append(RigCluster(folder, pools, blocks, limits, machines))
        return built[-1]

    yield one
    for cluster in built:
        cluster.close()


def unsplit(build: Build, *sizes: tuple[int, int]) -> list[list[int]]:
    """What one mixed machine makes of requests of these prompt and output lengths."""
    cluster = build("M")
    return cluster.finish(*(cluster.submit(*size) for size in sizes))


def test_a_long_prompt_queue_pulls_a_token_machine_which_serves_and_goes_home(build: Build) -> None:
    c = build("PT")
    first, second = c.submit(60, 5), c.submit(70, 5)
    assert c.pools == "PM"
    assert (first.prompt_machine, first.token_machine) == (0, 1)
    assert (second.prompt_machine, second.token_machine) == (1, 1)
    assert c.finish(first, second) == unsplit(build, (60, 5), (70, 5))
    assert c.pools == "PT" and c.role_changes == [0, 2]


def test_a_token_machine_pulled_while_it_is_busy_pushes_to_another(build: Build) -> None:
    c = build("PTT")
    sizes = [(200, 60), (5, 60), (6, 60)]
    running = [c.submit(*sizes[0])]
    for size in sizes[1:]:
        c.run_until(lambda: running[-1].state is RequestState.TOKEN)
        running.append(c.submit(*size))
    c.run_until(lambda: all(len(c.rigs[i].heard(Transferred)) == i for i in (1, 2)))
    queued, pushed = c.submit(60, 5), c.submit(61, 5)
    assert c.pools == "PMT"
    assert (queued.prompt_machine, queued.token_machine) == (0, 2)
    assert (pushed.prompt_machine, pushed.token_machine) == (1, 2)
    got = c.finish(*running, queued, pushed)
    assert got == unsplit(build, *sizes, (60, 5), (61, 5))
    assert c.pools == "PTT" and c.role_changes == [0, 2, 0]


def test_full_token_memory_pulls_a_prompt_machine(build: Build) -> None:
    c = build("PPT", blocks=16)  # 256 tokens each
    big, small = c.submit(220, 20), c.submit(60, 20)
    assert c.pools == "PMT"
    assert (small.prompt_machine, small.token_machine) == (1, 1)
    assert c.finish(big, small) == unsplit(build, (220, 20), (60, 20))
    assert c.pools == "PPT" and c.role_changes == [0, 2, 0]


def served_under_load(
    build: Build,
    seed: int,
    count: int,
    orders: dict[int, Callable[[RigCluster], object]] | None = None,
) -> tuple[RigCluster, list[LiveRequest]]:
    """A cluster that has served more than its memory holds, and rightly: requests waited, were
    preempted, and crossed in both directions. ``orders`` come before the request of that number."""
    rng = random.Random(seed)
    sizes = [(rng.randint(1, 150), rng.randint(1, 40)) for _ in range(count)]
    c = build("PPTT", blocks=20)
    requests = []
    for number, size in enumerate(sizes):
        if orders and number in orders:
            orders[number](c)
        requests.append(c.submit(*size))
        c.run_until(lambda: rng.random() < 0.7)
    assert c.finish(*requests) == unsplit(build, *sizes)
    return c, requests


@pytest.mark.parametrize("seed", range(4))
def test_under_load_everybody_goes_home(build: Build, seed: int) -> None:
    c, _ = served_under_load(build, seed, 30)
    assert c.pools == "PPTT" and sum(c.role_changes) > 0
    assert not any(c.cluster.roster.cluster.kv_tokens)


@pytest.mark.parametrize(
    "machines",
    [MachineLimits(batch_requests=4), MachineLimits(prompt_batch_tokens=4)],
    ids=["requests", "tokens"],
)
@pytest.mark.parametrize("pools", ["PT", "M"])
def test_whoever_has_a_first_token_gets_the_others_without_waiting_for_somebody_to_end(
    build: Build, machines: MachineLimits, pools: str
) -> None:
    """Eight long outputs on a machine of four places: the last four wait in the cluster's line."""
    limits = ClusterLimits(change_roles=False)
    c = build(pools, limits=limits, machines=machines)
    sizes = [(5 + i, 60) for i in range(8)]
    requests = [c.submit(*size) for size in sizes]
    while not all(live.is_finished for live in requests):
        c.run_until(iter([False, True]).__next__)  # each machine once
        begun = [live.state is RequestState.TOKEN for live in requests]
        assert sum(begun) <= 4
        assert c.rigs[-1].machine.status().running_requests <= 4
        was_started = [live.was_started for live in requests]
        assert was_started == sorted(was_started, reverse=True), "they are served in order"
    assert c.finish(*requests) == unsplit(build, *sizes)


def test_a_token_machine_that_runs_all_it_can_pulls_a_prompt_machine(build: Build) -> None:
    c = build("PPT", machines=MachineLimits(batch_requests=2))
    sizes = [(20, 30), (21, 30), (22, 30)]
    requests = [c.submit(*size) for size in sizes]
    assert c.pools == "MPT"
    assert [live.token_machine for live in requests] == [2, 2, 0]
    assert c.finish(*requests) == unsplit(build, *sizes)
    assert c.pools == "PPT" and c.role_changes == [2, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_machines_are_rehomed_and_drained_under_load_and_nothing_is_lost(
    build: Build, seed: int
) -> None:
    ran_before = 0

    def drain_m2(c: RigCluster) -> None:
        nonlocal ran_before
        ran_before = len(c.rigs[2].machine._tasks)
        c.cluster.pools.drain("m2")

    orders = {
        8: lambda c: c.cluster.pools.set_home("m1", Pool.TOKEN),
        14: drain_m2,
        20: lambda c: c.cluster.pools.set_home("m3", Pool.PROMPT),
        26: lambda c: c.cluster.pools.drain("m0"),
    }
    c, requests = served_under_load(build, seed, 40, orders)
    assert ran_before, "it was drained while it had something to do"
    assert [link.is_told_to_end for link in c.links] == [True, False, True, False]
    assert c.pools == "PTTP"
    assert all(live.failures == 0 for live in requests)
    views = c.cluster.pools.show()
    assert [view.draining for view in views] == [True, False, True, False]
    assert [view.home for view in views] == ["prompt", "token", "token", "prompt"]
    assert not any(view.kv_tokens or view.waiting or view.pending_tokens for view in views)
