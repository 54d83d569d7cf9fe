"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real studies: ``$DAODASK_DATA``, or ``shared/data`` beside the repository."""
    stated = os.environ.get("DAODASK_DATA")
    folder = Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real studies at {folder}: set DAODASK_DATA to a folder that has them")
    return folder.resolve()
