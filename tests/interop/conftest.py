"""One live server for all of these tests, with an event log and a raw log that are filled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muniment.policy import Policy
from tests import shared
from tests.interop import golang
from tests.interop.sample import Sample, fill
from tests.live import ORIGIN, LiveServer, init, run

RAW_ORIGIN = "example.com/raw"
_SETTINGS = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.02"}  # several published checkpoints, and no waiting


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Sample]]:
    """Return the filled log of a kind."""
    data = tmp_path_factory.mktemp("interop") / "data"
    init(data)
    run("log", "create", "raw", "--kind", "raw", "--origin", RAW_ORIGIN, "--data", data)
    vkeys = {log.vkey.name: log.vkey for log in Policy.read(data / "policy").logs}
    filled: dict[str, Sample] = {}
    with LiveServer(data, env=_SETTINGS) as server:
        prefixes = {"event": (server.url, ORIGIN), "raw": (f"{server.url}/logs/raw", RAW_ORIGIN)}

        def of(kind: str) -> Sample:
            if kind not in filled:
                url, origin = prefixes[kind]
                filled[kind] = fill(server, url, kind, vkeys[origin])
            return filled[kind]

        yield of
        for sample in filled.values():
            sample.http.close()


@pytest.fixture(params=["event", "raw"])
def sample(request: pytest.FixtureRequest, samples: Callable[[str], Sample]) -> Sample:
    """Run the test on a filled event log and on a filled raw log."""
    return samples(request.param)


@pytest.fixture(scope="session")
def goverify() -> Path:
    """The Go verifier, built once in a run."""
    with shared.alone("goverify"):
        built = shared.folder() / "go" / "goverify" / "verify"
        return built if built.exists() else golang.build(shared.folder() / "go")
