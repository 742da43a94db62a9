"""The disks of an instance in the power rig: images that are cloned at an instant and mounted again as after a reboot."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.rigs.children import call
from tests.rigs.cluster import Cluster
from tests.rigs.mounts import clone, make_ext4, mounted
from tests.rigs.rig import Context
from tests.rigs.workload import DataPaths, init

_LAZY = "noatime,commit=300"  # metadata reaches the disk when somebody syncs, not every five seconds
_SQLITE_MIB, _POSTGRES_MIB, _GUARD_MIB = 64, 320, 16


@dataclass
class Disks:
    """The disks of one seed, mounted at `live` (and the guard's own at `live_guard`); `cut` is where copies are mounted."""

    context: Context
    images: Path
    own_guard: bool = False
    postgres: bool = False

    @property
    def live(self) -> Path:
        return self.context.folder / "live"

    @property
    def cut(self) -> Path:
        return self.context.folder / "cut"

    @property
    def output(self) -> Path:
        return self.context.folder / "output"

    def instance(self, where: Path, kind: str = "event", name: str = "data") -> DataPaths:
        """Return the instance on the disk mounted at `where`: self.live or self.cut."""
        guard = where.with_name(f"{where.name}-guard") / name if self.own_guard else None
        database = Cluster(where, self.context.folder).url(name) if self.postgres else None
        return DataPaths(where / name, guard, database, kind)

    @contextlib.contextmanager
    def mounted(self, kind: str | None = "event") -> Iterator[None]:
        """Mount the disks, with an instance on them unless `kind` is None; unmount and delete them in the end."""
        self._template(kind)
        with contextlib.ExitStack() as stack:
            for name in ("guard", "data") if self.own_guard else ("data",):
                image = self.images / f"{name}.image"
                clone(self._base(kind, name), image)
                stack.callback(image.unlink)
                stack.enter_context(mounted(image, self.live if name == "data" else self._guard_point(), _LAZY))
            if self.postgres:
                stack.enter_context(Cluster(self.live, self.context.folder).running())
            yield

    def _guard_point(self) -> Path:
        return self.live.with_name(f"{self.live.name}-guard")

    def _base(self, kind: str | None, name: str) -> Path:
        return self.images / f"base-{kind}-{self.own_guard}-{self.postgres}-{name}.image"

    def _template(self, kind: str | None) -> None:
        """Make images with a fresh instance once; every seed begins with a copy of them."""
        if self._base(kind, "data").exists():
            return
        with contextlib.ExitStack() as stack:
            if self.own_guard:
                make_ext4(self._base(kind, "guard"), _GUARD_MIB)
                stack.enter_context(mounted(self._base(kind, "guard"), self._guard_point()))
            make_ext4(self._base(kind, "data"), _POSTGRES_MIB if self.postgres else _SQLITE_MIB)
            stack.enter_context(mounted(self._base(kind, "data"), self.live))
            if self.postgres:
                cluster = Cluster(self.live, self.context.folder)
                cluster.make()
                stack.enter_context(cluster.running())
                cluster.create("empty")
            if kind:
                self.make_database("data")
                call(lambda _: init(self.instance(self.live, kind)), self.output)

    def make_database(self, name: str) -> None:
        """Make the migrated, empty database of one more instance."""
        if self.postgres:
            cluster = Cluster(self.live, self.context.folder)
            cluster.execute("postgres", f'CREATE DATABASE "{name}" TEMPLATE empty', "CHECKPOINT")

    def take(self) -> None:
        """Cut the power: copy every disk as it is now. The guard's first, so that it can only be the older one."""
        for name in ("guard", "data") if self.own_guard else ("data",):
            (self.images / f"cut-{name}.image").unlink(missing_ok=True)
            clone(self.images / f"{name}.image", self.images / f"cut-{name}.image")

    def take_again(self) -> None:
        """Cut the power of the copy that is mounted."""
        clone(self.images / "cut-data.image", self.images / "second.image")

    def use_second(self) -> None:
        """Go on with what the second cut left."""
        (self.images / "second.image").replace(self.images / "cut-data.image")

    @contextlib.contextmanager
    def rebooted(self) -> Iterator[None]:
        """Mount the copy, as after the power is back."""
        if self.own_guard:
            # Read off and unmounted at once: the fewer loop devices the better.
            point = self.cut.with_name("cut-guard-disk")
            target = self.cut.with_name("cut-guard")
            shutil.rmtree(target, ignore_errors=True)
            with mounted(self.images / "cut-guard.image", point):
                shutil.copytree(point, target, ignore=shutil.ignore_patterns("lost+found"))
        with mounted(self.images / "cut-data.image", self.cut, _LAZY), contextlib.ExitStack() as stack:
            if self.postgres:
                stack.enter_context(Cluster(self.cut, self.context.folder).running())
            yield
