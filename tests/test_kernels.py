"""Compiled loops: the same with and without instructions for many numbers at a time, and after an upgrade."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import daodask
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


def test_the_same_without_wide_instructions() -> None:
    environment = {**os.environ, "NUMBA_CPU_FEATURES": "-avx512f"}
    wanted = f"{__file__}::{test_wanted_values_are_put_down.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


#: A module like those of the package: what it compiles calls what is compiled in another.
_CALLER = """
from __future__ import annotations

import numpy as np

from daodask.kernels import compiled, row_sums


@compiled
def total(values, indptr, sums):
    row_sums(values, indptr, sums)
    return sums.sum()


if __name__ == "__main__":
    print(total(np.arange(4.0), np.array([0, 2, 4]), np.zeros(2)), sum(total.stats.cache_hits.values()))
"""


def test_compiled_code_is_not_used_with_what_it_called_before_an_upgrade(tmp_path: Path) -> None:
    package = tmp_path / "daodask"
    shutil.copytree(Path(daodask.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "caller.py").write_text(_CALLER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)

    def run() -> list[str]:
        command = [sys.executable, "-m", "daodask.caller"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert not done.returncode, done.stderr
        return done.stdout.split()

    assert run() == ["6.0", "0"]
    assert run() == ["6.0", "1"]
    kernels = package / "kernels.py"
    before, line = kernels.read_text(), "total += as_sum(values[k])"
    assert before.count(line) == 1
    kernels.write_text(before.replace(line, "total += as_sum(values[k] + values[k])"))
    assert run() == ["12.0", "0"]
    kernels.write_text(before)
    assert run() == ["6.0", "1"]
