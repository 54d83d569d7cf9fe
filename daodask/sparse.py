"""The type that blocks of a store have in dask: a CSR matrix that dask can reduce.

Dask reduces a chunk by numpy's signatures (``np.sum(chunk, axis=(0,), keepdims=True)``), which scipy's matrices don't
know: ``sum``, ``mean``, ``max``, ``var`` and ``@`` of a dask array of ``csr_matrix`` raise. :class:`CSRBlock` is a
``csr_matrix`` that does, and :class:`CSCBlock` what its transpose is. Called as scipy's own are, they answer as scipy's
do: ``block.sum(axis=0)`` is a matrix, ``block.sum(axis=0, keepdims=False)`` an array. Other libraries' matrices stay as
they are: what has to be known of these types is registered for these types alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from dask.array import register_chunk_type
from dask.array.dispatch import concatenate_lookup, nannumel_lookup, numel_lookup, tensordot_lookup
from dask.array.utils import meta_from_array

from daodask.types import CSR, AnyArray, Int64Array

__all__ = ["CSCBlock", "CSRBlock", "as_block", "plain"]

Axes: TypeAlias = int | tuple[int, ...] | None
Float64Array: TypeAlias = npt.NDArray[np.float64]

#: What a ufunc of two is called as a method: of the first, and of the second where only that is a block.
_BINARY: Final[dict[np.ufunc, tuple[str, str]]] = {
    np.add: ("__add__", "__radd__"),
    np.subtract: ("__sub__", "__rsub__"),
    np.multiply: ("multiply", "__rmul__"),
    np.true_divide: ("__truediv__", "__rtruediv__"),
    np.matmul: ("__matmul__", "__rmatmul__"),
    np.power: ("__pow__", "__rpow__"),
    np.maximum: ("maximum", "maximum"),
    np.minimum: ("minimum", "minimum"),
    np.equal: ("__eq__", "__eq__"),
    np.not_equal: ("__ne__", "__ne__"),
    np.less: ("__lt__", "__gt__"),
    np.less_equal: ("__le__", "__ge__"),
    np.greater: ("__gt__", "__lt__"),
    np.greater_equal: ("__ge__", "__le__"),
}


if TYPE_CHECKING:
    # It stands before one of scipy's classes, which has what it asks for.
    _Scipys: TypeAlias = Any
else:
    _Scipys = object


class _Block(_Scipys):  # type: ignore[misc]
    """What CSR and CSC blocks have in common, before scipy's classes in the order of methods."""

    # Above scipy's, so that ours is the type that a concatenation goes by.
    __array_priority__ = 10.2

    @property
    def _csr_container(self) -> type[CSRBlock]:
        return CSRBlock

    @property
    def _csc_container(self) -> type[CSCBlock]:
        return CSCBlock

    @property
    def size(self) -> int:
        """Elements, zeros included, as of an array: dask leaves chunks of size 0 out of a maximum."""
        return int(self.shape[0] * self.shape[1])

    # -- reductions ------------------------------------------------------------------------------------------------

    def sum(self, axis: Axes = None, dtype: Any = None, out: Any = None, keepdims: bool | None = None) -> Any:
        """Sum; with ``keepdims`` as numpy has it, without as scipy has it. Floats are added up in float64."""
        if keepdims is None:
            return super().sum(axis=axis, dtype=dtype, out=out)
        axes = _axes(axis)
        wanted = np.dtype(dtype) if dtype is not None else np.zeros(1, self.dtype).sum().dtype
        if axes == ():
            return _delivered(self.toarray().astype(wanted), axes, out, keepdims=True)
        sums = _Values(self, self.data, wanted).sums(axes)
        return _delivered(_cast(sums, wanted), axes, out, keepdims)

    def mean(self, axis: Axes = None, dtype: Any = None, out: Any = None, keepdims: bool | None = None) -> Any:
        """Mean; with ``keepdims`` as numpy has it, without as scipy has it."""
        if keepdims is None:
            return super().mean(axis=axis, dtype=dtype, out=out)
        wanted = np.dtype(dtype) if dtype is not None else np.zeros(1, self.dtype).mean().dtype
        axes = _axes(axis)
        n = _length(self, axes)
        total = self.sum(axis, np.result_type(wanted, np.float64), keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return _delivered(_cast(total / n, wanted), axes, out, keepdims)

    def max(self, axis: Axes = None, out: Any = None, keepdims: bool | None = None, **scipys: Any) -> Any:
        """Largest value, of those that are not stored too; NaN where one is NaN."""
        if keepdims is None:
            return super().max(axis=axis, out=out, **scipys)
        return _delivered(_extremes(self, np.maximum, _axes(axis)), _axes(axis), out, keepdims)

    def min(self, axis: Axes = None, out: Any = None, keepdims: bool | None = None, **scipys: Any) -> Any:
        """Smallest value, of those that are not stored too; NaN where one is NaN."""
        if keepdims is None:
            return super().min(axis=axis, out=out, **scipys)
        return _delivered(_extremes(self, np.minimum, _axes(axis)), _axes(axis), out, keepdims)

    def any(self, axis: Axes = None, out: Any = None, keepdims: bool = False) -> Any:
        """Whether any value is not zero."""
        return _delivered(_nonzeros(self, _axes(axis)) > 0, _axes(axis), out, keepdims)

    def all(self, axis: Axes = None, out: Any = None, keepdims: bool = False) -> Any:
        """Whether no value is zero."""
        axes = _axes(axis)
        n = _length(self, axes)
        return _delivered(_nonzeros(self, axes) == n, axes, out, keepdims)

    # -- operators: arrays where the result is dense, blocks where it is sparse ------------------------------------

    def __add__(self, other: Any) -> Any:
        return _settled(super().__add__(other))

    def __radd__(self, other: Any) -> Any:
        return _settled(super().__radd__(other))

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, _Mean) and other.ndim == 2:
            return _Deviations(self, np.asarray(other))
        return _settled(super().__sub__(other))

    def __rsub__(self, other: Any) -> Any:
        return _settled(super().__rsub__(other))

    def __mul__(self, other: Any) -> Any:
        _require_scalar(other)
        return _settled(super().__mul__(other))

    def __rmul__(self, other: Any) -> Any:
        _require_scalar(other)
        return _settled(super().__rmul__(other))

    def __truediv__(self, other: Any) -> Any:
        # scipy divides by numbers in float64, whatever is divided.
        if np.ndim(other) == 0:
            return self._with_data(self.data / other, copy=True)
        return _settled(super().__truediv__(other))

    def __pow__(self, other: Any) -> Any:
        return self.power(other)

    def __eq__(self, other: object) -> Any:
        return _settled(super().__eq__(other))

    def __ne__(self, other: object) -> Any:
        return _settled(super().__ne__(other))

    def __lt__(self, other: Any) -> Any:
        return _settled(super().__lt__(other))

    def __le__(self, other: Any) -> Any:
        return _settled(super().__le__(other))

    def __gt__(self, other: Any) -> Any:
        return _settled(super().__gt__(other))

    def __ge__(self, other: Any) -> Any:
        return _settled(super().__ge__(other))

    # scipy's matrices have a hash, that of the object.
    __hash__ = object.__hash__

    def multiply(self, other: Any) -> Any:
        """Element by element."""
        return _settled(super().multiply(other))

    def maximum(self, other: Any) -> Any:
        """The larger one, element by element."""
        return _settled(super().maximum(other))

    def minimum(self, other: Any) -> Any:
        """The smaller one, element by element."""
        return _settled(super().minimum(other))

    def ravel(self, order: str = "C") -> Any:
        """Not as an array is: flox would take each value, zeros included, by itself."""
        raise _grouped_by_flox()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method == "reduceat":
            raise _grouped_by_flox()
        if method != "__call__" or options:
            return NotImplemented
        if len(inputs) == 1:
            return self._of_each(ufunc)
        if ufunc not in _BINARY:
            return NotImplemented
        first, second = inputs
        if isinstance(first, _Block):
            result = getattr(first, _BINARY[ufunc][0])(second)
        else:
            result = getattr(second, _BINARY[ufunc][1])(first)
        # What dask makes of a product's chunks is indexed as only arrays are.
        return result.toarray() if ufunc is np.matmul and _is_sparse(result) else result

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if func in _FUNCTIONS:
            return _FUNCTIONS[func](*args, **options)
        # Any other does what it would without this method: most call the method of their name.
        return getattr(func, "_implementation", func)(*args, **options)

    def _of_each(self, ufunc: np.ufunc) -> Any:
        """A function of each value, where that of zero is zero."""
        zero = ufunc(self.dtype.type(0)) if ufunc.nout == 1 else 1
        return NotImplemented if zero else self._with_data(ufunc(self.data), copy=True)


