"""The command line: parse, call, print.

Everything else is imported by the command that needs it, so that ``daodask --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from daodask._cluster import default_workers, open_client
from daodask._terminal import open_console, show_progress
from daodask._version import __version__
from daodask.errors import DaodaskError, FeatureSpaceError, FormatError, SpecError, StoreNotFoundError, UnknownNameError

if TYPE_CHECKING:
    from daodask.build.spec import BuildSpec

__all__ = ["EXIT_CODES", "main"]

OK, FAILED, USAGE, NO_STORE, INTERRUPTED = 0, 1, 2, 3, 130

#: What each exit code means, as ``--help`` has it.
EXIT_CODES: Final = {
    OK: "all is well: every study is in the store, the store is valid",
    FAILED: "a study was refused or failed, the store is not valid, or something else went wrong",
    USAGE: "the command or the build file says something that can't be meant",
    NO_STORE: "there is no store at the URL, or it can't be read",
    INTERRUPTED: "interrupted; the store is at its last snapshot",
}

#: The code of an error is that of the first entry that it is an instance of.
_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (KeyboardInterrupt, INTERRUPTED),
    (SpecError, USAGE),
    (FeatureSpaceError, USAGE),
    (UnknownNameError, USAGE),
    (StoreNotFoundError, NO_STORE),
    (FormatError, NO_STORE),
    (DaodaskError, FAILED),
    (OSError, NO_STORE),
)

#: Of an export: those of a store, told here as well so that ``--help`` imports nothing, and that of h5ad files.
CODECS: Final = ("lz4", "lz4hc", "zstd", "zstd-delta", "none", "gzip")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, see :data:`EXIT_CODES`.

    Parameters
    ----------
    argv
        Arguments without the program's name; those of the process by default.
    """
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output wants no more of it (`| head`); the interpreter would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (DaodaskError, OSError, KeyboardInterrupt) as error:
        print(f"daodask {arguments.command}: {_message(error)}", file=sys.stderr)  # noqa: T201
        return next(code for kind, code in _CODES if isinstance(error, kind))
    return code


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the store is at its last snapshot, and the same command goes on from where it was"
    return str(error) if isinstance(error, DaodaskError) else f"{type(error).__name__}: {error}"


def _print(text: object) -> None:
    print(text)  # noqa: T201  what commands are there for


# -- the commands --------------------------------------------------------------------------------------------------


def _build(arguments: argparse.Namespace) -> int:
    from daodask.build.run import build_store

    spec = _load_spec(arguments.spec)
    if arguments.dry_run:
        return _plan(spec, arguments)
    with (
        open_client(arguments.workers, arguments.threads, arguments.scheduler) as client,
        show_progress(quiet=arguments.quiet) as progress,
    ):
        report = build_store(
            spec,
            arguments.url,
            client=client,
            threads=arguments.threads,
            replace=arguments.replace,
            progress=progress,
            performance_report=arguments.performance_report,
        )
    if arguments.report:
        is_page = arguments.report.lower().endswith((".html", ".htm"))
        _write_text(arguments.report, report.to_html() if is_page else report.to_json())
    _print(report.headline() if arguments.quiet else report)
    return OK if report.ok else FAILED


def _plan(spec: BuildSpec, arguments: argparse.Namespace) -> int:
    """A plan is made in this process: it looks at metadata, for which no cluster has to be started."""
    from daodask.build.run import plan_build

    with show_progress(quiet=arguments.quiet) as progress:
        plan = plan_build(spec, arguments.url, threads=default_workers(), replace=arguments.replace, progress=progress)
    _print(plan)
    return FAILED if any(study.action in ("refused", "failed") for study in plan.studies) else OK


def _load_spec(path: str) -> BuildSpec:
    from daodask.build.spec import load_spec

    try:
        return load_spec(path)
    except StoreNotFoundError as error:  # of the build file, not of a store
        raise SpecError(f"{error}; give the path or URL of a build file") from error


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")


def _info(arguments: argparse.Namespace) -> int:
    from daodask._info import info_text, info_values, open_spaces

    stores = open_spaces(arguments.url, features=arguments.features, snapshot=arguments.snapshot)
    if arguments.json:
        _print(json.dumps(info_values(stores), indent=2, ensure_ascii=False))
    else:
        _print(info_text(stores))
    return OK


