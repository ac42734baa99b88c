"""What tests share: real data where there is some, and small synthetic data elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture
def data_folder() -> Path:
    """The folder of unpacked real datasets that FRED_DATA names; the test is skipped without it."""
    folder = os.environ.get("FRED_DATA")
    if folder is None:
        pytest.skip("FRED_DATA does not name a folder of real datasets")
    return Path(folder)


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)
