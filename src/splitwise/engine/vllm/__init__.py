"""vLLM as the engine of a machine: it schedules, batches and computes; we move its cache.

The life of a request whose phases run on two machines (P and T), each with vLLM's engine core in
its worker's process:

1. T: ``SchedulerSide.will_pull``, and the request enters vLLM. vLLM allocates its blocks, less what
   its prefix cache holds, and leaves it aside (``update_state_after_alloc``); the same step has
   ``RankSide`` expect the rest.
2. P: ``will_push``, and the request enters vLLM, for one token. The first step that runs a chunk of
   it begins the transfer; what P's prefix cache held goes at once.
3. P: after each layer of each chunk ``RankSide.layer_done`` hands over the blocks that the chunk
   has filled. The next layer computes meanwhile.
4. P: the token is sampled, vLLM ends the request (``request_finished``) and keeps its blocks; the
   token goes along with the transfer's signal, and to the client.
5. T: ``Arrived``. The first token is appended to the request (``update_connector_output``), which
   vLLM then runs on with: nothing is computed twice.
6. P: ``Sent``. vLLM has its blocks back, as prefix cache.
7. A cancel, a lost peer or vLLM's own preemption ends it earlier: both ends say of every transfer
   once when its blocks may be used again, and only then vLLM gets them.

``SchedulerSide`` (one a machine) and ``RankSide`` (one a tensor-parallel rank) are the two halves
of a vLLM connector, as ``connector`` puts them together; each step ``StepOrders`` go from the one
to the other and ``RankNews`` come back. Nothing outside this package imports vLLM, and
``settings``, ``versions`` and ``gpus`` do not either.
"""
