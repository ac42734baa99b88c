"""What tests share."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.left_out import leave_out, whole_runs

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture(scope="module", autouse=True)
def bare_runs() -> Iterator[None]:
    """Runs in this process measure, draw and report nothing, which would take longer than they do.

    Commands that they tell begin with `python`, wherever the environment lies.
    """
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch)
        patch.setattr("common.system.scripts.typed_python", lambda: "python")
        yield


@pytest.fixture
def whole_run(bare_runs: None) -> Iterator[None]:
    """The test's runs do all that."""
    with whole_runs():
        yield


@pytest.fixture(scope="module")
def whole_module(bare_runs: None) -> Iterator[None]:
    """All runs of the module do."""
    with whole_runs():
        yield


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As every process of the test has it: bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FRED_CACHE", str(path))
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, cache: Path, one_thread: None) -> None:
    """Cells of the published tables run their scripts in this process."""
    from tests.command_line import InThisProcess

    monkeypatch.setattr("reproduction.jobs.Script", InThisProcess)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails, with "no network in tests"."""

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
