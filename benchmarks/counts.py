"""Arguments that count something, refused by argparse before anything runs."""

from argparse import ArgumentTypeError


def count(text: str) -> int:
    """An integer from 1 on."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"{text} is no number of anything: it counts from 1")
    return number
