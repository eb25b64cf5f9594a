"""The backend ``etcd-hosted``: an etcd cluster whose members run beside agents of the job.

``names`` says which member this agent runs, ``life`` what that member has to do next (pure), ``cluster`` asks the
others, ``member`` carries it out, and ``store`` is the store of API v3 with such a member behind it.
"""
