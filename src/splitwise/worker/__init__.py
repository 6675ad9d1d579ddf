"""One machine's process: its session in a cluster, its scheduler, the engine it drives.

- ``worker``: the process, over all its sessions
- ``session``: from the dial to the end of the control connection
- ``machine``: the machine-level scheduler; ``task`` is what it runs
- ``outbox``: what the machine says, from any thread
"""
