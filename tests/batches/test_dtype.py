"""Values in the dtype asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import daodask
from daodask.errors import SpecError
from daodask.testing import coordinate_adata

N_OBS, N_VARS = 60, 7


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> daodask.Store:
    url: Path = tmp_path_factory.mktemp("dtype") / "store"
    spec = {
        "features": {"name": "all", "reference": "union"},
        "studies": [{"id": "a", "source": coordinate_adata(N_OBS, N_VARS)}],
    }
    assert daodask.build_store(spec, url).ok
    return daodask.open_store(url)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, "float32"), ("float32", "float32"), ("float64", "float64"), ("stored", "uint16")]
)
def test_values_come_in_the_dtype_asked_for(
    store: daodask.Store, dtype: str | None, expected: str, dense: bool
) -> None:
    loader = daodask.BatchLoader(store, 16, dtype=dtype, dense=dense)
    assert loader.x_dtype == np.dtype(expected)
    for batch in loader:
        assert batch.X.dtype == np.dtype(expected)
        found = batch.X if dense else batch.X.toarray()
        np.testing.assert_array_equal(found, coordinate_adata(N_OBS, N_VARS).X.toarray()[batch.index])


def test_an_unknown_dtype_is_refused(store: daodask.Store) -> None:
    with pytest.raises(SpecError, match="expected a dtype out of float32, float64, stored, got 'float16'"):
        daodask.BatchLoader(store, 16, dtype="float16")


def test_a_stored_window_takes_less_memory(store: daodask.Store) -> None:
    sizes = {d: daodask.BatchLoader(store, 16, dtype=d, dense=True).plan().window_bytes for d in ("stored", "float32")}
    assert sizes["float32"] == 2 * sizes["stored"]
