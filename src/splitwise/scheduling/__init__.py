"""Every decision, and nothing else.

Plain functions over arrays and numbers, with no clock, no I/O and no state of their own, so that
the live server calls them as they stand and a simulator can compile them. What only the server
needs, the order in which clients are served, is a plain data structure. Only the loading of a
policy reads files.

- ``pool``: the three pools
- ``ranking``: who comes first by some key, at the same cost among 10 or 1,000 machines
- ``cluster_state``: what is known of the machines, and every way in which it changes
- ``placement``: cluster level, which machine computes a request's prompt and which its tokens,
  and which change their pool for it
- ``decision``: what a policy is told and says; ``enacting``: whether it can be, and what it does
- ``policies``: the decisions that may be one's own; ``draws``: their random numbers
- ``batching``: machine level, what runs in the next iteration
- ``admission``: whether the cluster takes another request at all
- ``fair_queue``: who of those that wait is next; the server's alone. A priority's are a
  ``fair_level``, or by a policy's word an ``ordered_level``, on ``keyed_heap``
- ``waiting``: who may pass one for whom there is no room, and who waits apart
- ``isolation``: what a failed iteration failed of; ``quarantine``: which machines are kept out
- ``silence``: when a machine that says nothing is no longer relied on
- ``shared``: the decorator of what the simulator compiles
"""
