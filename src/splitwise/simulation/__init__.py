"""The discrete-event simulator: virtual machines and links driven by ``scheduling/``.

    Requests + MachineGroups + Options ── simulate ──> Result ──> summary, report, tables, timeline

- ``simulate``: the call and its checks; ``options``: what it is asked
- ``loop``: arrivals, machines, transfers and outages in order of time
- ``dispatch``, ``line``: requests sent to machines, at once or when there is room
- ``failures``, ``recall``: requests called back, from machines that fail or run out of blocks
- ``machine``, ``prompts``, ``slots``, ``queues``: what a machine runs next, and for how long
- ``links``, ``memory``, ``grown``: how a cache travels, and who holds what
- ``charges``, ``roles``: what the cluster scheduler goes by, and what it changes
- ``policy_calls``, ``policy_call``, ``policy_compiling``: how a policy is asked
- ``state``: all arrays; ``arrays``: how they are made, and the answer of them
- ``compiled``, ``by_reference``: how it is made fast
- ``result``: the answer; ``slowdown``, ``summary``: what it says
- ``report``, ``table_files``, ``timeline``: how it is shown
"""
