"""Policies: the scheduler's decisions, each of which may be one's own.

- ``default``: the decisions and what they are asked; the rules of Splitwise
- ``two_choices``: the less loaded of two random machines
- ``all_mixed``: every machine computes both phases
- ``policy``: a policy as a whole, and how one is loaded from a file
- ``sources``: what a policy is made of, and a digest of that
"""
