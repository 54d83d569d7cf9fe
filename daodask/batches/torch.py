"""Batches as PyTorch tensors, under any ``DataLoader``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from daodask.batches.schedule import Cells, Epoch, Schedule, Window, most_rows, stable_repr
from daodask.batches.tensors import arrays, categories, check_numeric
from daodask.batches.window import Batch
from daodask.errors import DependencyError, SpecError
from daodask.types import Label

if TYPE_CHECKING:
    from daodask.batches.loader import BatchLoader

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError as error:
    raise DependencyError(
        "to_torch() needs PyTorch, which is not installed; pip install 'daodask[torch]', or torch from pytorch.org"
    ) from error

__all__ = ["TorchBatches"]


class TorchBatches(IterableDataset):  # type: ignore[misc,type-arg,unused-ignore]
    """Batches as dicts of tensors: ``X``, ``index``, and one per obs column under ``obs``.

    Give it to ``torch.utils.data.DataLoader(dataset, batch_size=None)``: batches are made here. ``X`` is a sparse CSR
    tensor, or a dense one for a loader with ``dense=True``; labels are int64 codes, see :attr:`categories`. Workers
    share the windows of a rank's epoch, and each has the loader's memory for its own; each pass over the ``DataLoader``
    is a new epoch, whether its workers persist or not. Where ``torch.distributed`` is initialised and the loader was
    not given a rank, that of the process is taken. ``torchdata``'s ``StatefulDataLoader`` can stop anywhere in an epoch
    and go on from there; without it and without workers, so can :attr:`loader`.

    Parameters
    ----------
    loader
        What decides and reads the batches. A function that it applies (``fn``) gets the :class:`Batch` as ever, and
        what it returns is handed out as it is.
    """

    def __init__(self, loader: BatchLoader) -> None:
        super().__init__()
        check_numeric(loader)
        self.loader = _with_rank(loader)
        self._passes = _Passes()

    @property
    def categories(self) -> dict[str, tuple[Label, ...]]:
        """What the codes of each categorical column stand for."""
        return categories(self.loader)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return _Pass(self.loader) if info is None else _WorkerPass(self.loader, self._passes, info)

    def __len__(self) -> int:
        return len(self.loader)


class _Pass:
    """One pass over a loader, which ``torchdata`` may ask where it is."""

    def __init__(self, loader: BatchLoader) -> None:
        self._loader = loader
        self._convert = to_tensors if loader.fn is None else _as_it_is
        self._begin(0)

    def _begin(self, batches_done: int) -> None:
        self._epoch, self._done, self._batches = self._loader.epoch, batches_done, iter(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._done += 1
        return self._convert(batch)

    def state_dict(self) -> dict[str, Any]:
        """As of the loader; but when the pass has ended it is at its end, and not at the next epoch's beginning."""
        return {**self._loader.state_dict(), "epoch": self._epoch, "batches_done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._loader.load_state_dict(state)
        self._begin(int(state["batches_done"]))


class _WorkerPass(_Pass):
    """A worker's part of a pass: every n-th window, of the epoch that all workers agree on."""

    def __init__(self, loader: BatchLoader, passes: _Passes, info: Any) -> None:
        if loader.client is not None:
            raise SpecError("expected a DataLoader with num_workers=0, as the loader's client reads already")
        self._passes, self._info = passes, info
        own = loader.copy(schedule=_EveryNth(loader.schedule, info.id, info.num_workers), threads=1)
        own.epoch = passes.next_epoch(info, loader.epoch)
        super().__init__(own)

    def _begin(self, batches_done: int) -> None:
        super()._begin(batches_done)
        self._passes.enter(self._info, self._epoch)


class _Passes:
    """Epochs that workers have begun, in shared memory, as a worker that does not persist forgets its own.

    The workers of one ``DataLoader`` know each other by the seed that they share. Each writes nothing but an entry of
    its own, so that there is nothing to lock.
    """

    def __init__(self) -> None:
        #: Per slot and worker: the key of the workers, the epoch begun, and the one that others may begin.
        self._entries = torch.zeros((_SLOTS, _MOST_WORKERS, 3), dtype=torch.int64).share_memory_()

    def next_epoch(self, info: Any, first: int) -> int:
        """The epoch that a worker is to make: one that its fellows have begun and it has not, or a new one."""
        # What others may begin is read before epochs are, and written after them: a fellow's never counts as past.
        following = max(first, int(self._entries[:, :, 2].max()))
        key, slot = _key(info)
        entries = self._entries[slot].clone()
        begun = entries[:, 1].where(entries[:, 0] == key, torch.tensor(-1))
        newest = int(begun.max())
        return newest if newest > begun[info.id] else following

    def enter(self, info: Any, epoch: int) -> None:
        """Say which epoch a worker has begun."""
        key, slot = _key(info)
        for place, value in ((1, epoch), (0, key), (2, epoch + 1)):
            self._entries[slot, info.id, place] = value


#: Of entries, so that ``DataLoader``s which run side by side, or take turns, are unlikely to share one.
_SLOTS = 251
_MOST_WORKERS = 256


def _key(info: Any) -> tuple[int, int]:
    # The seeds of workers are that of the DataLoader plus their number. No key is 0, which is what unused entries have.
    key = (info.seed - info.id) % 2**48 * _MOST_WORKERS + info.num_workers
    return key, key % _SLOTS


def _as_it_is(result: Any) -> Any:
    return result


@dataclass(frozen=True, slots=True)
class _EveryNth:
    """The windows of a schedule whose number is ``first`` modulo ``step``."""

    schedule: Schedule
    first: int
    step: int

    @property
    def columns(self) -> tuple[str, ...]:
        return self.schedule.columns

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        return islice(self.schedule.windows(cells, batch_size, epoch), self.first, None, self.step)

    def most_rows(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        return most_rows(self.schedule, cells, batch_size, epoch)

    def __repr__(self) -> str:
        return f"every {self.step}th window of {stable_repr(self.schedule)} from the {self.first}th"


def _with_rank(loader: BatchLoader) -> BatchLoader:
    distributed = torch.distributed
    if loader.world_size > 1 or not distributed.is_available() or not distributed.is_initialized():
        return loader
    return loader.copy(rank=distributed.get_rank(), world_size=distributed.get_world_size())


def to_tensors(batch: Batch) -> dict[str, Any]:
    """A batch as tensors; a dense X and numbers share their memory with the window."""
    parts = arrays(batch)
    tensors: dict[str, Any] = {
        "X": _sparse(parts.X) if sp.issparse(parts.X) else torch.from_numpy(parts.X),
        "obs": {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in parts.obs.items()},
        "index": torch.from_numpy(parts.index),
    }
    if parts.measured is not None:
        tensors["measured"] = torch.from_numpy(parts.measured)
    return tensors


def _sparse(matrix: Any) -> Any:
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr),
        torch.from_numpy(matrix.indices),
        torch.from_numpy(matrix.data),
        size=matrix.shape,
        check_invariants=False,
    )


# With the first sparse tensor of a process, made or received from a worker, PyTorch says that its sparse CSR is in beta
# state and that it is not checked. Each is said once: here, where nobody is bothered.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))
