"""Memory is used again when nobody sees it any more, and never before."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from daodask import BatchLoader, buffers
from daodask.batches.schedule import Shuffled
from daodask.buffers import _WINDOW_GRAIN, BufferPool
from daodask.gather import csr_of
from daodask.testing import coordinate_counts, random_store


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def kept(pool: BufferPool) -> int:
    return sum(map(len, pool._free))


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint16", "bool"])
@pytest.mark.parametrize("shape", [10, (3, 4), 0, (0, 5), _WINDOW_GRAIN + 1])
def test_an_array_is_as_asked_for(shape, dtype):
    array = BufferPool(2**30).empty(shape, dtype)
    assert type(array) is np.ndarray
    assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable


def views(array: np.ndarray) -> dict[str, Any]:
    """Ways in which memory lives on."""
    flat = array.reshape(-1)
    return {
        "itself": array,
        "slice": array[5:7],
        "slice of a slice": array[5:][2:3],
        "reshaped": array.reshape(4, -1)[:, 0],
        "other type": array.view(np.int32)[1:2],
        "subclass": array.view(np.recarray)[3:4],
        "memoryview": memoryview(flat)[2:3],
        "matrix": csr_of(flat[2:4], np.array([0, 1], np.int32), np.array([0, 2]), (1, 2)),
        "iterator": iter(array[9:]),
        "in a cycle": cycle(array[1:2]),
    }


def cycle(array: np.ndarray) -> list[Any]:
    ring: list[Any] = [array]
    ring.append(ring)
    return ring


@pytest.mark.parametrize("kind", views(np.zeros(16, np.float32)))
def test_memory_comes_back_with_its_last_view(kind):
    pool = BufferPool(2**30)
    array = pool.empty(16, "float32")
    place = address(array)
    array[:] = 7
    view = views(array)[kind]
    del array
    gc.collect()
    other = pool.empty(16, "float32")
    other[:] = -1
    assert address(other) != place
    del view
    gc.collect()
    again = pool.empty(16, "float32")
    assert address(again) == place


def test_sizes_that_are_nearly_alike_share_memory():
    pool = BufferPool(2**30)
    place = address(pool.empty(20 * _WINDOW_GRAIN - 5, np.uint8))
    assert address(pool.empty(19 * _WINDOW_GRAIN + 5, np.uint8)) == place
    assert address(pool.empty(15 * _WINDOW_GRAIN, np.uint8)) == place
    # A small array does not take a large buffer, and a large one no small buffer.
    assert address(pool.empty(10, np.uint8)) != place
    assert address(pool.empty(21 * _WINDOW_GRAIN, np.uint8)) != place
    assert kept(pool) == (20 + 1 + 21) * _WINDOW_GRAIN


def test_a_large_buffer_is_used_rather_than_let_go():
    pool = BufferPool(12 * _WINDOW_GRAIN)
    places = [address(pool.empty(n * _WINDOW_GRAIN, np.uint8)) for n in (10, 2)]
    held = pool.empty(2 * _WINDOW_GRAIN, np.uint8)
    small = pool.empty(100, np.float32)
    assert [address(small), address(held)] == places
    matrix = sp.csr_matrix((small, np.arange(100, dtype=np.int32), np.array([0, 100], np.int32)))
    assert np.shares_memory(matrix.data, small)
    del matrix, held, small
    assert kept(pool) == 12 * _WINDOW_GRAIN


def test_a_buffer_that_is_much_too_large_is_let_go():
    pool = BufferPool(24 * _WINDOW_GRAIN)
    pool.empty(24 * _WINDOW_GRAIN, np.uint8)
    held = [pool.empty(_WINDOW_GRAIN, np.uint8) for _ in range(2)]
    assert (pool._on_loan, kept(pool)) == (2 * _WINDOW_GRAIN, 0)
    del held


def test_what_is_kept_is_released_on_request():
    pool = BufferPool(10 * _WINDOW_GRAIN, least_bytes=_WINDOW_GRAIN)
    held = pool.empty(_WINDOW_GRAIN, np.uint8)
    pool.empty(4 * _WINDOW_GRAIN, np.uint8)
    assert kept(pool) == 4 * _WINDOW_GRAIN
    pool.release()
    assert (pool._on_loan, kept(pool)) == (_WINDOW_GRAIN, 0)
    # What was on loan before is no reason to keep as much.
    pool.empty(4 * _WINDOW_GRAIN, np.uint8)
    del held
    pool.release()
    held = pool.empty(2 * _WINDOW_GRAIN, np.uint8)
    del held
    assert kept(pool) == 2 * _WINDOW_GRAIN


def test_what_is_kept_and_on_loan_is_bounded():
    pool = BufferPool(10 * _WINDOW_GRAIN)
    loans = [pool.empty(2 * _WINDOW_GRAIN, np.uint8) for _ in range(8)]
    assert (pool._on_loan, kept(pool)) == (16 * _WINDOW_GRAIN, 0)
    del loans[:5]
    # 6 are on loan, and so 4 may be kept.
    assert (pool._on_loan, kept(pool)) == (6 * _WINDOW_GRAIN, 4 * _WINDOW_GRAIN)
    loans.append(pool.empty(7 * _WINDOW_GRAIN, np.uint8))
    assert (pool._on_loan, kept(pool)) == (13 * _WINDOW_GRAIN, 0)
    loans.clear()
    assert pool._on_loan == 0
    assert kept(pool) <= 10 * _WINDOW_GRAIN
    assert BufferPool(0).empty(5, np.uint8).nbytes == 5


def test_what_was_never_on_loan_at_one_time_is_not_kept():
    pool = BufferPool(10 * _WINDOW_GRAIN, least_bytes=3 * _WINDOW_GRAIN)
    for size in (1, 3, 1, 3):
        pool.empty(size * _WINDOW_GRAIN, np.uint8)
    assert kept(pool) == 3 * _WINDOW_GRAIN
    held = [pool.empty(2 * _WINDOW_GRAIN, np.uint8) for _ in range(4)]
    del held
    # The first of them has the one of 3.
    assert kept(pool) == 9 * _WINDOW_GRAIN
    held = [pool.empty(2 * _WINDOW_GRAIN, np.uint8) for _ in range(7)]
    del held
    assert 8 * _WINDOW_GRAIN <= kept(pool) <= 10 * _WINDOW_GRAIN


def test_a_pool_that_is_gone_leaves_its_arrays():
    pool = BufferPool(2**30)
    array = pool.empty(100, "float32")
    array[:] = 3
    del pool
    gc.collect()
    assert array.tolist() == [3] * 100


def test_a_pool_travels_without_its_memory():
    pool = BufferPool(12345)
    held = pool.empty(10, np.uint8)
    copied = pickle.loads(pickle.dumps(pool))  # noqa: S301
    assert copied._most_bytes == 12345
    assert (copied._on_loan, kept(copied)) == (0, 0)
    assert held.nbytes == 10


def test_memory_that_comes_back_while_the_pool_is_at_work_is_no_deadlock():
    pool = BufferPool(2**30)
    array = pool.empty(10, np.uint8)
    with pool._lock:  # as where garbage is collected in the midst of a request
        del array
    assert (pool._on_loan, len(pool._returned)) == (_WINDOW_GRAIN, 1)
    again = pool.empty(10, np.uint8)
    assert (pool._on_loan, kept(pool), again.nbytes) == (_WINDOW_GRAIN, 0, 10)


def test_many_threads():
    pool = BufferPool(6 * _WINDOW_GRAIN)
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        generator = np.random.default_rng(number)
        held: list[np.ndarray] = []
        for step in range(300):
            array = pool.empty(int(generator.integers(1, 50)), np.int64)
            array[:] = number * 1000 + step
            held.append(array)
            if len(held) > 3:
                del held[int(generator.integers(3))]
            for other in held:
                assert (other == other[0]).all()
                assert other[0] // 1000 == number

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert pool._on_loan == 0
    assert kept(pool) <= 6 * _WINDOW_GRAIN


@pytest.mark.parametrize("dense", [False, True])
def test_a_batch_that_is_kept_stays_what_it_is(tmp_path, dense):
    store = random_store(tmp_path / "store", (70, 0, 33))
    loader = BatchLoader(store, 10, schedule=Shuffled(run_rows=4, window_rows=20), dense=dense)
    every_third = []
    for _ in range(4):
        every_third += [batch for number, batch in enumerate(loader) if number % 3 == 0]
    pool = loader._reader.pool
    assert pool._on_loan > 0
    for batch in every_third:
        found = batch.X if dense else batch.X.toarray()
        np.testing.assert_array_equal(found, coordinate_counts(batch.index, 32).toarray())
    every_third.clear()
    del batch, found
    gc.collect()
    assert pool._on_loan == 0


def test_windows_take_turns_in_the_same_memory(tmp_path):
    store = random_store(tmp_path / "store", (400,))
    loader = BatchLoader(store, 10, schedule=Shuffled(run_rows=4, window_rows=20), memory="128MiB")
    places = set()
    for batch in loader:
        places.add(address(batch.X.data) // _WINDOW_GRAIN)
    # 20 windows in the memory of a few.
    pool = loader._reader.pool
    assert (pool._on_loan + kept(pool)) <= 128 * 2**20
    assert len(places) <= 16


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_forked_while_memory_is_taken_has_memory() -> None:
    with buffers._BLOCKS._lock:
        child = os.fork()
        if not child:
            os._exit(0 if len(buffers.reused_empty(2**21, np.uint8)) == 2**21 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_memory_for_a_short_time_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_BLOCKS", BufferPool(2**30, grain=2**20))
    first = buffers.reused_empty(2**21, np.uint32)
    place = address(first)
    del first
    again = buffers.reused_empty(2**21 - 5, np.int32)
    assert (address(again), again.dtype, len(again)) == (place, np.dtype(np.int32), 2**21 - 5)
    assert address(buffers.reused_empty(2**21, np.int32)) != place
    assert buffers.reused_empty(5, np.int32).base is None
