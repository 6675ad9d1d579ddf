"""The OpenAI-compatible API in front of the cluster: ``app.App`` makes it."""
