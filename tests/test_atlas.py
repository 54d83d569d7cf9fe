"""The atlas of examples/atlas.yaml, cell by cell and gene by gene against what anndata, scanpy and pandas read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask
from daodask.build.report import StudyReport
from daodask.errors import FeatureSpaceError
from daodask.storage import StoreLocation

pytestmark = pytest.mark.filterwarnings(
    "ignore:Observation names are not unique:UserWarning",
    # The oracle says so of old files.
    "ignore::anndata.OldFormatWarning",
    "ignore:Moving element:FutureWarning",
)

ATLAS = Path(__file__).parents[1] / "examples" / "atlas.yaml"
#: Study: file, matrix with the counts, and what its genes are named by.
STUDIES = {
    "pbmc_facs": ("pbmc_facs_zheng17.h5ad", "X", "ids"),
    "kang18": ("kang18_8k.h5ad", "X", "ids"),
    "pbmc_1k_v2": ("pbmc_1k_v2_mtx", "X", "ids"),
    "liver_bcells": ("liver_bcells_cellxgene_v5.h5ad", "raw", "ids"),
    "pbmc_stim": ("pbmc_stim_counts_layer.h5ad", "counts", "symbols"),
    "pbmc_frozen": ("pbmc_frozen_donorA_dense.h5ad", "X", "symbols"),
    "sc_celseq2": ("sc_celseq2.h5ad", "X", "ids"),
    "sc_dropseq": ("sc_dropseq.h5ad", "X", "ids"),
    "heart_1k": ("mouse_heart_1k_v2.10x.h5", "X", "ids"),
    "paul15": ("paul15_myeloid_dense.h5ad", "X", "symbols"),
    "pancreas": ("pancreas_endocrinogenesis.h5ad", "X", "symbols"),
}
MOUSE = ("heart_1k", "paul15", "pancreas")
HUMAN = tuple(name for name in STUDIES if name not in MOUSE)


# -- oracles -----------------------------------------------------------------------------------------------------------


def scanpy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("scanpy")


@cache
def read(folder: Path, name: str) -> anndata.AnnData:
    path = folder / "studies" / STUDIES[name][0]
    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path)
    sc = scanpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.is_dir():
            return sc.read_10x_mtx(path, var_names="gene_ids")
        adata = sc.read_10x_h5(path)
    adata.var_names = adata.var["gene_ids"]
    return adata


def counts_of(folder: Path, name: str) -> tuple[sp.csr_matrix, list[str]]:
    """Counts of a study as float64, which holds each and their sums, and its gene names."""
    adata, where = read(folder, name), STUDIES[name][1]
    holder = adata.raw if where == "raw" else adata
    values = adata.layers["counts"] if where == "counts" else holder.X
    return sp.csr_matrix(values).astype(np.float64), holder.var_names.tolist()


@cache
def reference(folder: Path, organism: str) -> pd.DataFrame:
    names = ["id", "symbol", "version", "length", "biotype"]
    frame = pd.read_csv(
        folder / "genes" / f"genes_{organism}.csv.gz", header=None, names=names, keep_default_na=False, dtype=str
    )
    frame["id"] = frame["id"].str.replace(r"\.\d+", "", regex=True)
    return frame[~frame["id"].str.endswith("_PAR_Y")].reset_index(drop=True)


def genes_of(folder: Path, name: str) -> list[str]:
    """Protein-coding genes of a study's organism, in the reference's order."""
    table = reference(folder, "mus_musculus" if name in MOUSE else "homo_sapiens")
    return table.loc[table["biotype"] == "protein_coding", "id"].tolist()


@cache
def names_of_genes(folder: Path, organism: str) -> dict[str, str]:
    """Gene id of every symbol, and of human approved, previous and alias symbols, as far as they stand for one."""
    table = reference(folder, organism)
    rows = [(r.symbol, 0, r.id) for r in table.itertuples() if r.symbol]
    if organism == "homo_sapiens":
        hgnc = pd.read_csv(
            folder / "genes" / "hgnc_complete_set.txt.gz", sep="\t", dtype=str, keep_default_na=False, low_memory=False
        )
        known = set(table["id"])
        by_symbol = table.drop_duplicates("symbol", keep=False).set_index("symbol")["id"]
        for gene in hgnc.itertuples():
            found = gene.ensembl_gene_id if gene.ensembl_gene_id in known else by_symbol.get(gene.symbol)
            for level, names in enumerate((gene.symbol, gene.prev_symbol, gene.alias_symbol), start=1):
                rows += [(n, level, found) for n in names.split("|") if n and found]
    frame = pd.DataFrame(rows, columns=["name", "level", "id"]).drop_duplicates()
    # A symbol of several genes is settled by the approved one; all else is decided by the first level that knows it.
    several = frame[frame["level"] == 0].groupby("name")["id"].nunique()
    unclear = frame["name"].isin(several.index[several > 1])
    approved = set(frame.loc[frame["level"] == 1, "name"])
    frame = frame[~(unclear & (frame["level"] == 0) & frame["name"].isin(approved))]
    first = frame[frame["level"] == frame.groupby("name")["level"].transform("min")]
    return first.drop_duplicates("name", keep=False).set_index("name")["id"].to_dict()


def places(folder: Path, name: str) -> sp.csr_matrix:
    """Source genes x store genes: 1 where the counts of one go to the other."""
    _, names = counts_of(folder, name)
    column = {gene: i for i, gene in enumerate(genes_of(folder, name))}
    if STUDIES[name][2] == "ids":
        targets = [column.get(n) for n in names]
    else:
        known = names_of_genes(folder, "mus_musculus" if name in MOUSE else "homo_sapiens")
        ids = set(reference(folder, "mus_musculus" if name in MOUSE else "homo_sapiens")["id"])
        targets = [column.get(n if n in ids else known.get(n, "")) for n in names]
    pairs = [(row, target) for row, target in enumerate(targets) if target is not None]
    rows, columns = np.array(pairs).T
    return sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(column)))


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atlas(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StoreLocation, Mapping[str, StudyReport]]:
    """Return where the atlas is, and the report of each study."""
    location = StoreLocation.parse(tmp_path_factory.mktemp("atlas") / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAODASK_DATA", str(data))
        report = daodask.build_store(ATLAS, location, threads=2)
    assert report.ok, report
    return location, {study.id: study for study in report.studies}


@pytest.fixture(scope="module")
def human(atlas: tuple[StoreLocation, Any]) -> daodask.Store:
    return daodask.open_store(atlas[0], features="human")


@pytest.fixture(scope="module")
def mouse(atlas: tuple[StoreLocation, Any]) -> daodask.Store:
    return daodask.open_store(atlas[0], features="mouse")


def of(name: str, human: daodask.Store, mouse: daodask.Store) -> daodask.Store:
    return (mouse if name in MOUSE else human).subset(dataset=name)


def total(values: Any, axis: int | None = None) -> Any:
    return np.asarray(values.astype(np.float64).sum(axis=axis)).ravel()


@pytest.mark.parametrize("name", STUDIES)
def test_counts_per_cell_and_gene(
    data: Path,
    atlas: tuple[StoreLocation, Mapping[str, StudyReport]],
    human: daodask.Store,
    mouse: daodask.Store,
    name: str,
) -> None:
    counts, names = counts_of(data, name)
    place, report = places(data, name), atlas[1][name]
    store = of(name, human, mouse)
    found = store.to_anndata()
    assert found.obs_names.tolist() == read(data, name).obs_names.tolist()
    assert found.var_names.tolist() == genes_of(data, name)
    # Each count that has a place is there, and those of several source genes on one are added up.
    expected = sp.csr_matrix(counts @ place)
    assert (found.X.astype(np.float64) != expected).nnz == 0
    kept = np.asarray(place.sum(axis=1)).ravel() == 1
    np.testing.assert_array_equal(total(found.X, axis=1), total(counts[:, kept], axis=1))
    np.testing.assert_array_equal(total(found.X, axis=0), total(counts, axis=0) @ place)
    # What is not there is what the report says.
    dropped = total(counts[:, ~kept], axis=1)
    np.testing.assert_array_equal(total(found.X, axis=1) + dropped, total(counts, axis=1))
    targets = np.asarray(place.sum(axis=0)).ravel()
    assert (report.n_obs, report.counts_total, report.counts_kept) == (
        len(found),
        counts.sum(),
        found.X.sum(dtype="f8"),
    )
    assert (report.genes_matched, sum(report.genes_dropped.values())) == (kept.sum(), len(names) - kept.sum())
    assert (report.genes_summed, report.genes_padded) == (kept.sum() - (targets > 0).sum(), (targets == 0).sum())
    assert store.measured[name].tolist() == (targets > 0).tolist()


def test_counts_kept_of_all(atlas: tuple[StoreLocation, Mapping[str, StudyReport]]) -> None:
    kept = {name: round(report.kept_percent, 2) for name, report in atlas[1].items()}
    assert kept == {
        "pbmc_facs": 96.07,
        "kang18": 92.53,
        "pbmc_1k_v2": 93.85,
        "liver_bcells": 58.12,
        "pbmc_stim": 93.46,
        "pbmc_frozen": 96.61,
        "sc_celseq2": 85.25,
        "sc_dropseq": 86.43,
        "heart_1k": 97.18,
        "paul15": 90.64,
        "pancreas": 92.08,
    }


def test_two_feature_spaces(atlas: tuple[StoreLocation, Any], human: daodask.Store, mouse: daodask.Store) -> None:
    with pytest.raises(FeatureSpaceError) as caught:
        daodask.open_store(atlas[0])
    assert "'human' (20120 genes, 8 datasets), 'mouse' (21807 genes, 3 datasets)" in str(caught.value)
    with pytest.raises(FeatureSpaceError, match="no feature space 'rat'; it has: 'human'"):
        daodask.open_store(atlas[0], features="rat")
    assert (human.shape, tuple(human.datasets.index)) == ((19_095, 20_120), HUMAN)
    assert (mouse.shape, tuple(mouse.datasets.index)) == ((7_068, 21_807), MOUSE)


def test_a_layer_on_the_same_genes(data: Path, human: daodask.Store) -> None:
    found = human.subset(dataset="pbmc_stim").to_anndata()
    source = read(data, "pbmc_stim")
    expected = sp.csr_matrix(sp.csr_matrix(source.X).astype(np.float64) @ places(data, "pbmc_stim"))
    assert (found.layers["lognorm"].astype(np.float64) != expected).nnz == 0


@pytest.mark.parametrize("layer", ["spliced", "unspliced"])
def test_spliced_and_unspliced(data: Path, mouse: daodask.Store, layer: str) -> None:
    found = mouse.subset(dataset="pancreas").to_anndata()
    expected = sp.csr_matrix(read(data, "pancreas").layers[layer]).astype(np.float64) @ places(data, "pancreas")
    assert (found.layers[layer].astype(np.float64) != sp.csr_matrix(expected)).nnz == 0


def test_an_embedding(data: Path, human: daodask.Store) -> None:
    found = human.subset(dataset="liver_bcells").to_anndata()
    assert list(found.obsm) == ["X_umap"]
    np.testing.assert_array_equal(found.obsm["X_umap"], read(data, "liver_bcells").obsm["X_umap"])


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("pbmc_facs", {"subpop": "subpop"}),
        ("kang18", {"donor_id": "sample_id"}),
        (
            "liver_bcells",
            {c: c for c in ("donor_id", "sex_ontology_term_id", "disease_ontology_term_id", "suspension_type")}
            | {"nCount_RNA": "nCount_RNA"},
        ),
        ("pbmc_stim", {"stim": "stim"}),
        ("sc_celseq2", {c: c for c in ("cell_line", "demuxlet_cls", "outliers", "mapped_to_exon", "mapped_to_MT")}),
        ("sc_dropseq", {c: c for c in ("cell_line", "outliers", "mapped_to_ERCC")}),
        (
            "paul15",
            {c: c for c in ("CD34_measurement", "cell_stemness_score", "no_expression", "Pseudotime", "State")}
            | {"cell_type": "cell_type2"},
        ),
        ("pancreas", {c: c for c in ("S_score", "G2M_score", "nCount_spliced")} | {"cell_type": "clusters"}),
    ],
)
def test_columns(data: Path, human: daodask.Store, mouse: daodask.Store, name: str, columns: dict[str, str]) -> None:
    found, source = of(name, human, mouse).to_anndata().obs, read(data, name).obs
    for column, original in columns.items():
        values, expected = found[column], source[original]
        assert values.isna().tolist() == expected.isna().tolist()
        assert values.dropna().tolist() == expected.dropna().tolist()
        assert isinstance(values.dtype, pd.CategoricalDtype) == isinstance(expected.dtype, pd.CategoricalDtype)


def test_joined_and_mapped_columns(data: Path, human: daodask.Store, mouse: daodask.Store) -> None:
    source = read(data, "paul15").obs
    joined = [f"{mouse_id}_{plate}" for mouse_id, plate in zip(source["Mouse_ID"], source["Plate_ID"], strict=True)]
    assert mouse.subset(dataset="paul15").to_anndata().obs["donor_id"].tolist() == joined
    terms = read(data, "liver_bcells").obs["assay_ontology_term_id"]
    assays = terms.astype(object).map({"EFO:0009899": "10x 3' v2", "EFO:0009922": "10x 3' v3"})
    assert human.subset(dataset="liver_bcells").to_anndata().obs["assay"].tolist() == assays.tolist()


# -- subsets -----------------------------------------------------------------------------------------------------------


def assert_cells(data: Path, store: daodask.Store, wanted: Mapping[str, Any]) -> None:
    """The store has exactly these cells (a mask per study), in order, with the sources' counts."""
    found = store.to_anndata()
    start = 0
    assert found.obs["dataset"].unique().tolist() == [name for name, mask in wanted.items() if np.any(mask)]
    assert tuple(store.datasets.index) == tuple(name for name, mask in wanted.items() if np.any(mask))
    for name, mask in wanted.items():
        rows = np.flatnonzero(mask)
        stop = start + len(rows)
        assert found.obs_names[start:stop].tolist() == read(data, name).obs_names[rows].tolist()
        expected = sp.csr_matrix(counts_of(data, name)[0][rows] @ places(data, name))
        assert (found.X[start:stop].astype(np.float64) != expected).nnz == 0
        start = stop
    assert start == store.n_obs == store.X.shape[0] == len(store.obs)


