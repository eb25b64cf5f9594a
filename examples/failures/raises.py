"""Fails by an exception; it is found in the last lines that were written, without a line of quorate in the script."""


def average(values: list[float]) -> float:
    return sum(values) / len(values)


average([])