class CSRBlock(_Block, sp.csr_matrix):  # type: ignore[misc]
    """Rows of a store as dask's chunks have them: a ``scipy.sparse.csr_matrix`` that dask can reduce.

    What differs from scipy's: ``block * other`` takes a number only, as scipy means the matrix product where dask and
    numpy mean each element's: say ``block @ other`` or ``block.multiply(other)``. ``block ** 2`` is each element's, and
    ``size`` counts zeros too; ``nnz`` doesn't.
    """


class CSCBlock(_Block, sp.csc_matrix):  # type: ignore[misc]
    """What the transpose of a :class:`CSRBlock` is: a ``scipy.sparse.csc_matrix`` that dask can reduce."""


def as_block(matrix: CSR) -> CSRBlock:
    """A CSR matrix as a block; of the same arrays, which are not copied."""
    block = CSRBlock(matrix.shape, dtype=matrix.dtype)
    # scipy's constructor would copy each array that is a small part of a larger one.
    block.data, block.indices, block.indptr = matrix.data, matrix.indices, matrix.indptr
    block.has_canonical_format = matrix.has_canonical_format
    return block


def plain(matrix: Any) -> Any:
    """A block as scipy's own type, of the same arrays; what is no block stays as it is."""
    if not isinstance(matrix, _Block):
        return matrix
    base = sp.csr_matrix if isinstance(matrix, CSRBlock) else sp.csc_matrix
    found = base(matrix.shape, dtype=matrix.dtype)
    found.data, found.indices, found.indptr = matrix.data, matrix.indices, matrix.indptr
    return found


