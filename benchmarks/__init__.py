"""Measurements that anybody can repeat; each module is one subcommand of ``python -m benchmarks``."""
