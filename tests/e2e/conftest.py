"""Clones that whole pipelines run in; one reproduced clone serves all tests that only look."""

from collections.abc import Callable

import pytest

from infra.sample.generate import generate
from tests.e2e.clone import Clone, clone_working_tree


@pytest.fixture(scope="session")
def make_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """Factory of fresh clones with the sample corpus, whatever lies in data/ of this checkout."""
    sample = tmp_path_factory.mktemp("sample")
    generate(sample)

    def make(name: str) -> Clone:
        return clone_working_tree(tmp_path_factory.mktemp(name), sample)

    return make


@pytest.fixture(scope="session")
def reproduced(make_clone: Callable[[str], Clone]) -> Clone:
    """A clone in which plain `dvc repro` ran every stage."""
    clone = make_clone("repro")
    clone.run("dvc", "repro")
    return clone


@pytest.fixture(scope="session")
def retrained(make_clone: Callable[[str], Clone]) -> tuple[Clone, str]:
    """A clone in which the flow ran and published, and what it printed."""
    clone = make_clone("flow")
    return clone, clone.run("python", "-m", "flows.retrain").stdout