#: Cell type: what the sources call it.
CELL_TYPES = {
    "B cell": {
        "pbmc_facs": ("celltype", ["CD19+ B"]),
        "kang18": ("cluster_id", ["B cells"]),
        "liver_bcells": ("author_cell_type", ["Mature B cells"]),
    },
    "monocyte": {"pbmc_facs": ("celltype", ["CD14+ Monocyte"]), "kang18": ("cluster_id", ["CD14+ Monocytes"])},
    "CD4 T cell": {
        "pbmc_facs": (
            "celltype",
            ["CD4+ T Helper2", "CD4+/CD25 T Reg", "CD4+/CD45RA+/CD25- Naive T", "CD4+/CD45RO+ Memory"],
        ),
        "kang18": ("cluster_id", ["CD4 T cells"]),
    },
    "plasma cell": {"liver_bcells": ("author_cell_type", ["Plasma cells"])},
}


def has_type(data: Path, name: str, *cell_types: str) -> Any:
    mask = np.zeros(read(data, name).n_obs, dtype=bool)
    for cell_type in cell_types:
        if name in CELL_TYPES[cell_type]:
            column, labels = CELL_TYPES[cell_type][name]
            mask |= read(data, name).obs[column].isin(labels).to_numpy()
    return mask


@pytest.mark.parametrize("cell_types", [["B cell"], ["monocyte"], ["plasma cell"], ["CD4 T cell", "B cell"]])
def test_subset_by_cell_type(data: Path, human: daodask.Store, cell_types: list[str]) -> None:
    store = human.subset(cell_type=cell_types[0] if len(cell_types) == 1 else cell_types)
    wanted = {name: has_type(data, name, *cell_types) for name in HUMAN}
    assert_cells(data, store, wanted)
    counted = {t: sum(int(has_type(data, name, t).sum()) for name in HUMAN) for t in cell_types}
    assert {t: int(n) for t, n in store.value_counts("cell_type").items()} == counted
    assert {t: int(human.value_counts("cell_type")[t]) for t in cell_types} == counted


