"""The order of these tests."""

from __future__ import annotations

import pytest

LAST = ("test_tensorflow.py", "test_jax.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """JAX and TensorFlow start threads, after which a process is not to be forked: what uses them comes last of all."""
    items.sort(key=lambda item: item.path.name in LAST)
