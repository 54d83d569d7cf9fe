"""HTML out of plain functions: what is not marked as HTML is text, and escaped."""

from __future__ import annotations

from html import escape

__all__ = ["Html", "el"]

#: Elements that have no end tag.
_VOID = frozenset({"br", "meta"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def el(name: str, /, *children: str, **attributes: str) -> Html:
    """An element.

    Parameters
    ----------
    name
        Its tag.
    *children
        HTML as it is, other text escaped.
    **attributes
        Escaped; ``_`` stands for ``-`` (``aria_label``) or, at the end, for nothing (``class_``). Empty ones are left
        out.
    """
    said = "".join(f' {_attribute(key)}="{escape(value)}"' for key, value in attributes.items() if value)
    if name in _VOID:
        return Html(f"<{name}{said}>")
    inner = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{name}{said}>{inner}</{name}>")


def _attribute(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")
