"""The OpenAI-compatible API in front of the cluster: ``app.create_app`` makes it."""
