"""Principal components of more cells than memory holds: by the covariance of some thousand genes, which is reduced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.analysis.blocks import Block
from daodask.analysis.run import compute, resolve_transform
from daodask.analysis.transforms import Normalise, Transform
from daodask.blocks import read_measured_by_source
from daodask.errors import SpecError
from daodask.format.spec import SOURCE_DATASET
from daodask.store import Store
from daodask.types import BoolArray

if TYPE_CHECKING:
    from anndata import AnnData
    from distributed import Client

__all__ = ["Covariance", "PrincipalComponents", "Scores", "pca"]

Float64Array = npt.NDArray[np.float64]

#: Share of values that are not zero above which dense products are faster.
_DENSE: Final = 0.2
_MOST_GENES: Final = 20_000


@dataclass(frozen=True, eq=False)
class Products:
    """What the covariance of genes is made of: cells, means, and products of the distances from them."""

    n: int
    mean: Float64Array
    products: Float64Array


@dataclass(frozen=True)
class Covariance:
    """Products of every two genes' distances from their means, combined as variances are (Chan et al. 1983)."""

    columns: tuple[str, ...] = ()

    def block(self, block: Block) -> Products:
        """Of one block: products of values, from which those of the block's means are taken."""
        from daodask.analysis.kernels import add_gram, fill_dense

        k = block.n_vars
        gram, sums = np.zeros((k, k)), np.zeros(k)
        for rows in block.rows():
            columns, values, low, high = rows.arrays
            if (high - low).sum() < _DENSE * len(rows) * len(rows.lookup):
                add_gram(columns, values, low, high, rows.lookup, sums, gram)
            else:
                dense = np.zeros((len(rows), k + 1))
                fill_dense(columns, values, low, high, rows.lookup, dense)
                sums += dense[:, :k].sum(axis=0)
                # In one triangle, as the other way adds them.
                gram += np.tril(dense[:, :k].T @ dense[:, :k])
        # A product of two genes is in one of two places, that of a gene with itself in one.
        whole = gram + gram.T - np.diag(np.diag(gram))
        n = max(1, block.n_obs)
        return Products(block.n_obs, sums / n, whole - np.outer(sums, sums) / n)

    def combine(self, partials: Sequence[Products]) -> Products:
        """Of all cells together."""
        first, *others = partials
        n, mean, products = first.n, first.mean, first.products.copy() if others else first.products
        for other in others:
            both = max(1, n + other.n)
            apart = other.mean - mean
            products += other.products
            products += np.outer(apart, apart * (n * other.n / both))
            mean = mean + apart * (other.n / both)
            n += other.n
        return Products(n, mean, products)

    def finalise(self, partial: Products) -> Products:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        return partial