def _validate(arguments: argparse.Namespace) -> int:
    from daodask.validate import validate_store

    with (
        open_client(arguments.workers, arguments.threads, arguments.scheduler) as client,
        show_progress(quiet=arguments.quiet) as progress,
    ):
        report = validate_store(
            arguments.url,
            features=arguments.features,
            snapshot=arguments.snapshot,
            client=client,
            threads=arguments.threads,
            progress=progress,
        )
    _print(report.to_json() if arguments.json else report)
    return OK if report.ok else FAILED


def _remove(arguments: argparse.Namespace) -> int:
    from daodask.removal import remove_datasets

    snapshot = remove_datasets(arguments.url, arguments.ids, message=arguments.message)
    ids = ", ".join(dict.fromkeys(arguments.ids))
    _print(f"{arguments.url}: snapshot {snapshot.number} committed without {ids}; earlier snapshots have them still")
    return OK


def _log(arguments: argparse.Namespace) -> int:
    from daodask.history import read_log

    log = read_log(arguments.url)
    _print(log.to_json() if arguments.json else log)
    return OK


def _vacuum(arguments: argparse.Namespace) -> int:
    from daodask.vacuum import plan_vacuum

    plan = plan_vacuum(arguments.url, grace=arguments.grace, keep_snapshots=arguments.keep_snapshots)
    if arguments.delete:
        _print(plan.run())
    else:
        _print(f"{plan}\nnothing was removed: --delete does it")
    return OK


def _export(arguments: argparse.Namespace) -> int:
    from daodask.export.run import export_store
    from daodask.store import open_store

    store = open_store(arguments.url, features=arguments.features, snapshot=arguments.snapshot)
    if arguments.where is not None:
        store = store.subset(arguments.where)
    if arguments.genes is not None:
        store = store[:, _read_names(arguments.genes)]
    with (
        open_client(arguments.workers, arguments.threads, arguments.scheduler) as client,
        show_progress(quiet=arguments.quiet) as progress,
    ):
        report = export_store(
            store,
            arguments.target,
            format=arguments.format,
            layers=arguments.layers,
            dtype=arguments.dtype,
            codec=arguments.codec,
            **({} if arguments.block_rows is None else {"block_rows": arguments.block_rows}),
            by_gene=arguments.by_gene,
            shuffle=arguments.shuffle,
            seed=arguments.seed,
            overwrite=arguments.overwrite,
            client=client,
            threads=arguments.threads,
            progress=progress,
        )
    _print(report.headline() if arguments.quiet else report)
    return OK if report.ok else FAILED


