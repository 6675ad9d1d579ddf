"""The paper's cluster figures, made anew, each beside the published number.

- ``published``: what was published; ``setting``: under which rules, prices and load
- ``poster``, ``iso``, ``robustness``, ``characterization``, ``claims``: one file a group of figures
- ``parts``: all of them by name
- ``section``: figures with their differences, for terminal, HTML and JSON
"""
