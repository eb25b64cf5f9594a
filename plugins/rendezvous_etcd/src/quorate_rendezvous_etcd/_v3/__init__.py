"""The backend ``etcd``: the store on etcd's API v3.  What does not live here: what it shares with ``etcd-v2``."""