def _read_names(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError as error:  # of a list, not of a store
        raise SpecError(f"--genes: expected a file with a gene id or symbol per line: {error}") from error


def _bench(arguments: argparse.Namespace) -> int:
    from daodask.batches.schedule import Shuffled
    from daodask.bench import bench_store
    from daodask.store import open_store

    default = Shuffled()
    schedule = Shuffled(arguments.run_rows or default.run_rows, arguments.window_rows or default.window_rows)
    with show_progress(quiet=arguments.quiet) as progress:
        report = bench_store(
            open_store(arguments.url, features=arguments.features, snapshot=arguments.snapshot),
            batch_size=arguments.batch_size,
            schedule=schedule,
            dense_genes=arguments.dense_genes,
            obs=arguments.obs,
            memory=arguments.memory,
            threads=arguments.threads,
            epochs=arguments.epochs,
            seconds=arguments.seconds,
            progress=progress,
        )
    _print(report.to_json() if arguments.json else report)
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    from daodask.demo import run_demo

    agreed = run_demo(
        arguments.path,
        inputs=arguments.input,
        by=arguments.by,
        workers=arguments.workers,
        threads=arguments.threads,
        console=open_console(),
    )
    return OK if agreed else FAILED


# -- the parser ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="daodask",
        description="Many single-cell studies into one store, built in parallel and opened lazily, wherever it is.",
        epilog=f"{_MAIN_EXAMPLES}\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"daodask {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_build,
        _add_info,
        _add_validate,
        _add_export,
        _add_log,
        _add_remove,
        _add_vacuum,
        _add_bench,
        _add_demo,
    ):
        add(commands.add_parser)
    return parser


_AddParser: TypeAlias = Callable[..., argparse.ArgumentParser]


def _add(
    add_parser: _AddParser, name: str, run: Callable[[argparse.Namespace], int], about: str, epilog: str
) -> argparse.ArgumentParser:
    parser = add_parser(
        name,
        help=about.partition(":")[0],
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_build(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "build", _build, _BUILD_ABOUT, _BUILD_EXAMPLES)
    parser.add_argument("spec", metavar="SPEC", help="build file (YAML): path or URL")
    parser.add_argument("url", metavar="URL", help="where the store is or will be: path or URL; what is there stays")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--replace", action="store_true", help="put studies that changed in the place of what is there")
    _add_cluster(parser)
    parser.add_argument("--report", metavar="FILE", help="write the report there too: as a page to *.html, else JSON")
    parser.add_argument("--performance-report", metavar="FILE", help="write there, as a page, what the cluster did")
    parser.add_argument("--quiet", action="store_true", help="no progress, and the report in one line")


def _add_info(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "info", _info, _INFO_ABOUT, _INFO_EXAMPLES)
    _add_store(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, with all labels and their counts")


def _add_validate(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "validate", _validate, _VALIDATE_ABOUT, _VALIDATE_EXAMPLES)
    _add_store(parser)
    _add_cluster(parser, in_process=True)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_export(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "export", _export, _EXPORT_ABOUT, _EXPORT_EXAMPLES)
    _add_store(parser, several=False)
    parser.add_argument("target", metavar="OUT", help="path or URL: *.h5ad, *.zarr, or anything else for a store")
    parser.add_argument("--format", choices=("h5ad", "zarr", "store"), help="of OUT, where its name does not tell")
    parser.add_argument("--where", metavar="QUERY", help="only cells that meet it, as: \"cell_type == 'B cell'\"")
    parser.add_argument("--genes", metavar="FILE", help="only these: a gene id or symbol per line, in their order")
    parser.add_argument("--layers", metavar="NAME", nargs="*", help="only these layers (default: all; none: no layer)")
    parser.add_argument(
        "--dtype", choices=("stored", "float32", "float64"), help="of values (default: float32 in files)"
    )
    parser.add_argument("--codec", choices=CODECS, help="default: lz4; of h5ad: none, or gzip")
    parser.add_argument("--block-rows", metavar="N", type=_natural(1), help="cells of a block (default: 16384)")
    parser.add_argument(
        "--by-gene", metavar="MATRIX", nargs="*", help="in another store by gene, too: X, layers/* (default: as it was)"
    )
    parser.add_argument(
        "--shuffle", choices=("none", "within", "global"), default="none", help="cells of another store (default: none)"
    )
    parser.add_argument("--seed", metavar="N", type=_natural(0), default=0, help="of the shuffle (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="put it in the place of what is there")
    _add_cluster(parser, in_process=True)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_remove(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "remove", _remove, _REMOVE_ABOUT, _REMOVE_EXAMPLES)
    parser.add_argument("url", metavar="URL", help="the store: path or URL")
    parser.add_argument("ids", metavar="ID", nargs="+", help="dataset to remove")
    parser.add_argument("--message", metavar="TEXT", default="", help="why, for the log")


def _add_log(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "log", _log, _LOG_ABOUT, _LOG_EXAMPLES)
    parser.add_argument("url", metavar="URL", help="the store: path or URL")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_vacuum(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "vacuum", _vacuum, _VACUUM_ABOUT, _VACUUM_EXAMPLES)
    parser.add_argument("url", metavar="URL", help="the store: path or URL")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say what would be removed; the default")
    what.add_argument("--delete", action="store_true", help="remove it")
    parser.add_argument(
        "--grace", metavar="TIME", default="7d", help="leave what is younger: 90s, 30m, 12h, 7d, 2w (default: 7d)"
    )
    parser.add_argument(
        "--keep-snapshots",
        metavar="N",
        type=_natural(1),
        help="keep the N newest snapshots, and remove older ones (default: keep all)",
    )


def _add_bench(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "bench", _bench, _BENCH_ABOUT, _BENCH_EXAMPLES)
    _add_store(parser, several=False)
    parser.add_argument("--batch-size", metavar="N", type=_natural(1), default=512, help="cells (default: 512)")
    parser.add_argument(
        "--run-rows", metavar="N", type=_natural(1), help="neighbouring cells read as one (default: 64)"
    )
    parser.add_argument(
        "--window-rows", metavar="N", type=_natural(1), help="cells that are shuffled in memory (default: 16384)"
    )
    parser.add_argument(
        "--dense-genes", metavar="N", type=_natural(0), default=0, help="dense batches of so many genes (default: CSR)"
    )
    parser.add_argument(
        "--obs",
        metavar="COL",
        nargs="+",
        default=(),
        help="columns that batches bring (default: cell_type, or another)",
    )
    parser.add_argument("--memory", metavar="SIZE", default="1GiB", help="budget for windows (default: 1GiB)")
    parser.add_argument("--threads", **_threads(default_workers()))
    parser.add_argument("--epochs", metavar="N", type=_natural(1), default=5, help="passes to measure (default: 5)")
    parser.add_argument(
        "--seconds", metavar="S", type=_natural(1), default=30, help="to stay within, about (default: 30)"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_demo(add_parser: _AddParser) -> None:
    parser = _add(add_parser, "demo", _demo, _DEMO_ABOUT, _DEMO_EXAMPLES)
    parser.add_argument("path", metavar="PATH", nargs="?", help="directory to work in; a new temporary one by default")
    parser.add_argument(
        "--input", metavar="FILE", nargs="+", default=[], help="your own h5ad files instead of the demo's"
    )
    parser.add_argument("--by", metavar="COLUMN", help="obs column to total by, with --input (default: dataset)")
    parser.add_argument("--workers", **_workers(None))
    parser.add_argument("--threads", **_threads(1))


def _add_store(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    parser.add_argument("url", metavar="URL", help="the store: path or URL")
    features = "only this feature space (default: all)" if several else "the feature space, where there are several"
    parser.add_argument("--features", metavar="NAME", help=features)
    parser.add_argument("--snapshot", metavar="N", type=int, help="number of the snapshot (default: the newest)")


def _add_cluster(parser: argparse.ArgumentParser, *, in_process: bool = False) -> None:
    """Where to work: by default on a local cluster, or in this process on as many threads as there are cores."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--scheduler", metavar="ADDRESS", help="of a running cluster: tcp://…, tls://…, or its file")
    where.add_argument("--workers", **_workers(0 if in_process else None))
    parser.add_argument("--threads", **_threads(default_workers() if in_process else 1))


def _workers(default: int | None) -> dict[str, Any]:
    said = "one per core" if default is None else default
    text = f"processes of a local Dask cluster; 0: work in this process (default: {said})"
    return {"metavar": "N", "type": _natural(0), "default": default, "help": text}


def _threads(default: int) -> dict[str, Any]:
    return {"metavar": "N", "type": _natural(1), "default": default, "help": f"of each process (default: {default})"}


def _natural(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


# -- what help teaches ---------------------------------------------------------------------------------------------

_MAIN_EXAMPLES = """\
start here:
  daodask demo                               the whole way on real cells, in a temporary directory
  daodask build atlas.yaml gs://bucket/atlas --dry-run
  daodask build atlas.yaml gs://bucket/atlas
  daodask info gs://bucket/atlas
  daodask COMMAND --help                     more on a command
"""

_BUILD_ABOUT = """\
Streamline the studies of a build file into a store: genes onto one feature space, obs onto one schema.

Each study is committed whole or not at all: what is refused or fails is reported with its reason, and the others are
in. A build that was cut off goes on where it was when the same command is run again; one that is complete does nothing.
"""

_BUILD_EXAMPLES = """\
a small build file:
  features: {name: human, reference: genes.csv.gz}    # id,symbol,version,length,biotype; or union | intersection
  obs:
    cell_type: {missing: unknown}
  studies:
    - id: pbmc
      source: data/pbmc.h5ad
      layer: X                                        # where the counts are: X | raw | layers/<name>
      obs: {cell_type: celltype}                      # store column: source column

examples:
  daodask build atlas.yaml atlas --dry-run            what would be done
  daodask build atlas.yaml atlas                      on a local Dask cluster, one worker per core
  daodask build atlas.yaml atlas --workers 0          in this process
  daodask build atlas.yaml gs://bucket/atlas --scheduler tcp://10.0.0.5:8786 --report build.json
  daodask build atlas.yaml atlas --replace            studies that changed replace their datasets

exit codes: 0 every study is in, 1 a study was refused or failed, 2 the build file can't be meant, 3 the store can't be
read
"""

_INFO_ABOUT = """\
Show what a store holds: datasets, cells, genes, sizes, and what its obs columns have.

Reads the snapshot only, so that it is quick whatever the size of the store.
"""

_INFO_EXAMPLES = """\
examples:
  daodask info gs://bucket/atlas
  daodask info atlas --features human                 one of several feature spaces
  daodask info atlas --snapshot 2                     as it was
  daodask info atlas --json | jq '.features[].n_obs'

exit codes: 0 shown, 2 there is no such feature space, 3 there is no store at the URL, or it can't be read
"""

_VALIDATE_ABOUT = """\
Check a store: every file, matrix and obs column against what the snapshot says of it.

Reads every byte, block by block. Notes (files that nothing reads) don't make a store invalid.
"""

_VALIDATE_EXAMPLES = """\
examples:
  daodask validate atlas
  daodask validate atlas --threads 8
  daodask validate gs://bucket/atlas --scheduler tcp://10.0.0.5:8786
  daodask validate atlas --json | jq .findings

exit codes: 0 valid, 1 not valid, 2 there is no such feature space, 3 there is no store at the URL, or it can't be read
"""

_EXPORT_ABOUT = """\
Take cells and genes out of a store: into one h5ad file, one AnnData zarr, or another store.

An h5ad or zarr holds what store.to_anndata() returns. Another store may have another codec and other blocks, and keeps
the datasets apart. Nothing half-written is ever seen under the name of OUT.
"""

_EXPORT_EXAMPLES = """\
examples:
  daodask export atlas atlas.h5ad                     all of it, block by block: memory does not grow with it
  daodask export atlas bcells.h5ad --where "cell_type == 'B cell' and n_counts > 500"
  daodask export atlas markers.zarr --genes markers.txt --workers 4
  daodask export gs://bucket/atlas cold --codec zstd-delta --block-rows 65536

exit codes: 0 written, 1 a dataset was refused or failed, 2 the command can't be meant, or OUT is taken, 3 there is no
store at the URL
"""

_REMOVE_ABOUT = """\
Remove datasets from a store: by a new snapshot that does not name them.

Their files stay, as earlier snapshots have them still; `daodask vacuum --keep-snapshots` removes what no snapshot names
any more.
"""

_REMOVE_EXAMPLES = """\
examples:
  daodask remove atlas pbmc_facs
  daodask remove gs://bucket/atlas pbmc_facs liver --message "consent withdrawn"
  daodask vacuum atlas --keep-snapshots 1 --grace 0 --delete     and their files too, for good

exit codes: 0 removed, 2 there is no such dataset, 3 there is no store at the URL, or it can't be read
"""

_LOG_ABOUT = """\
List the snapshots of a store, newest first: who committed them, when and what changed.

Who is $DAODASK_AUTHOR of that time, or user@host.
"""

_LOG_EXAMPLES = """\
examples:
  daodask log gs://bucket/atlas
  daodask log atlas --json | jq '.entries[] | {snapshot, author, added}'
  daodask info atlas --snapshot 2                     what it held then

exit codes: 0 shown, 3 there is no store at the URL, or it can't be read
"""

_VACUUM_ABOUT = """\
Remove what no snapshot names: replaced and removed datasets, half-built ones, scratch. Without --delete: say what.

What was written within the grace time is left alone, as a builder may be about to commit it. Files that daodask has not
named are never touched. Interrupted at any point it leaves a whole store.
"""

_VACUUM_EXAMPLES = """\
examples:
  daodask vacuum atlas                                what there is to remove
  daodask vacuum gs://bucket/atlas --delete
  daodask vacuum atlas --keep-snapshots 5 --delete    older ones can't be opened any more
  daodask vacuum atlas --grace 0 --delete             only where nobody is building

exit codes: 0 done or shown, 2 a time that can't be meant, 3 there is no store at the URL, or it can't be read
"""

_BENCH_ABOUT = """\
Measure a store: how fast shuffled batches come from it, and how well they are mixed.

Says how many cells a second there are, how many bytes that is, and how many cells a second decompression alone makes of
the same chunks with the same threads; how soon the first batch is there, how long a consumer waits for others, and how
varied batches are in datasets and labels against an independent draw. A large store is read in part.
"""

_BENCH_EXAMPLES = """\
examples:
  daodask bench atlas
  daodask bench atlas --features human --batch-size 4096 --run-rows 512
  daodask bench atlas --dense-genes 2000 --obs cell_type donor_id
  daodask bench gs://bucket/atlas --seconds 120 --memory 4GiB
  daodask bench atlas --json | jq .cells.median

exit codes: 0 measured, 2 there is no such feature space or column, or a window doesn't fit the memory, 3 there is no
store at the URL, or it can't be read
"""

_DEMO_ABOUT = """\
Run the main job on real cells: build three differing studies, open the store, subset, total, iterate over batches.

The cells (700 PBMC of 10x Genomics) come with scanpy; no network is needed. Totals are computed twice, through dask and
straight from the files, and compared. Run again with the same PATH, it finds the store as it is.
"""

_DEMO_EXAMPLES = """\
examples:
  daodask demo
  daodask demo ~/daodask-demo
  daodask demo --input mine.h5ad other.h5ad           your own studies, on the union of their genes
  daodask demo --input mine.h5ad --by cell_type

exit codes: 0 all totals agree, 1 they don't, or a study was refused
"""
