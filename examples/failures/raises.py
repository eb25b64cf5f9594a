"""Fails by an exception; the agent finds it in the last lines of stderr, without a line of quorate in the script."""


def average(values: list[float]) -> float:
    return sum(values) / len(values)


average([])
