"""Any order of building, adding, replacing, removing, crashing, resuming, overtaking and vacuuming, against a dict."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import daodask
from daodask.errors import StoreNotFoundError, UnknownNameError
from daodask.snapshots import snapshot_numbers
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata, coordinate_counts

NUMBER = itertools.count()
N_VARS = 6
IDS = ("a", "b", "c")
VERSIONS = range(3)

ids, versions = st.sampled_from(IDS), st.sampled_from(VERSIONS)
#: Of a build: which id has which content.
wishes = st.dictionaries(ids, versions, min_size=1, max_size=2)


@dataclass(frozen=True)
class Content:
    """A study: each version is of other rows."""

    id: str
    version: int

    @property
    def first(self) -> int:
        return 1000 * IDS.index(self.id) + 100 * self.version

    @property
    def n_obs(self) -> int:
        return 4 + self.version


class Crash(BaseException):
    """Ends the process, as far as any code can see."""


@contextlib.contextmanager
def crashing(at: int, *, after: bool) -> Iterator[None]:
    """Crash at the ``at``-th write."""
    numbers = itertools.count(1)

    def crashes(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(location: StoreLocation, data: bytes, **options: bool) -> Any:
            now = next(numbers) == at
            if now and not after:
                raise Crash
            result = function(location, data, **options)
            if now:
                raise Crash
            return result

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreLocation, "write", crashes(StoreLocation.write))
        patch.setattr(StoreLocation, "create", crashes(StoreLocation.create))
        yield


@contextlib.contextmanager
def overtaken(by: Callable[[], None]) -> Iterator[None]:
    """Let somebody else have a turn just before the next snapshot is created."""
    create, turns = StoreLocation.create, iter([by])

    def late(location: StoreLocation, data: bytes) -> bool:
        if "/snapshots/" in location.url:
            for turn in turns:
                turn()
        return create(location, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreLocation, "create", late)
        yield


class StoreMachine(RuleBasedStateMachine):
    """A store, and what should be in it: per snapshot that is kept, the contents by id, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[int, dict[str, Content]] = {}
        self.unfinished: dict[str, int] | None = None
        self.folder = ""

    @initialize(where=st.sampled_from(["local", "memory"]))
    def begin(self, where: str) -> None:
        if where == "local":
            self.folder = tempfile.mkdtemp(prefix="daodask-states-")
            self.location = StoreLocation.parse(f"{self.folder}/store")
        else:
            self.location = StoreLocation.parse(f"memory://states-{next(NUMBER)}")

    def teardown(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder)
        elif hasattr(self, "location"):
            self.location.remove()

    # -- the model -----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> dict[str, Content]:
        return self.history[max(self.history)] if self.history else {}

    def expect(self, wish: dict[str, int], *, replace: bool, base: dict[str, Content] | None = None) -> dict[str, str]:
        """Statuses of a build, which is committed in the model; ``base`` is what it saw when it was planned."""
        planned = self.now if base is None else base
        statuses, contents = {}, dict(self.now)
        for name, version in wish.items():
            new, old, there = Content(name, version), planned.get(name), self.now.get(name)
            if old == new:
                statuses[name] = "unchanged"
            elif old is not None and not replace:
                statuses[name] = "refused"
            elif there == new:
                statuses[name] = "unchanged"
            elif there is not None and there != old:
                statuses[name] = "refused"
            else:
                statuses[name] = "built" if old is None else "replaced"
                contents[name] = new
        self.commit(contents)
        return statuses

    def commit(self, contents: dict[str, Content]) -> None:
        if contents != self.now or list(contents) != list(self.now):
            self.history[max(self.history, default=0) + 1] = contents

    # -- the store -----------------------------------------------------------------------------------------------------

    def build(self, wish: dict[str, int], *, replace: bool) -> dict[str, str]:
        contents = [Content(name, version) for name, version in wish.items()]
        spec = {
            "features": {"name": "genes", "reference": "union"},
            "keep": ["row", "cell_type"],
            "layout": {"block_rows": 3, "chunk_rows": 1, "shard_bytes": 2048},
            "studies": [
                {"id": c.id, "source": coordinate_adata(c.n_obs, N_VARS, first=c.first, density=0.5)} for c in contents
            ],
        }
        report = daodask.build_store(spec, self.location, replace=replace, progress=False)
        assert report.ok == all(s.status != "refused" for s in report.studies)
        return {s.id: s.status for s in report.studies}

    @rule(wish=wishes, replace=st.booleans())
    def builds(self, wish: dict[str, int], replace: bool) -> None:
        found = self.build(wish, replace=replace)
        assert found == self.expect(wish, replace=replace)

    @rule(wish=wishes, replace=st.booleans(), at=st.integers(1, 60), after=st.booleans())
    def crashes(self, wish: dict[str, int], replace: bool, at: int, after: bool) -> None:
        try:
            with crashing(at, after=after):
                found = self.build(wish, replace=replace)
        except Crash:
            self.unfinished = wish
            if max(snapshot_numbers(self.location), default=0) > max(self.history, default=0):
                self.expect(wish, replace=replace)
        else:
            assert found == self.expect(wish, replace=replace)

    @precondition(lambda self: self.unfinished is not None)
    @rule()
    def resumes(self) -> None:
        assert self.unfinished is not None
        assert self.build(self.unfinished, replace=True) == self.expect(self.unfinished, replace=True)
        self.unfinished = None

    @rule(wish=wishes, other=wishes, replace=st.booleans(), removed=st.none() | ids)
    def is_overtaken(self, wish: dict[str, int], other: dict[str, int], replace: bool, removed: str | None) -> None:
        """Another builder, or somebody who removes, commits while this build is about to."""
        base = self.now

        def turn() -> None:
            if removed is not None and removed in self.now:
                self.remove(removed)
            else:
                found = self.build(other, replace=True)
                assert found == self.expect(other, replace=True)

        with overtaken(turn):
            found = self.build(wish, replace=replace)
        assert found == self.expect(wish, replace=replace, base=base)

    @rule(name=ids)
    def removes(self, name: str) -> None:
        if name in self.now:
            self.remove(name)
            return
        with pytest.raises(UnknownNameError if self.history else StoreNotFoundError):
            daodask.remove_datasets(self.location, [name])

    def remove(self, name: str) -> None:
        snapshot = daodask.remove_datasets(self.location, name)
        self.commit({n: c for n, c in self.now.items() if n != name})
        assert snapshot.number == max(self.history)

    @precondition(lambda self: bool(self.history))
    @rule(keep=st.none() | st.integers(1, 3))
    def vacuums(self, keep: int | None) -> None:
        plan = daodask.plan_vacuum(self.location, grace="0", keep_snapshots=keep)
        assert plan.run().nbytes == plan.nbytes
        for number in sorted(self.history)[: -keep if keep else 0]:
            del self.history[number]
        assert snapshot_numbers(self.location) == tuple(sorted(self.history))
        kept = {d.path for n in self.history for d in daodask.open_store(self.location, snapshot=n).snapshot.datasets}
        left = {file.path for file in self.location.files()}
        assert {p.split("/")[0] for p in left} <= {"snapshots", "datasets", "features"}
        assert {"/".join(p.split("/")[:2]) for p in left if p.startswith("datasets/")} == kept
        assert not daodask.plan_vacuum(self.location, grace="0", keep_snapshots=keep).garbage

    @precondition(lambda self: bool(self.history))
    @rule(data=st.data())
    def opens_an_older_one(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(1, max(self.history) + 1)))
        if number in self.history:
            self.check(number)
        else:
            with pytest.raises(StoreNotFoundError, match=f"snapshot {number} of .* is gone: `daodask vacuum"):
                daodask.open_store(self.location, snapshot=number)

    @invariant()
    def holds_what_it_should(self) -> None:
        if self.history:
            self.check(None)
        elif hasattr(self, "location"):
            assert snapshot_numbers(self.location) == ()

    def check(self, number: int | None) -> None:
        contents = self.history[number] if number else self.now
        store = daodask.open_store(self.location, snapshot=number)
        assert store.snapshot.number == (number or max(self.history))
        assert [d.id for d in store.snapshot.datasets] == list(contents)
        rows = np.concatenate([np.arange(0), *(np.arange(c.first, c.first + c.n_obs) for c in contents.values())])
        found = store.to_anndata()
        expected = coordinate_counts(rows, N_VARS, density=0.5)
        np.testing.assert_array_equal(found.X.toarray(), expected.toarray())
        assert found.obs_names.tolist() == [f"cell{r}" for r in rows]
        if contents:
            assert found.obs["row"].tolist() == rows.tolist()
            assert found.obs["dataset"].tolist() == [c.id for c in contents.values() for _ in range(c.n_obs)]


@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        pytest.param(12, 12, id="few"),
        pytest.param(300, 40, id="many", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_any_order(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
