"""Fails by an exception that is recorded: the report has the whole traceback, whatever else was written."""

from quorate import record


def average(values: list[float]) -> float:
    return sum(values) / len(values)


@record
def main() -> None:
    average([])


main()
