"""Measurements that can be repeated anywhere; each module is one subcommand of ``python -m benchmarks``."""
