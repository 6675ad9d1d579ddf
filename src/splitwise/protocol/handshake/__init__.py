"""The one handshake of a cluster: two ends of a new connection make sure of each other.

It guards both doors, the cluster scheduler's (control connections) and each machine's (links that
caches come in by, over TCP and unix sockets). I dials (the initiator), R listens (the responder):

1. Both say a preamble at once: magic, protocol version, purpose. What differs is named by both.
2. I: a nonce and its id. R: a nonce, its id, and its proof.
3. I checks id and proof, and only then proves itself: its proof, and what it claims (``claims``),
   which the proof covers. Where R's proof is wrong it says so instead.
4. R checks that proof, and says that it is right or wrong. What follows is each door's own.

A proof is an HMAC-SHA256 under a key that is derived from the cluster key for one purpose and one
role. It covers version, purpose, role, both ids, both nonces and, under TLS, the certificate, all
of fixed length, so that it is of no use at the other door, in the other role, for another pair, on
another connection, or to a man in the middle who shows another certificate. All that is read
before a proof is bounded in bytes, in time (by whoever calls) and in number (``unproven``).

The cluster key never travels, but each proof lets whoever sees it try out keys at leisure: take a
random one. Without TLS what follows is neither encrypted nor signed, and the network must be one
that others cannot write to.

- ``proofs``: keys, what is proved, and how
- ``conversation``: who says what when
- ``unproven``: the connections whose peers have not proved themselves yet

Imports nothing of ours, so that ``transfer`` may import it.
"""