def test_exclude(data: Path, human: daodask.Store) -> None:
    types = ["CD4 T cell", "monocyte"]
    store = human.subset(tissue=["blood", "liver"], exclude={"cell_type": types, "donor_id": ["1015", "donor A"]})
    wanted = {name: ~has_type(data, name, *types) for name in HUMAN if not name.startswith("sc_")}
    wanted["kang18"] &= (read(data, "kang18").obs["sample_id"] != "1015").to_numpy()
    wanted["pbmc_frozen"][:] = False
    # Studies that don't know their donors stay.
    assert wanted["pbmc_facs"].any()
    assert_cells(data, store, wanted)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (
            "nCount_RNA > 500 and cell_type == 'B cell'",
            {"liver_bcells": "nCount_RNA > 500 and author_cell_type == 'Mature B cells'"},
        ),
        (
            "mapped_to_exon >= 100000 and not outliers and cell_line in ['H1975', 'HCC827']",
            dict.fromkeys(
                ("sc_celseq2", "sc_dropseq"),
                "mapped_to_exon >= 100000 and not outliers and cell_line in ['H1975', 'HCC827']",
            ),
        ),
        ("stim == 'stim' or donor_id == '1256'", {"kang18": "sample_id == '1256'", "pbmc_stim": "stim == 'stim'"}),
        (
            "Pseudotime > 5 and cell_type != 'Erythrocyte' and CD34_measurement < 1000",
            {"paul15": "Pseudotime > 5 and cell_type2 != 'Erythrocyte' and CD34_measurement < 1000"},
        ),
        ("State in [1, 3, 11] or S_score > 0.2", {"paul15": "State in [1, 3, 11]", "pancreas": "S_score > 0.2"}),
        ("cell_stemness_score < -1e300", {"paul15": "cell_stemness_score < -1e300"}),
    ],
)
def test_query(data: Path, human: daodask.Store, mouse: daodask.Store, query: str, wanted: dict[str, str]) -> None:
    store = mouse if set(wanted) <= set(MOUSE) else human
    masks = {}
    for name, condition in wanted.items():
        obs = read(data, name).obs.reset_index(drop=True)
        masks[name] = obs.index.isin(obs.query(condition, engine="python").index)
        assert masks[name].any()
    assert_cells(data, store.subset(query), masks)


