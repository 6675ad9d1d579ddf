"""What clients speak to: HTTP, text to tokens and back, the OpenAI API, the operator's endpoint.

- ``http/``: connections, exchanges, TLS; it knows bytes and JSON, not models
- ``text/``: text to tokens and tokens to text
- ``openai/``: requests validated, answers and streams rendered
- ``admin``: the pools, shown to operators and set by them
- ``process``: ties these to the cluster scheduler, in one asyncio process
"""
