"""The discrete-event simulator: virtual machines and links driven by ``scheduling/``.

    Requests + MachineGroups + Options ── simulate ──> Result ──> summary, report, tables, timeline

- ``simulate``: the call, its options and its checks
- ``loop``: arrivals, machines, transfers and outages in order of time
- ``dispatch``, ``failures``: requests sent to machines, and called back from those that fail
- ``machine``, ``slots``, ``queues``: what a machine runs next, and for how long
- ``links``, ``memory``: how a cache travels, and who holds what
- ``state``: all arrays; ``compiled``: how they are made fast
- ``result``: the answer; ``slowdown``, ``summary``: what it says
- ``report``, ``table_files``, ``timeline``: how it is shown
"""
