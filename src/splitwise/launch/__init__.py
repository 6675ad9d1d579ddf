"""Starts workers and watches them: processes of this host, or actors of a Ray cluster.

- ``launcher``: what a launcher is; processes of this host
- ``ray_launcher``: the same on a Ray cluster
- ``supervision``: workers that ended are started again
- ``local_server``: a whole server as a child process, for scripts
"""
