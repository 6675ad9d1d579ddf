"""The discrete-event simulator: virtual machines and links driven by ``scheduling/``.

    Requests + MachineGroups + Options ── simulate ──> Result ──> summary, report, tables, timeline

- ``simulate``: the call, its options and its checks
- ``loop``: arrivals, machines and transfers in order of time
- ``machine``, ``slots``, ``queues``: what a machine runs next, and for how long
- ``links``: how a cache travels
- ``state``: all arrays; ``compiled``: how they are made fast
- ``result``: the answer; ``summary``, ``report``, ``table_files``, ``timeline`` show it
"""
