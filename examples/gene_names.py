"""How many of a study's gene names a reference knows, and what share of its counts they hold.

    python examples/gene_names.py [BUILD_FILE]

For each study of a feature space that has a table of synonyms: its names as they are, and with previous and alias
symbols. Nothing is written; a dry run of the build says what happens to each name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from daodask import load_spec
from daodask.build.genes import GeneLookup, feature_space, map_genes, read_reference, read_synonyms
from daodask.build.spec import FeatureSpec, StudySpec
from daodask.sources import open_source

ATLAS = Path(__file__).with_name("atlas.yaml")
#: Columns of var with symbols, which are looked at too where genes go by their ids.
SYMBOLS = ("symbol", "gene_symbols", "feature_name")
ROW = "| {:<20} | {:<6} | {:>7} | {:>9} | {:>9} | {:>9} | {:>9} |"


def lookups(space: FeatureSpec) -> tuple[GeneLookup, GeneLookup]:
    """Return what names stand for, without and with synonyms, for genes of all biotypes."""
    reference = read_reference(space.reference.read())
    genes = feature_space(FeatureSpec(space.name, space.reference), reference, [])
    return GeneLookup.build(genes, reference), GeneLookup.build(genes, reference, read_synonyms(space.synonyms.read()))


def counts_and_names(study: StudySpec) -> tuple[np.ndarray, Iterator[tuple[str, list[str]]]]:
    """Return the counts of each gene, and its names of each kind."""
    source = open_source(study.source)
    total = np.zeros(len(source.var(study.matrix)))
    for start in range(0, source.n_obs, 4096):
        rows = source.read_matrix(study.matrix, start, min(start + 4096, source.n_obs))
        total += np.asarray(rows.sum(axis=0, dtype=np.float64)).ravel()
    var = source.var(study.matrix)
    index = [str(name) for name in var.index]
    kind = "id" if index[0].startswith("ENS") else "symbol"
    names = [(kind, index), *(("symbol", [str(s) for s in var[c]]) for c in SYMBOLS if kind == "id" and c in var)]
    return total, iter(names)


def main(build_file: str | Path = ATLAS) -> None:
    """Print the table."""
    spec = load_spec(build_file)
    print(ROW.format("study", "names", "genes", "known", "counts", "synonyms", "counts"))
    print(ROW.format("-" * 20, "-" * 6, "-" * 6 + ":", *["-" * 8 + ":"] * 4))
    for space in (f for f in spec.features if f.synonyms is not None):
        both = lookups(space)
        for study in (s for s in spec.studies if s.features == space.name):
            total, kinds = counts_and_names(study)
            for kind, names in kinds:
                known = [map_genes(names, lookup).target >= 0 for lookup in both]
                shares = [x for k in known for x in (k.mean(), total[k].sum() / total.sum())]
                print(ROW.format(study.id, kind, f"{len(names):,}", *(f"{share:.1%}" for share in shares)))


if __name__ == "__main__":
    main(*sys.argv[1:2])