# -- what is refused ---------------------------------------------------------------------------------------------------


def listing(location: StoreLocation) -> dict[str, tuple[int, int]]:
    """Every file below a store, with size and time."""
    stats = {str(p): p.stat() for p in Path(location.path).rglob("*") if p.is_file()}
    return {path: (s.st_size, s.st_mtime_ns) for path, s in stats.items()}


NOT_COUNTS = "expected counts (integral, non-negative, finite), got "
OTHER_ORGANISM = (
    "expected a study of Homo sapiens, the organism of the feature space 'human', got Sus scrofa (uns.organism)"
)
UNTOLD_ORGANISM = (
    "expected a study of Homo sapiens, the organism of the feature space 'human', got one whose organism neither its "
    "obs nor its gene names tell; say uns: {organism: …}"
)


@pytest.mark.parametrize(
    ("name", "space", "study", "reason"),
    [
        ("oligodendroglioma_tpm", {}, {}, NOT_COUNTS),
        ("oligodendroglioma_tpm", {"organism": "human"}, {"uns": {"organism": "human"}}, NOT_COUNTS),
        ("pig_small_airway", {}, {"uns": {"organism": "Sus scrofa"}}, OTHER_ORGANISM),
        ("pig_small_airway", {"organism": "Homo sapiens"}, {"uns": {"organism": "pig"}}, OTHER_ORGANISM),
        ("pig_small_airway", {"organism": "Homo sapiens"}, {}, UNTOLD_ORGANISM),
    ],
)
def test_refused(
    data: Path, tmp_path: Path, name: str, space: dict[str, Any], study: dict[str, Any], reason: str
) -> None:
    location = StoreLocation.parse(tmp_path / "store")
    features = {"name": "human", "reference": data / "genes" / "genes_homo_sapiens.csv.gz", **space}
    good = {"id": "good", "source": data / "studies" / "sc_dropseq.h5ad"}
    bad = {"id": "bad", "source": data / "refuse" / f"{name}.h5ad", **study}
    spec = {"features": features, "X": {"kind": "counts"}}
    alone = daodask.build_store({**spec, "studies": [bad]}, location)
    assert [(s.status, s.reason[: len(reason)]) for s in alone.studies] == [("refused", reason)]
    assert (alone.snapshot, listing(location)) == (0, {})
    assert daodask.build_store({**spec, "studies": [good]}, location).ok
    before = listing(location)
    report = daodask.build_store({**spec, "studies": [bad, good]}, location)
    assert [s.status for s in report.studies] == ["refused", "unchanged"]
    assert listing(location) == before
    assert location.list() == ("datasets", "features", "snapshots")
    assert {d.id for d in daodask.open_store(location).snapshot.datasets} == {"good"}


