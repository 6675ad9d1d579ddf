"""Starts workers and watches them: processes of this host, or actors of a Ray cluster.

- ``launcher``: what a launcher is; processes of this host
- ``ray_launcher``: the same on a Ray cluster
- ``worker_process``: one of those, and what it says
- ``lines``: what a process says, in lines
- ``supervision``: workers that ended are started again
- ``local_server``: a whole server as a child process, for scripts
"""
