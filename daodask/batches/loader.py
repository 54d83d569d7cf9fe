"""The loader: a re-iterable of mini-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daodask.batches.schedule import Epoch, Schedule, named_schedule
from daodask.batches.window import Batch, Request, read_window
from daodask.errors import SpecError, UnknownNameError, suggest
from daodask.store import Store

__all__ = ["BatchLoader"]


class BatchLoader:
    """Mini-batches of a store's selected cells; each pass is a new epoch with a fresh order.

    Parameters
    ----------
    store
        The cells and genes to iterate over: any store, however subset.
    batch_size
        Cells per batch; only the last of an epoch may be smaller.
    schedule
        ``"shuffled"``, ``"sequential"``, or any object with the method ``windows`` of
        :class:`~daodask.batches.schedule.Schedule`.
    layer
        The layer to read in place of ``X``.
    obs
        Columns of obs that each batch brings.
    seed
        Together with the epoch's number it decides the order, on every machine.
    dense
        Hand out X as a dense array.
    drop_last
        Leave out the last batch where it is smaller.

    Raises
    ------
    UnknownNameError
        There is no such obs column or layer.

    Examples
    --------
    >>> loader = daodask.BatchLoader(store, batch_size=4096, obs=["cell_type"])  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     batch.X, batch.obs["cell_type"], batch.index
    """

    def __init__(
        self,
        store: Store,
        batch_size: int = 4096,
        *,
        schedule: str | Schedule = "shuffled",
        layer: str | None = None,
        obs: Sequence[str] = (),
        seed: int = 0,
        dense: bool = False,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise SpecError(f"expected a batch_size of at least 1, got {batch_size}")
        if isinstance(obs, str):
            obs = [obs]
        for column in obs:
            if column not in store.obs_columns:
                raise UnknownNameError(f"obs has no column {column!r}; {suggest(column, store.obs_columns)}")
        if layer is not None:
            store.layers[layer]  # refuses a layer that some dataset lacks before anything is read
        self.store = store
        self.batch_size = batch_size
        self.schedule = named_schedule(schedule)
        self.seed = seed
        self.drop_last = drop_last
        #: Number of the epoch that the next pass is.
        self.epoch = 0
        self._request = Request("X" if layer is None else f"layers/{layer}", tuple(obs), dense)

    def __len__(self) -> int:
        whole, rest = divmod(self.store.n_obs, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch = Epoch(self.seed, self.epoch)
        self.epoch += 1
        return self._iterate(epoch)

    def _iterate(self, epoch: Epoch) -> Iterator[Batch]:
        for window in self.schedule.windows(self.store.n_obs, self.batch_size, epoch):
            for batch in read_window(self.store, window, self._request):
                if len(batch) == self.batch_size or not self.drop_last:
                    yield batch

    def __repr__(self) -> str:
        n_obs, n_vars = self.store.shape
        return (
            f"<BatchLoader: {len(self):,} batches of {self.batch_size:,} out of {n_obs:,} cells × {n_vars:,} genes, "
            f"{self.schedule}, seed {self.seed}, next epoch {self.epoch}>"
        )
