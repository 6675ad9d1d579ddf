"""One machine's process: its session in a cluster, its scheduler, the engine it drives.

- ``worker``: the process, over all its sessions
- ``session``: from the dial to the end of the control connection
- ``runner``: what a session drives, whatever kind of engine is behind it
- ``engine_runner``: one with our own machine-level scheduler (``machine``; ``task`` is what that
  runs) on an engine's thread
- ``asking``, ``composing``, ``victims``: what of its iterations a policy decides
- ``outbox``: what the machine says, from any thread
"""
