"""One way to refuse a wrong option: the field, its value, what is allowed."""

from typing import Any


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raise ValueError `field=value: must be allowed` unless the condition holds."""
    if not condition:
        raise ValueError(f"{field}={value!r}: must be {allowed}")
