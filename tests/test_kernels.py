"""Which values of a row are wanted is found out alike with and without instructions for many at a time."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.gather import _dense_lookup
from daodask.kernels import _put_wanted


@given(
    n_vars=st.sampled_from([1, 31, 32, 33, 200, 5_000, 70_000]),
    n_genes=st.floats(0, 1),
    n_values=st.integers(0, 200),
    kinds=st.tuples(st.sampled_from(["int32", "int64", "uint16"]), st.sampled_from(["uint8", "uint16", "float32"])),
    ascending=st.booleans(),
    n_strange=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_wanted_values_are_put_down(
    n_vars: int,
    n_genes: float,
    n_values: int,
    kinds: tuple[str, str],
    ascending: bool,
    n_strange: int,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    n_vars = min(n_vars, np.iinfo(kinds[0]).max - 10)
    genes = generator.permutation(n_vars)[: round(n_genes * n_vars)]
    columns = generator.permutation(n_vars)[:n_values].astype(kinds[0])
    if ascending:
        columns.sort()
    values = generator.integers(1, 200, len(columns)).astype(kinds[1])
    full = np.zeros(n_vars, np.float32)
    full[columns] = values
    strange = generator.integers(0, max(1, len(columns)), n_strange) if len(columns) else np.empty(0, np.int64)
    full[columns[strange]] = 0
    columns[strange] = generator.choice([n_vars, n_vars + 1, n_vars + 9], n_strange if len(columns) else 0)

    row = np.zeros(len(genes), np.float32)
    found = np.empty(len(columns) + 32, np.uint32)
    odd = _put_wanted(columns, values, _dense_lookup(genes.astype(np.int64), n_vars), found, row)
    np.testing.assert_array_equal(row, full[genes])
    assert odd == len(set(strange.tolist()))


@pytest.mark.skipif("DAODASK_TEST_NARROW" in os.environ, reason="this is the other process")
def test_the_same_without_wide_instructions() -> None:
    environment = {**os.environ, "NUMBA_CPU_FEATURES": "-avx512f", "DAODASK_TEST_NARROW": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
