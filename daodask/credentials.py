"""Credentials are told by their names and refused: a location travels to workers, into snapshots, messages and logs.

Each process finds its own: in its environment, in files that the file system knows of, in fsspec's configuration, or by
asking the machine that it runs on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from daodask.errors import SpecError

__all__ = ["masked", "refuse_credentials"]

#: Words of which one in an option's name says that its value is to be kept secret.
_SECRET_WORDS: Final = frozenset(
    (
        *("auth", "authorization", "cookie", "credential", "credentials", "passphrase", "passwd", "password"),
        *("sas", "secret", "signature", "token"),
    )
)
#: Names that are secret as a whole, though their words are not.
_SECRET_NAMES: Final = frozenset(
    (
        *("access_key", "access_key_id", "account_key", "api_key", "aws_access_key_id", "connection_string"),
        *("key", "private_key", "sig"),
    )
)
#: What gcsfs takes for a token that is none: how to find one.
_FOUND: Final = frozenset(("anon", "browser", "cache", "cloud", "google_default"))

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_USER: Final = re.compile(r"(?<=://)[^/?#@\s]*:[^/?#@\s]*@")
_QUERY: Final = re.compile(r"(?<=[?&])([^=&#\s]+)=[^&#\s]+")


def refuse_credentials(url: str, options: Mapping[str, Any]) -> None:
    """Refuse a URL or file system options that hold a credential; its value is not in the message.

    Raises
    ------
    SpecError
        They do.
    """
    names = [*_secret_options(options), *_secret_parts(url)]
    if names:
        raise SpecError(
            f"{masked(url)}: expected no credentials, as a location travels to workers and into messages, got "
            f"{', '.join(names)}; set them where each process finds them itself: in its environment "
            f"(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, …), in a file below "
            f"~/.config/fsspec, or by the identity of the machine"
        )


def masked(url: str) -> str:
    """A URL without the credentials that may be in it."""
    if "://" not in url:
        return url
    return _QUERY.sub(lambda found: f"{found[1]}=…" if _is_secret(found[1]) else found[0], _USER.sub("…@", url))


def _secret_options(options: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Names of options with a secret, at any depth."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            if value and _is_secret(str(name)):
                yield f"{within}{name}"
            else:
                yield from _secret_options(value, f"{within}{name}.")
        elif value not in (None, "", False, True) and _is_secret(str(name)) and not _is_address(value):
            yield f"{within}{name}"


def _is_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    return not _SECRET_WORDS.isdisjoint(words) or "_".join(words) in _SECRET_NAMES


def _is_address(value: object) -> bool:
    """Whether a value says where a credential is to be found, and is none."""
    return isinstance(value, str) and (value in _FOUND or value.endswith(".json"))


def _secret_parts(url: str) -> Iterator[str]:
    if "://" not in url:  # a path may have any character
        return
    if _USER.search(url):
        yield "a password before the host"
    if "?" in url:
        yield from (f"{name}=" for name, value in parse_qsl(urlsplit(url).query) if value and _is_secret(name))