# -- sums and extremes along axes --------------------------------------------------------------------------------------


class _Values:
    """One value for each that a block stores, added up along axes in float64, or in integers."""

    def __init__(self, block: Any, values: AnyArray, dtype: np.dtype[Any]) -> None:
        self._block, self._values = block, values[: block.indptr[-1]]
        exact = values.dtype.kind in "biu" and dtype.kind in "biu"
        self._as = np.dtype(dtype if exact else np.result_type(values.dtype, np.float64))

    def sums(self, axes: tuple[int, ...]) -> AnyArray:
        """Sums, in two dimensions."""
        if len(axes) == 2:
            return np.full((1, 1), self._values.sum(dtype=self._as))
        if axes[0] == _major(self._block):
            return self._along_major(self._block.shape[1 - axes[0]]).reshape(_kept(self._block.shape, axes))
        sums = np.zeros(len(self._block.indptr) - 1, self._as)
        filled = np.flatnonzero(np.diff(self._block.indptr))
        sums[filled] = np.add.reduceat(self._values, self._block.indptr[filled], dtype=self._as)
        return sums.reshape(_kept(self._block.shape, axes))

    def _along_major(self, n: int) -> AnyArray:
        columns = self._block.indices[: len(self._values)]
        if self._as.kind == "f" and self._as.itemsize == 8:
            return np.bincount(columns, self._values, n)
        sums = np.zeros(n, self._as)
        np.add.at(sums, columns, self._values.astype(self._as))
        return sums


def _stored(block: Any, axes: tuple[int, ...]) -> Int64Array:
    """Stored values along axes, in two dimensions."""
    return _Values(block, np.ones(block.nnz, dtype=bool), np.dtype(np.int64)).sums(axes)


