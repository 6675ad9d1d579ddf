"""Which machines to buy, and how to split them: search with the simulator.

    Question ── plan ──> Plan ──> terminal, HTML, JSON

- ``question``, ``demand``, ``design``: what is asked, the load, the clusters that can be counted
- ``trial``, ``outcome``, ``store``: one simulation of a cluster at a rate; what is known is kept
- ``search``, ``tuning``: the best cluster of a family, and what is tried with the best of all
- ``plan``: the call; ``feasibility``: why there is no answer; ``sensitivity``: what if
- ``confidence``, ``pareto``: how sure, and which clusters no other beats
- ``workers``: in this process, on all cores, on Ray
- ``record``, ``report_terminal``, ``report`` and its tables, plots and ``curves``: how it is shown
- ``reproduce``: the paper's figures beside the published ones
"""