@dataclass(frozen=True, eq=False)
class Scores:
    """Each cell's place along the components: ``(cells, components)``, float32."""

    loadings: Float64Array
    offset: Float64Array
    columns: tuple[str, ...] = ()

    def block(self, block: Block) -> list[npt.NDArray[np.float32]]:
        """Of one block."""
        from daodask.analysis.kernels import project_rows

        padded = np.concatenate([self.loadings, np.zeros((1, self.loadings.shape[1]))])
        out = np.tile(-self.offset, (block.n_obs, 1))
        for rows in block.rows():
            project_rows(*rows.arrays, rows.lookup, padded, rows.of(out))
        return [out.astype(np.float32)]

    def combine(self, partials: Sequence[list[npt.NDArray[np.float32]]]) -> list[npt.NDArray[np.float32]]:
        """All arrays, which are laid one after another only once."""
        return [array for partial in partials for array in partial]

    def finalise(self, partial: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """One array."""
        return np.concatenate(partial)


@dataclass(frozen=True, eq=False, repr=False)
class PrincipalComponents:
    """Directions in which genes vary together most.

    Parameters
    ----------
    loadings
        ``(genes, components)``, indexed by gene id; columns are of length 1, and their largest entry is positive.
    mean
        Of each gene.
    variance, variance_ratio
        Along each component, and its share of the variance of all genes.
    transform, layer
        Of what they are.
    """

    loadings: pd.DataFrame
    mean: Float64Array
    variance: Float64Array
    variance_ratio: Float64Array
    transform: Transform
    layer: str | None

    def scores(self, store: Store, *, client: Client | None = None, threads: int = 0) -> npt.NDArray[np.float32]:
        """Place of each cell along the components (computes).

        Parameters
        ----------
        store
            Any cells of the same feature space, also others than the components are of; the genes are found by id.
        client, threads
            See :func:`daodask.pseudobulk`.

        Returns
        -------
        ndarray
            float32, ``(store.n_obs, components)``.
        """
        values = self.loadings.to_numpy()
        reducer = Scores(values, self.mean @ values)
        genes = store[:, list(self.loadings.index)]
        options: dict[str, Any] = {"layer": self.layer, "transform": self.transform, "totals_of": store}
        return compute(genes, reducer, client=client, threads=threads, **options)

    def add_to(self, adata: AnnData, scores: npt.NDArray[np.float32]) -> None:
        """Write into AnnData what ``scanpy.pp.pca`` does: ``obsm["X_pca"]``, ``varm["PCs"]`` and ``uns["pca"]``.

        Parameters
        ----------
        adata
            With the cells of the scores; genes without loadings get zeros.
        scores
            As :meth:`scores` returns them.
        """
        adata.obsm["X_pca"] = scores
        adata.varm["PCs"] = self.loadings.reindex(adata.var_names, fill_value=0.0).to_numpy()
        adata.uns["pca"] = {
            "params": {"zero_center": True, "use_highly_variable": False, "mask_var": None},
            "variance": self.variance,
            "variance_ratio": self.variance_ratio,
        }

    def __repr__(self) -> str:
        genes, components = self.loadings.shape
        return f"{components} principal components of {genes} genes: {self.variance_ratio.sum():.1%} of the variance"


def pca(
    store: Store,
    n_comps: int = 50,
    *,
    genes: object = None,
    layer: str | None = None,
    transform: Transform = Normalise(),  # noqa: B008  frozen
    measured_only: bool = False,
    client: Client | None = None,
    threads: int = 0,
) -> PrincipalComponents:
    """Principal components of genes, centred, from their covariance (computes).

    One pass over the cells, in which products of every two genes are added up: memory is 8 bytes for each of them, on
    each thread. Equal to scikit-learn's and scanpy's but for signs and rounding.

    Parameters
    ----------
    store
        The cells and genes.
    n_comps
        How many; at most as many as there are genes, and one less than cells.
    genes
        Which of the store's genes, as ``store[:, genes]`` takes them: ids, or a mask such as the column
        ``highly_variable`` of :func:`daodask.highly_variable_genes`. All by default.
    layer
        The layer to read in place of ``X``.
    transform
        Of the values: by default logarithms of counts per 10,000.
    measured_only
        Leave out genes that not all studies of the selected cells measured: where zeros stand for what was not
        measured, components tell studies apart. It leaves out genes and not, as elsewhere, cells: along a component of
        genes that are not known of it a cell has no place. The loadings say which genes are left.
    client, threads
        See :func:`daodask.pseudobulk`.

    Returns
    -------
    PrincipalComponents
        Its :meth:`~PrincipalComponents.scores` are of these or of other cells.

    Raises
    ------
    SpecError
        There are fewer cells or genes than ``n_comps`` asks for, or so many genes that their covariance is too large.
    """
    chosen = store if genes is None else store[:, genes.to_numpy() if isinstance(genes, pd.Series) else genes]
    if measured_only:
        chosen = chosen[:, _measured_by_all(chosen)]
    most = min(chosen.n_vars, store.n_obs - 1)
    if not 1 <= n_comps <= most:
        shape = f"{chosen.n_vars} genes and {store.n_obs} cells"
        raise SpecError(f"expected 1 to {most} components of {shape}, got {n_comps}")
    if chosen.n_vars > _MOST_GENES:
        raise SpecError(
            f"expected at most {_MOST_GENES} genes, as the covariance of every two is held in memory, got "
            f"{chosen.n_vars}; choose with genes=, such as highly variable ones"
        )
    transform = resolve_transform(store, transform, layer=layer, client=client, threads=threads)
    options: dict[str, Any] = {"layer": layer, "transform": transform, "totals_of": store}
    found = compute(chosen, Covariance(), client=client, threads=threads, **options)
    covariance = found.products / (found.n - 1)
    variance, vectors = _largest(covariance, n_comps)
    total = float(np.trace(covariance))
    names = [f"PC{i + 1}" for i in range(n_comps)]
    loadings = pd.DataFrame(vectors, index=chosen.var_names, columns=names)
    ratio = variance / total if total > 0 else np.zeros(n_comps)
    return PrincipalComponents(loadings, found.mean, variance, ratio, transform, layer)


def _measured_by_all(store: Store) -> BoolArray:
    """Which of the selected genes all studies measured that the selected cells are of (computes, small)."""
    found: BoolArray = store.measured.all(axis=1).to_numpy()
    if SOURCE_DATASET not in store.obs_columns:
        return found
    studies = store.value_counts(SOURCE_DATASET).index
    for dataset in store.selection.datasets:
        masks = read_measured_by_source(store.location / store.snapshot.dataset[dataset].path)
        for mask in (mask for name, mask in masks.items() if name in studies):
            found = found & (mask if store.selection.genes is None else mask[store.selection.genes])
    return found


def _largest(covariance: Float64Array, n: int) -> tuple[Float64Array, Float64Array]:
    """Eigenvalues and eigenvectors, the largest first; each vector's largest entry is positive."""
    import scipy.linalg

    size = len(covariance)
    values, vectors = scipy.linalg.eigh(covariance, subset_by_index=(size - n, size - 1))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n)])
    return values, vectors * np.where(signs == 0, 1.0, signs)