def _nonzeros(block: Any, axes: tuple[int, ...]) -> Int64Array:
    canonical = _canonical(block)
    return _Values(canonical, canonical.data != 0, np.dtype(np.int64)).sums(axes)


def _canonical(block: Any) -> Any:
    if block.has_canonical_format:
        return block
    copied = block.copy()
    copied.sum_duplicates()
    return copied


def _extremes(block: Any, pick: np.ufunc, axes: tuple[int, ...]) -> AnyArray:
    """Largest or smallest values along axes, in two dimensions."""
    if not all(block.shape[a] for a in axes):
        raise ValueError("zero-size array to reduction operation which has no identity")
    block = _canonical(block)
    data = block.data[: block.indptr[-1]]
    worst = _worst(data.dtype, pick)
    if len(axes) == 2:
        found = np.full((1, 1), pick.reduce(data, initial=worst), dtype=data.dtype)
    else:
        found = np.full(block.shape[1 - axes[0]], worst, dtype=data.dtype)
        if axes[0] == _major(block):
            with np.errstate(invalid="ignore"):
                pick.at(found, block.indices[: len(data)], data)
        else:
            filled = np.flatnonzero(np.diff(block.indptr))
            found[filled] = pick.reduceat(data, block.indptr[filled])
        found = found.reshape(_kept(block.shape, axes))
    n = _length(block, axes)
    return np.where(_stored(block, axes) < n, pick(found, data.dtype.type(0)), found)


def _worst(dtype: np.dtype[Any], pick: np.ufunc) -> Any:
    """What any value is picked over."""
    if dtype.kind == "b":
        return pick is np.minimum
    if dtype.kind == "f":
        return -np.inf if pick is np.maximum else np.inf
    return np.iinfo(dtype).min if pick is np.maximum else np.iinfo(dtype).max


def _axes(axis: Axes) -> tuple[int, ...]:
    return (0, 1) if axis is None else tuple(sorted(np.lib.array_utils.normalize_axis_tuple(axis, 2)))


def _length(block: Any, axes: tuple[int, ...]) -> int:
    """Elements, zeros included, that become one along axes."""
    return int(np.prod([block.shape[a] for a in axes]))


def _major(block: Any) -> int:
    """The axis whose parts lie one after another."""
    return 0 if block.format == "csr" else 1


def _kept(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if a in axes else n for a, n in enumerate(shape))


def _cast(values: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype, copy=False)


def _delivered(values: AnyArray, axes: tuple[int, ...], out: Any, keepdims: bool) -> Any:
    result = values if keepdims else values.squeeze(axes)
    if out is not None:
        out[...] = result
        return out
    return result if result.ndim else result[()]


# -- elements ----------------------------------------------------------------------------------------------------------


def _settled(result: Any) -> Any:
    """A result of scipy's: dense ones as an array and not a matrix, sparse ones as a block."""
    if isinstance(result, np.matrix):
        return np.asarray(result)
    if not _is_sparse(result) or isinstance(result, _Block):
        return result
    return CSCBlock(result) if result.format == "csc" else CSRBlock(result)


def _is_sparse(value: Any) -> bool:
    return bool(sp.issparse(value))


def _grouped_by_flox() -> TypeError:
    return TypeError(
        "expected an array, got a sparse block of daodask, which flox can't group; do it within "
        'xarray.set_options(use_flox=False), or ask for to_xarray(blocks="coo") or blocks="dense"'
    )


def _require_scalar(other: Any) -> None:
    if not np.isscalar(other) and np.ndim(other):
        raise TypeError("expected a number to multiply a block with; say @ for the matrix product, or .multiply()")


def _without_nan(block: Any, instead: Any = 0) -> Any:
    return block._with_data(np.where(np.isnan(block.data), instead, block.data), copy=True)  # noqa: SLF001 - of our type


