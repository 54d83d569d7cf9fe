"""Compiled loops over rows of decoded chunks, free of the GIL; what they add up is float64.

Row r has the elements ``[low[r], high[r])`` of ``columns`` and ``values``. ``lookup`` has the result's column per
stored column, and the number of the result's columns for a gene that is not wanted: results have one more, for these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daodask.kernels import compiled

__all__ = [
    "add_counts",
    "add_extremes",
    "add_gram",
    "add_moments",
    "add_sums",
    "clipped_sums",
    "count_bins",
    "entries_per_gene",
    "expm1_rows",
    "fill_dense",
    "first_values",
    "normalise_rows",
    "project_rows",
    "rank_sums",
    "row_statistics",
    "take_entries",
]

#: Counts below this, which is nearly all, are looked up: their logarithms are computed once a cell.
_TABLE = 64


@compiled
def normalise_rows(
    columns: Any, values: Any, low: Any, high: Any, counted: Any, target: float, log1p: bool, out: Any
) -> None:
    """Values per ``target`` of their row's total, which is of the columns that count; logarithms of that."""
    table = np.empty(_TABLE)
    computed_for = np.full(_TABLE, -1)
    for r in range(len(low)):
        first, last = np.uint64(low[r]), np.uint64(high[r])
        total = 0.0
        if len(counted):
            for k in range(first, last):
                total += np.float64(values[k]) * counted[columns[k]]
        else:
            for k in range(first, last):
                total += np.float64(values[k])
        # Without a count there is nothing to divide, but where none of the counted genes has one.
        if total == 0.0:
            total = target
        for k in range(first, last):
            value = np.float64(values[k])
            if not log1p:
                out[k] = value * target / total
                continue
            small = np.int64(value)
            if 0 <= small < _TABLE and np.float64(small) == value:
                if computed_for[small] != r:
                    computed_for[small] = r
                    table[small] = np.log1p(value * target / total)
                out[k] = table[small]
            else:
                out[k] = np.log1p(value * target / total)


@compiled
def expm1_rows(values: Any, low: Any, high: Any, out: Any) -> None:
    """``exp(x) - 1`` of the rows' values."""
    for r in range(len(low)):
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            out[k] = np.expm1(np.float64(values[k]))


@compiled
def add_sums(columns: Any, values: Any, low: Any, high: Any, order: Any, group: Any, lookup: Any, out: Any) -> None:
    """Add each row to the row of ``out`` that its group has; rows are taken in an order, those of group -1 left out."""
    for i in range(len(order)):
        r = order[i]
        if group[r] >= 0:
            sums = out[group[r]]
            for k in range(np.uint64(low[r]), np.uint64(high[r])):
                sums[lookup[columns[k]]] += np.float64(values[k])


@compiled
def add_counts(columns: Any, values: Any, low: Any, high: Any, order: Any, group: Any, lookup: Any, out: Any) -> None:
    """Count each group's values that are not zero, as :func:`add_sums` adds them up."""
    for i in range(len(order)):
        r = order[i]
        if group[r] >= 0:
            counts = out[group[r]]
            for k in range(np.uint64(low[r]), np.uint64(high[r])):
                counts[lookup[columns[k]]] += values[k] != 0


@compiled
def first_values(columns: Any, values: Any, low: Any, high: Any, lookup: Any, shift: Any) -> None:
    """Leave in ``shift`` a value of each gene that is hardly ever zero in these rows; 0 for other genes."""
    counts = np.zeros(len(shift), dtype=np.int64)
    for r in range(len(low)):
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            if values[k] != 0:
                column = lookup[columns[k]]
                if counts[column] == 0:
                    shift[column] = np.float64(values[k])
                counts[column] += 1
    for column in range(len(shift)):
        if 10 * counts[column] < 9 * len(low):
            shift[column] = 0.0


@compiled
def add_moments(
    columns: Any, values: Any, low: Any, high: Any, order: Any, group: Any, lookup: Any, shift: Any, out: Any
) -> None:
    """Add up, of values that are not zero, the distance from ``shift``, its square and their number: side by side."""
    for i in range(len(order)):
        r = order[i]
        if group[r] >= 0:
            sums = out[group[r]]
            for k in range(np.uint64(low[r]), np.uint64(high[r])):
                column = lookup[columns[k]]
                value = np.float64(values[k])
                if value != 0.0:
                    distance = value - shift[column]
                    sums[column, 0] += distance
                    sums[column, 1] += distance * distance
                    sums[column, 2] += 1.0


