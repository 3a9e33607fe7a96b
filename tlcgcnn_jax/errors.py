"""What can be wrong with the input, said in one readable message."""

from dataclasses import dataclass


class InputError(ValueError):
    """Input that cannot be used; the message says what was found, where, what was expected and what to do.

    Example:
        >>> from tlcgcnn_jax import InputError, textbook_records
        >>> try:
        ...     textbook_records(["colour"])
        ... except InputError as error:
        ...     print(error)
        textbook: no property colour; there are band_gap_ev, bulk_modulus_gpa, eps_inf, eps_0
    """


@dataclass(frozen=True)
class Skipped:
    """One crystal that was left out, and why.

    Attributes:
        id: The crystal's id, or the file's name where it has none.
        where: File, or file and line.
        reason: The message that `on_error="raise"` would have shown, without the advice of `advised`.
    """

    id: str
    where: str
    reason: str


class ReadingWarning(UserWarning):
    """Something that the file of a crystal leaves open, and how it was read."""


def advised(reason: str) -> str:
    """What is wrong with a crystal, and how to go on without it."""
    return f'{reason}; use on_error="skip" (--on-error skip) to leave such crystals out and list them'


def check_on_error(on_error: str) -> None:
    """Raise `InputError` unless `on_error` is "raise" or "skip"."""
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}: use 'raise' (stop at the first bad crystal) or 'skip'")
