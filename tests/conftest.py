"""What tests share."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.costs import forecast
from common.costs.speed import Speed
from tests.left_out import leave_out_pictures, leave_out_report

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture(scope="session", autouse=True)
def guessed_speed() -> Iterator[None]:
    """Runs in this process do not measure the machine first, which would take a third of a second of each."""
    measure = forecast.measure

    def guess(*given: Any, **named: Any) -> Speed:
        is_tested = "test_preview" in os.environ.get("PYTEST_CURRENT_TEST", "")
        return measure(*given, **named) if is_tested else Speed(1e9, "a guess")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "measure", guess)
        yield


@pytest.fixture(scope="module")
def no_report() -> Iterator[None]:
    """The module's runs in this process write no report.html: of many short runs it would take a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_report(patch)
        yield


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """The module's runs in this process draw nothing."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
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
