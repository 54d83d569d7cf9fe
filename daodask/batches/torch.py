"""Batches as PyTorch tensors, under any ``DataLoader``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from daodask.batches.schedule import Cells, Epoch, Schedule, Window
from daodask.batches.tensors import arrays, categories, check_numeric
from daodask.batches.window import Batch
from daodask.errors import DependencyError
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
    share the windows of a rank's epoch; each pass over the ``DataLoader`` is a new epoch, whether its workers persist
    or not. Where ``torch.distributed`` is initialised and the loader was not given a rank, that of the process is
    taken.

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
        #: Passes begun, per worker: shared memory, as a worker that does not persist forgets its own count.
        self._passes = torch.zeros(_MOST_WORKERS, dtype=torch.int64).share_memory_()
        self._active = self.loader
        self._loaded: Mapping[str, Any] | None = None

    @property
    def categories(self) -> dict[str, tuple[Label, ...]]:
        """What the codes of each categorical column stand for."""
        return categories(self.loader)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if info is not None:
            self._active = self._of_worker(info.id, info.num_workers)
        if self._loaded is not None:
            self._active.load_state_dict(self._loaded)
            self._loaded = None
        return iter(self._active) if self.loader.fn is not None else map(to_tensors, self._active)

    def _of_worker(self, worker: int, n_workers: int) -> BatchLoader:
        """A loader of every n-th window, at the epoch that this worker is to make next."""
        loader = self.loader.copy(schedule=_EveryNth(self.loader.schedule, worker, n_workers), threads=1)
        loader.epoch = self.loader.epoch + int(self._passes[worker])
        self._passes[worker] += 1
        return loader

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Where this process's part of the epoch is; ``torchdata``'s ``StatefulDataLoader`` asks each worker for it."""
        return self._active.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next pass."""
        self._loaded = dict(state)


_MOST_WORKERS = 1024


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
    with warnings.catch_warnings():
        # PyTorch says with the first one that its sparse CSR is in beta state.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr),
            torch.from_numpy(matrix.indices),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
        )
