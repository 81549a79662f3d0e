import pytest
from toy_lanes import save_student


@pytest.fixture
def student(tmp_path):
    """``student(kind, **data)``: best.pt of a network that finds all lanes, and its dataset."""
    return lambda *given, **options: save_student(tmp_path / "run", *given, **options)
