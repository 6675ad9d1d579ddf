"""vLLM as the engine of a machine.

- ``settings``: what the machine is told, and the command line that this is for vLLM
- ``versions``: which vLLM is installed, and whether it is one that works
- ``gpus``: which GPUs are the machine's

These are light: they import nothing of vLLM.
"""
