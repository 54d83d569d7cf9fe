"""A mapping of a build file that knows its path: typed access whose errors name the path of the mistake."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from daodask.errors import SpecError, suggest
from daodask.types import Label

__all__ = ["Section", "expected", "items", "label", "texts"]

_REQUIRED: Final = object()


def expected(path: str, what: str, got: object) -> SpecError:
    """The error for a value of the wrong kind."""
    return SpecError(f"{path}: expected {what}, got {got!r:.80}")


def label(value: object, path: str) -> Label:
    """A text, number or boolean as it is."""
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise expected(path, "text, a finite number or a boolean (quote it to make it text)", value)


def texts(value: object, path: str) -> tuple[str, ...]:
    """One text or a list of texts."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise expected(path, "text or a list of texts (quote what YAML takes for a number)", value)
    return tuple(values)


def items(value: object, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of each element of a list that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        raise expected(path, "a list with at least one entry", value)
    return ((f"{path}[{i}]", v) for i, v in enumerate(value))


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping and its path in the build file, the empty path being the whole file.

    A key without a value (YAML's ``key:``) counts as absent.
    """

    path: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, value: object, path: str, keys: Iterable[str] | None = None) -> Section:
        """Check that ``value`` is a mapping with text keys, all of them among ``keys`` where that is given.

        Raises
        ------
        SpecError
            It is none, or has other keys.
        """
        where = path or "build file"
        known = None if keys is None else tuple(keys)
        if not isinstance(value, Mapping):
            raise expected(where, f"a mapping with {', '.join(known)}" if known else "a mapping", value)
        for key in value:
            if not isinstance(key, str):
                raise SpecError(f"{where}: expected text as key, got {key!r}; quote it")
            if known is not None and key not in known:
                raise SpecError(f"{where}: unknown key {key!r}; {suggest(key, known)}")
        return cls(path, value)

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def at(self, key: str) -> str:
        """Path of a key."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> Any:
        """Value of a key, ``None`` where it is absent."""
        return self.values.get(key)

    def required(self, key: str) -> Any:
        """Value of a key that must be there."""
        if key not in self:
            raise SpecError(f"{self.at(key)}: expected a value, got none")
        return self.values[key]

    def section(self, key: str, keys: Iterable[str] | None = None) -> Section:
        """The mapping under a key; an empty one where it is absent."""
        return Section.of(self.values[key] if key in self else {}, self.at(key), keys)

    def text(self, key: str, default: object = _REQUIRED) -> str:
        """Text that is not empty; required unless there is a default."""
        value = self.required(key) if default is _REQUIRED or key in self else default
        if not isinstance(value, str) or (not value and value is not default):
            raise expected(self.at(key), "text (quote what YAML takes for a number, date or boolean)", value)
        return value

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of several texts."""
        known = tuple(choices)
        value = self.values[key] if key in self else default
        if not isinstance(value, str) or value not in known:
            shown = ", ".join(c or "''" for c in known)
            raise expected(self.at(key), f"one of {shown}", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """One text or a list of texts; none where the key is absent."""
        return texts(self.values[key], self.at(key)) if key in self else ()

    def flag(self, key: str) -> bool:
        """A boolean, false where it is absent."""
        value = self.values[key] if key in self else False
        if not isinstance(value, bool):
            raise expected(self.at(key), "true or false", value)
        return value

    def fraction(self, key: str, default: float) -> float:
        """A number from 0 to 1."""
        value = self.values[key] if key in self else default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise expected(self.at(key), "a number from 0 to 1", value)
        return float(value)

    def positive(self, key: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.values[key] if key in self else default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise expected(self.at(key), "a whole number of at least 1", value)
        return value
