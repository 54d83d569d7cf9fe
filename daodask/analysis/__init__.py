"""Analysis of whole stores: reductions over aligned blocks, tree-reduced by threads or by a Dask cluster."""