@compiled
def add_extremes(columns: Any, values: Any, low: Any, high: Any, lookup: Any, out: Any) -> None:
    """Smallest and largest of each gene's values that are not zero, and their number: the columns of ``out``."""
    for r in range(len(low)):
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            column = lookup[columns[k]]
            value = np.float64(values[k])
            if value != 0.0:
                out[column, 0] = min(out[column, 0], value)
                out[column, 1] = max(out[column, 1], value)
                out[column, 2] += 1.0


@compiled
def row_statistics(columns: Any, values: Any, low: Any, high: Any, lookup: Any, n_vars: int, out: Any) -> None:
    """Per row: sum, squared distances from the mean, number of values that are not zero, smallest, largest."""
    for r in range(len(low)):
        total, n, least, most = 0.0, 0, np.inf, -np.inf
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            value = np.float64(values[k])
            if lookup[columns[k]] < n_vars and value != 0.0:
                total += value
                n += 1
                least, most = min(least, value), max(most, value)
        mean = total / n_vars if n_vars else np.nan
        squares = (n_vars - n) * mean * mean
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            value = np.float64(values[k])
            if lookup[columns[k]] < n_vars and value != 0.0:
                squares += (value - mean) * (value - mean)
        if n < n_vars:
            least, most = min(least, 0.0), max(most, 0.0)
        out[r, 0], out[r, 1], out[r, 2], out[r, 3], out[r, 4] = total, squares, n, least, most


@compiled
def clipped_sums(columns: Any, values: Any, low: Any, high: Any, group: Any, lookup: Any, most: Any, out: Any) -> None:
    """Sums, and sums of squares, of each group's values where none is larger than ``most`` of its group and gene."""
    for r in range(len(low)):
        if group[r] >= 0:
            sums, limits = out[group[r]], most[group[r]]
            for k in range(np.uint64(low[r]), np.uint64(high[r])):
                column = lookup[columns[k]]
                value = min(np.float64(values[k]), limits[column])
                sums[column, 0] += value
                sums[column, 1] += value * value


# -- principal components ----------------------------------------------------------------------------------------------


@compiled
def add_gram(columns: Any, values: Any, low: Any, high: Any, lookup: Any, sums: Any, gram: Any) -> None:
    """Add each row's products of every two values, the lower triangle, and the row itself."""
    n_vars = len(gram)
    own_columns, own_values = np.empty(n_vars, dtype=np.int64), np.empty(n_vars)
    for r in range(len(low)):
        n = 0
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            column = lookup[columns[k]]
            if column < n_vars:
                own_columns[n], own_values[n] = column, values[k]
                n += 1
        for a in range(n):
            row, value = gram[own_columns[a]], own_values[a]
            sums[own_columns[a]] += value
            # In whatever order the genes come, a product goes to one of the two places; they are added up at the end.
            for b in range(a + 1):
                row[np.uint64(own_columns[b])] += value * own_values[b]


@compiled
def fill_dense(columns: Any, values: Any, low: Any, high: Any, lookup: Any, out: Any) -> None:
    """Rows as a dense array, of zeros before."""
    for r in range(len(low)):
        row = out[r]
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            row[lookup[columns[k]]] = values[k]


@compiled
def project_rows(columns: Any, values: Any, low: Any, high: Any, lookup: Any, loadings: Any, out: Any) -> None:
    """Add to each row of ``out`` the product of a row and the loadings, whose last row is zero."""
    width = loadings.shape[1]
    for r in range(len(low)):
        score = out[r]
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            loading, value = loadings[lookup[columns[k]]], np.float64(values[k])
            for c in range(width):
                score[c] += value * loading[c]


# -- ranks -------------------------------------------------------------------------------------------------------------


@compiled
def entries_per_gene(columns: Any, values: Any, low: Any, high: Any, lookup: Any, counts: Any) -> None:
    """Count values that are not zero per gene."""
    for r in range(len(low)):
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            counts[lookup[columns[k]]] += values[k] != 0


