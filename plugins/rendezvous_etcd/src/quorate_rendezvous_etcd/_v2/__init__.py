"""The backend ``etcd-v2``: the store on etcd's API v2.  What does not live here: what it shares with ``etcd``."""
