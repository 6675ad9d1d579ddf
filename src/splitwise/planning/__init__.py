"""Which machines to buy, and how to split them: search with the simulator.

    Question ── plan ──> Plan ──> terminal, HTML, JSON

- ``question``, ``demand``, ``design``: what is asked, the load, the clusters that can be counted
- ``trial``, ``outcome``, ``store``: one simulation of a cluster at a rate; what is known is kept
"""
