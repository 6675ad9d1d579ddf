"""The cluster scheduler, live: machines known, requests under way, and who runs what.

The life of a request, and the module that owns each step:

1. ``gateway/openai``: the gateway validates and tokenises it.
2. ``scheduler`` admits it, and it waits in the ``backlog`` where there is no room. ``placer`` picks
   the prompt machine P and the token machine T together, in one call, by the loads that ``ledger``
   keeps. Where a pool is short it pulls a machine of the other one into the mixed pool until that
   machine is idle.
3. ``attempts`` tells P to compute (``RunPrompt``) and T to expect (``Expect``). T reserves cache
   blocks and hands P their addresses, machine to machine; the prompt starts without waiting.
4. ``worker/machine``: P's machine scheduler puts it into a prompt batch. As each layer's keys and
   values are done they are put into T's blocks while the next layer computes.
5. P sends the first token to the gateway at once; the client has it before the transfer ends.
6. P signals T after the last layer. T adds the request to its next iteration; P frees its blocks.
7. T streams tokens, one message an iteration for all its requests (``reports``);
   ``gateway/openai`` makes text of them.
8. Finish, stop string, cancel, disconnect or time-out frees everything everywhere, once.
9. If P or T dies, T runs out of memory, or a transfer fails: prompt plus tokens so far become a
   new prompt on another pair (``blame``, ``scheduler``). Draws are keyed by (seed, position), so
   the client sees the tokens it would have seen.

One machine for both phases (a mixed machine): no transfer, same path otherwise.

Processes: gateway and cluster scheduler are one asyncio process; a worker is a process a machine,
which dials in. Keys and values never pass through the gateway.
"""