def _nansum(values: Any, axis: Axes = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    if isinstance(values, _Deviations):
        return values.sum(axis, dtype, out, keepdims, skip=True)
    return _without_nan(values).sum(axis, dtype, out, keepdims)


def _nanextreme(pick: np.ufunc, block: Any, axis: Axes = None, out: Any = None, keepdims: bool = False) -> Any:
    axes = _axes(axis)
    found = _extremes(_without_nan(block, _worst(block.dtype, pick)), pick, axes)
    unknown = _Values(block, np.isnan(block.data), np.dtype(np.int64)).sums(axes)
    return _delivered(np.where(unknown < _length(block, axes), found, np.nan), axes, out, keepdims)


def _nanmax(block: Any, axis: Axes = None, out: Any = None, keepdims: bool = False) -> Any:
    return _nanextreme(np.maximum, block, axis, out, keepdims)


def _nanmin(block: Any, axis: Axes = None, out: Any = None, keepdims: bool = False) -> Any:
    return _nanextreme(np.minimum, block, axis, out, keepdims)


def _where(condition: Any, value: Any, otherwise: Any) -> Any:
    """Values put into a block where few are, such as zeros in place of NaN."""
    if not isinstance(condition, _Block) or not isinstance(otherwise, _Block):
        dense = [x.toarray() if _is_sparse(x) else x for x in (condition, value, otherwise)]
        return np.where(*dense)
    rows, columns = condition.nonzero()
    changed = otherwise.astype(np.result_type(value, otherwise.dtype), copy=True)
    if len(rows):
        changed[rows, columns] = value[rows, columns] if np.ndim(value) else value
    return changed


_FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {
    np.nansum: _nansum,
    np.nanmax: _nanmax,
    np.nanmin: _nanmin,
    np.where: _where,
}


# -- variances: dask takes the mean from each element, which would be all of a block, dense ----------------------------


class _Count(np.ndarray[Any, Any]):
    """How many elements a block's sums are of. A sum divided by it is a mean, of which a block knows what it is.

    Whatever else is done with it gives plain arrays.
    """

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        result = _plainly(ufunc, method, inputs, options)
        if ufunc is np.true_divide and method == "__call__" and isinstance(result, np.ndarray):
            return result.view(_Mean)
        return result


class _Mean(np.ndarray[Any, Any]):
    """A block's mean along axes, which it has kept."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return _plainly(ufunc, method, inputs, options)


def _plainly(ufunc: np.ufunc, method: str, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
    arrays = [i.view(np.ndarray) if isinstance(i, _Count | _Mean) else i for i in inputs]
    return getattr(ufunc, method)(*arrays, **options)


class _Deviations(np.lib.mixins.NDArrayOperatorsMixin):
    """``(block - mean) ** power``, which is dense, of which sums are known without it."""

    def __init__(self, block: Any, mean: Float64Array, power: int = 1) -> None:
        self._block, self._mean, self._power = block, mean, power
        self.shape: tuple[int, int] = np.broadcast_shapes(block.shape, mean.shape)
        self.dtype = np.result_type(block.dtype, mean.dtype)
        self.ndim = 2

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        return np.asarray((self._block.toarray() - self._mean) ** self._power, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*(np.asarray(i) if i is self else i for i in inputs), **options)

    def __pow__(self, power: int) -> _Deviations:
        return _Deviations(self._block, self._mean, self._power * power)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if func is np.nansum:
            return _nansum(*args, **options)
        if func is np.sum:
            return self.sum(*args[1:], **options)
        return func(*(np.asarray(a) if isinstance(a, _Deviations) else a for a in args), **options)

    def sum(
        self, axis: Axes = None, dtype: Any = None, out: Any = None, keepdims: bool = False, *, skip: bool = False
    ) -> Any:
        """Those of stored values one by one, those of the others, which are alike, at once; ``skip``: without NaN."""
        axes = _axes(axis)
        block = _canonical(self._block)
        if self._mean.shape != _kept(block.shape, axes):
            whole: Any = np.nansum if skip else np.sum
            return whole(np.asarray(self), axis=axis, dtype=dtype, out=out, keepdims=keepdims)
        wanted = np.dtype(dtype) if dtype is not None else self.dtype
        n = _length(block, axes)
        with np.errstate(invalid="ignore", over="ignore"):
            stored = (block.data[: block.indptr[-1]] - self._mean_of_each(block)) ** self._power
            stored = np.where(np.isnan(stored), 0, stored) if skip else stored
            sums = _Values(block, stored, np.dtype(np.float64)).sums(axes)
            absent = n - _stored(block, axes)
            # A mean that is not finite takes nothing away where there is nothing to take it from.
            sums = sums + np.where(absent > 0, absent * (-self._mean) ** self._power, 0)
        return _delivered(_cast(sums, wanted), axes, out, keepdims)

    def _mean_of_each(self, block: Any) -> Float64Array:
        flat = self._mean.ravel().astype(np.float64)
        if self._mean.shape == (1, 1):
            return flat
        if self._mean.shape[_major(block)] == 1:
            return np.take(flat, np.asarray(block.indices[: block.indptr[-1]]))
        return np.repeat(flat, np.diff(block.indptr))


# -- what dask and anndata have to be told of these types --------------------------------------------------------------


def _count(block: Any, **options: Any) -> Any:
    counted = numel_lookup.dispatch(np.ndarray)(block, **options)
    return counted.view(_Count) if isinstance(counted, np.ndarray) else counted


def _count_numbers(block: Any, **options: Any) -> Any:
    axes = _axes(options.get("axis"))
    unknown = _Values(block, np.isnan(block.data), np.dtype(np.int64)).sums(axes)
    counted = np.asarray(_delivered(_length(block, axes) - unknown, axes, None, options.get("keepdims", False)))
    return counted.astype(options.get("dtype", np.float64)).view(_Count)


def _concatenate(blocks: Sequence[Any], axis: int = 0) -> Any:
    found = (sp.vstack, sp.hstack)[axis](blocks, format="csc" if isinstance(blocks[0], CSCBlock) else "csr")
    return _settled(found)


def _concatenate_dense(arrays: Sequence[Any], axis: int = 0) -> AnyArray:
    return np.concatenate([np.asarray(array) for array in arrays], axis=axis)


def _tensordot(a: Any, b: Any, axes: Sequence[Sequence[int]]) -> AnyArray:
    ((left,), (right,)) = axes
    product = operator.matmul(a if left == 1 else a.T, b if right == 0 else b.T)
    return product.toarray() if _is_sparse(product) else np.asarray(product)


def _register_with_anndata() -> None:
    """Let AnnData objects that hold blocks be written; anndata goes by the very type of what it writes."""
    import h5py
    import zarr
    from anndata._core.views import DaskArrayView
    from anndata._io.specs.registry import _REGISTRY, IOSpec
    from dask.array import Array

    def as_array(blocks: Any) -> Any:
        """Of anndata's views, too, whose type it knows by itself."""
        array: Any = Array(blocks.dask, blocks.name, blocks.chunks, meta=meta_from_array(blocks))
        return array.map_blocks(plain, dtype=array.dtype, meta=plain(meta_from_array(array)))

    def write_block(group: Any, key: str, block: Any, *, _writer: Any, **options: Any) -> None:
        _writer.write_elem(group, key, plain(block), **options)

    def write_blocks(group: Any, key: str, blocks: Any, *, _writer: Any, **options: Any) -> None:
        _writer.write_elem(group, key, as_array(blocks), **options)

    for kind, name in ((CSRBlock, "csr_matrix"), (CSCBlock, "csc_matrix")):
        spec = IOSpec(name, "0.1.0")
        for group in (h5py.Group, zarr.Group):
            _REGISTRY.register_write(group, kind, spec)(write_block)
            for array in (Array, DaskArrayView):
                _REGISTRY.register_write(group, (array, kind), spec)(write_blocks)


def _register() -> None:
    for kind in (CSRBlock, CSCBlock):
        register_chunk_type(kind)
        numel_lookup.register(kind, _count)
        nannumel_lookup.register(kind, _count_numbers)
        concatenate_lookup.register(kind, _concatenate)
        tensordot_lookup.register(kind, _tensordot)
    concatenate_lookup.register(_Deviations, _concatenate_dense)
    _register_with_anndata()


_register()
