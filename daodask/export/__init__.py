"""Taking a store, or a selection of one, out: into one h5ad, one AnnData zarr, or another store."""
