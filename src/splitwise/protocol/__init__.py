"""What the processes of a cluster say to each other.

- ``generation``: a request and its tokens, between the gateway and the cluster scheduler
- ``messages``: between the cluster scheduler and its workers
- ``handshake``: how two ends of a new connection make sure of each other, there and between
  machines
- ``wire``: how a message goes over a connection

Keys and values never pass here: they go from machine to machine (``splitwise.transfer``).
"""