# -- old and odd files -------------------------------------------------------------------------------------------------

FORMATS = {
    "10x_pbmc68k_reduced.2018": "normalised",
    "10x_pbmc68k_reduced.current": "normalised",
    "10x_pbmc68k_reduced.v0.5": "normalised",
    "anndata_v0.7.0": "other",
    "anndata_v0.7.8": "other",
    "pbmc-small-x-csc.1a47f8": "normalised",
    "pbmc-small-x-csr.50cb4e": "normalised",
    "pbmc-small-x-dense.1e5540": "normalised",
    "pbmc-small.1e912f": "other",
    "pbmc-small.842fc1": "other",
}


def test_old_and_odd_files_are_studies(data: Path, tmp_path: Path) -> None:
    files = {name: data / "formats" / f"{name}.h5ad" for name in FORMATS}
    ids = {name: name.replace(".", "_") for name in FORMATS}
    studies = [
        {"id": ids[name], "source": files[name], "X": {"kind": kind}, "features": ids[name], "keep": "all"}
        for name, kind in FORMATS.items()
    ]
    features = [{"name": ids[name], "reference": "union"} for name in FORMATS]
    location = StoreLocation.parse(tmp_path / "store")
    report = daodask.build_store({"features": features, "studies": studies}, location)
    assert report.ok, report
    for name, file in files.items():
        oracle = anndata.read_h5ad(file)
        store = daodask.open_store(location, features=ids[name])
        found = store.to_anndata()
        assert found.obs_names.tolist() == oracle.obs_names.tolist()
        assert found.var_names.tolist() == oracle.var_names.tolist()
        expected = oracle.X.toarray() if sp.issparse(oracle.X) else oracle.X
        np.testing.assert_array_equal(found.X.toarray().astype(np.float64), np.asarray(expected, dtype=np.float64))
        assert store.datasets["kind"].tolist() == [FORMATS[name]]
        assert set(found.obs) == {"dataset", *oracle.obs}
        for column in oracle.obs:
            assert found.obs[column].tolist() == pytest.approx(oracle.obs[column].tolist(), abs=0, nan_ok=True)
