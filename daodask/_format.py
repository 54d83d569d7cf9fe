"""Numbers, sizes, dates and names as people read them: pure helpers of reprs, reports and the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

__all__ = [
    "human_bytes",
    "human_count",
    "human_date",
    "human_number",
    "human_share",
    "list_some",
    "of_total",
    "one_line",
    "plural",
    "public_url",
    "shorten",
]


def human_bytes(n: int) -> str:
    """Bytes in binary units with three digits: ``"512 B"``, ``"1.5 KiB"``, ``"12.3 GiB"``."""
    if n < 1024:
        return f"{n} B"
    size = float(n)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        # What would round to "1e+03" is better said in the next unit.
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1024:.3g} PiB"


def human_count(n: int) -> str:
    """An exact count with its thousands apart: ``"1,234,567"``."""
    return f"{n:,}"


def human_number(value: float) -> str:
    """An integer exactly, any other number with four digits."""
    return human_count(value) if isinstance(value, int) else f"{value:.4g}"


def human_share(n: int, total: int) -> str:
    """``n`` of ``total`` in percent, never rounded to none or all: ``"34%"``, ``"0.4%"``, ``"<0.1%"``, ``">99%"``."""
    if n in (0, total):
        return "100%" if n else "0%"
    percent = 100 * n / total
    if percent < 0.1:
        return "<0.1%"
    if percent > 99:
        return ">99%"
    return f"{percent:.0f}%" if percent >= 9.95 else f"{percent:.1f}%"


def human_date(stamp: str) -> str:
    """An ISO time stamp to the minute in UTC, ``"2026-03-01 09:30 UTC"``; anything else as it is."""
    try:
        time = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    # Without a zone it can't be told which one is meant.
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if time.tzinfo else f"{time:%Y-%m-%d %H:%M}"


def of_total(n: int, total: int) -> str:
    """``"12"`` where that is all, else ``"3 of 12"``."""
    return human_count(n) if n == total else f"{human_count(n)} of {human_count(total)}"


def plural(n: int, noun: str, total: int | None = None) -> str:
    """A count with its noun: ``"1 cell"``, ``"2 cells"``, ``"1 of 3 cells"``, ``"2 categories"``."""
    total = n if total is None else total
    nouns = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{of_total(n, total)} {noun if total == 1 else nouns}"


def list_some(items: Iterable[str], most: int) -> str:
    """The first few items, and how many there are more: ``"a, b, … 3 more"``."""
    listed = list(items)
    more = len(listed) - most
    return ", ".join(listed if more <= 0 else [*listed[:most], f"… {human_count(more)} more"])


def one_line(value: object) -> str:
    """Text in which line breaks, terminal escapes and marks that turn the reading direction are spelled out."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(value: object, width: int) -> str:
    """One line of at most ``width`` characters, ended by ``…`` where some are left out."""
    text = one_line(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def public_url(url: str) -> str:
    """A URL fit to be saved in notebooks: without its password and its query, which may hold a signature."""
    if "://" not in url:
        return url
    return re.sub(r"\?.*", "?…", re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:…@", url))