@compiled
def take_entries(
    columns: Any, values: Any, low: Any, high: Any, group: Any, lookup: Any, place: Any, found: Any, found_group: Any
) -> None:
    """Put values that are not zero, and their rows' groups, gene by gene: those of gene j from ``place[j]`` on."""
    n_vars = len(place)
    for r in range(len(low)):
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            column = lookup[columns[k]]
            if column < n_vars and values[k] != 0:
                found[place[column]] = values[k]
                found_group[place[column]] = group[r]
                place[column] += 1


@compiled
def count_bins(
    columns: Any, values: Any, low: Any, high: Any, group: Any, lookup: Any, least: Any, scale: Any, out: Any
) -> None:
    """Count values that are not zero per gene, group and bin: ``out``, whose first and last bin are for zeros."""
    n_vars, last = len(least), out.shape[2] - 3
    for r in range(len(low)):
        for k in range(np.uint64(low[r]), np.uint64(high[r])):
            column = lookup[columns[k]]
            if column < n_vars and values[k] != 0:
                place = np.int64((values[k] - least[column]) * scale[column])
                out[column, group[r], 1 + min(max(place, 0), last)] += 1


@compiled
def rank_sums(values: Any, group: Any, bounds: Any, sizes: Any, reference: int, sums: Any, ties: Any) -> None:
    """Each group's sum of ranks, gene by gene, where cells without an entry have a zero; ties share their mean rank.

    Parameters
    ----------
    values, group, bounds
        Entries of gene j are ``[bounds[j], bounds[j + 1])``, in any order.
    sizes
        Cells of each group that count, those included that are compared with but not tested: ``(genes, groups)``.
    reference
        The group that each other is ranked together with; -1: all groups are ranked together.
    sums, ties
        Sums of ranks and, over values that are tied, of ``t**3 - t``: ``(genes, groups)``, zero before.
    """
    n_groups = sizes.shape[1]
    before, here = np.zeros(n_groups), np.zeros(n_groups)
    present = np.empty(n_groups, dtype=np.int64)
    zeros = np.empty(n_groups)
    for j in range(len(bounds) - 1):
        own, own_group = values[bounds[j] : bounds[j + 1]], group[bounds[j] : bounds[j + 1]]
        order = np.argsort(own)
        before[:] = 0.0
        zeros[:] = sizes[j]
        for g in own_group:
            zeros[g] -= 1.0
        k, zeros_done = 0, False
        while k < len(own) or not zeros_done:
            n_present = 0
            if not zeros_done and (k == len(own) or own[order[k]] > 0):
                zeros_done = True
                for g in range(n_groups):
                    if zeros[g] > 0:
                        here[g] = zeros[g]
                        present[n_present] = g
                        n_present += 1
            else:
                value = own[order[k]]
                while k < len(own) and own[order[k]] == value:
                    g = own_group[order[k]]
                    if here[g] == 0.0:
                        present[n_present] = g
                        n_present += 1
                    here[g] += 1.0
                    k += 1
            if reference < 0:
                _rank_together(before, here, present[:n_present], sums[j], ties[j])
            else:
                _rank_in_pairs(before, here, present[:n_present], reference, sums[j], ties[j])
        if reference < 0:
            ties[j, :] = ties[j, 0]


@compiled
def _rank_together(before: Any, here: Any, present: Any, sums: Any, ties: Any) -> None:
    """Ranks of a value among all cells: ``here`` is how many of each group have it, ``before[0]`` have smaller ones."""
    tied = 0.0
    for g in present:
        tied += here[g]
    rank = before[0] + (tied + 1.0) / 2.0
    for g in present:
        sums[g] += here[g] * rank
        here[g] = 0.0
    before[0] += tied
    ties[0] += tied**3 - tied


@compiled
def _rank_in_pairs(before: Any, here: Any, present: Any, reference: int, sums: Any, ties: Any) -> None:
    """Ranks of one value among the cells of each group and of the reference; ``ties`` of the latter are left to all."""
    others = here[reference]
    alone = others**3 - others
    if alone > 0.0:
        for g in range(len(ties)):
            ties[g] += alone
    for g in present:
        if g != reference:
            tied = here[g] + others
            sums[g] += here[g] * (before[g] + before[reference] + (tied + 1.0) / 2.0)
            ties[g] += tied**3 - tied - alone
            before[g] += here[g]
            here[g] = 0.0
    before[reference] += others
    here[reference] = 0.0
