"""The report's plots, each an SVG element to be set into a page. Needs matplotlib."""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from splitwise.observe.svg import plot
from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Result

CDF_POINTS: Final = 500
_POOL_COLOURS: Final = ("#c2410c", "#1d4ed8", "#15803d")


def all_plots(result: Result) -> list[tuple[str, str]]:
    """Every plot of the report: its caption and its SVG."""
    return [
        ("Latencies: the share of requests at or below", latency_cdfs(result)),
        ("Requests in the cluster over time", queues(result)),
        ("Machines by current pool over time", pool_sizes(result)),
        (
            "Batch occupancy: the share of busy time in iterations of that many active tokens or "
            "fewer, by home pool (a prompt counts all its tokens)",
            occupancy(result),
        ),
    ]


def latency_cdfs(result: Result) -> str:
    """Cumulative distributions of TTFT, TBT and end-to-end time, seconds on a log axis."""

    def draw(axes: Axes) -> None:
        shares = np.linspace(0, 1, CDF_POINTS)
        for name, values in (
            ("TTFT", result.ttft_s),
            ("TBT", result.tbt_s),
            ("E2E", result.e2e_s),
        ):
            present = values[~np.isnan(values)]
            if len(present):
                axes.plot(np.quantile(present, shares), shares, label=name)
        axes.set_xscale("log")
        axes.set_xlabel("seconds")
        axes.set_ylabel("share of requests")

    return plot("latency", draw)


def queues(result: Result) -> str:
    """Prompts that wait and decodes that run, by sample."""

    def draw(axes: Axes) -> None:
        axes.plot(result.sample_s, result.waiting_prompts, label="waiting prompts")
        axes.plot(result.sample_s, result.running_decodes, label="running decodes")
        axes.set_xlabel("seconds of virtual time")
        axes.set_ylabel("requests")
        axes.set_ylim(bottom=0)

    return plot("queues", draw)


def pool_sizes(result: Result) -> str:
    """Machines in each pool, stacked, by sample."""

    def draw(axes: Axes) -> None:
        axes.stackplot(
            result.sample_s,
            result.pool_sizes.T,
            labels=[pool.name.lower() for pool in Pool],
            colors=_POOL_COLOURS,
            step="post",
        )
        axes.set_xlabel("seconds of virtual time")
        axes.set_ylabel("machines")

    return plot("pools", draw)


def occupancy(result: Result) -> str:
    """Cumulative share of busy time by active tokens of the iteration, a line a pool."""

    def draw(axes: Axes) -> None:
        for pool in Pool:
            shares = occupancy_shares(result, pool)
            if shares is not None:
                axes.step(
                    np.arange(1, len(shares)),
                    shares[1:],
                    where="post",
                    label=f"{pool.name.lower()} machines",
                    color=_POOL_COLOURS[pool],
                )
        axes.set_xscale("log")
        axes.set_xlabel("active tokens in the iteration (the last: any more)")
        axes.set_ylabel("share of busy time")
        axes.set_ylim(0, 1.02)

    return plot("occupancy", draw)


def occupancy_shares(result: Result, pool: Pool) -> NDArray[np.float64] | None:
    """Cumulative share of the pool's busy time by active tokens (514); None if never busy."""
    spent_s = result.occupancy_s[result.home_pool == pool].sum(axis=0)
    total_s = spent_s.sum()
    return np.cumsum(spent_s) / total_s if total_s > 0 else None
