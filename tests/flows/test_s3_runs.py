"""Whole runs against a real S3 service: new data come from it, a published version comes back."""

import os
import signal
from pathlib import Path

import pytest

from tasks.store.storage import open_storage
from tests.flows.s3 import KEYS, S3
from tests.flows.toy import Toy, git, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.s3]


@pytest.fixture
def importing(toy: Toy, s3: S3, keys: None, request: pytest.FixtureRequest) -> Toy:
    """A toy checkout whose data/corpus.txt was imported from the bucket."""
    prefix = f"samovar/{request.node.name}"
    source = open_storage(f"s3://{prefix}", s3.endpoint_url)
    source.write_bytes("raw/corpus.txt", b"first ")
    toy.set_params(store={"url": f"s3://{prefix}/store", "endpoint_url": s3.endpoint_url})
    (toy.root / "data" / "corpus.txt").unlink()
    git(toy.root, "rm", "-q", "--cached", "data/corpus.txt")
    imported = toy.dvc(
        "import-url",
        f"s3://{prefix}/raw/corpus.txt",
        "data/corpus.txt",
        AWS_ENDPOINT_URL=s3.endpoint_url,
        **KEYS,
    )
    assert imported.returncode == 0, imported.stderr
    git(toy.root, "add", "--all")
    git(toy.root, "commit", "-q", "-m", "The corpus comes from the bucket")
    return toy


def source_of(toy: Toy, s3: S3):
    return open_storage(toy.store_url().removesuffix("/store"), s3.endpoint_url)


def test_a_published_version_comes_back_in_another_clone(importing: Toy, tmp_path: Path):
    bare, other = tmp_path / "origin.git", tmp_path / "other"
    git(importing.root, "init", "-q", "--bare", str(bare))
    git(importing.root, "remote", "add", "origin", str(bare))
    importing.set_params(record={"branch": "retrained", "remote": "origin"})
    status, output = importing.retrain(**KEYS)
    assert status == 0, output
    tag = git(importing.root, "tag")
    assert tag.startswith("samovar-sample/v0001-")
    assert f"git checkout {tag} && make pull && dvc repro" in output
    git(bare, "clone", "-q", str(bare), str(other), "--branch", tag)
    (other / "knobs").mkdir()
    clone = Toy(other, importing.api_url)
    with clone.start(module="flows.pull", **KEYS) as pull:
        output, _ = pull.communicate(timeout=120)
    assert pull.returncode == 0, output
    again = clone.dvc("repro", **KEYS)
    assert "Data and pipelines are up to date" in again.stdout, again.stdout + again.stderr
    written = "artifacts/merge/text.txt"
    assert (other / written).read_bytes() == (importing.root / written).read_bytes()


def test_new_data_at_the_source_are_fetched_and_nothing_new_runs_nothing(importing: Toy, s3: S3):
    status, output = importing.retrain(**KEYS)
    assert status == 0, output
    assert "first" in (importing.root / "artifacts/merge/text.txt").read_text()
    status, output = importing.retrain(**KEYS)
    assert status == 0, output
    assert "every stage is up to date" in output
    assert "nothing new" in output
    source_of(importing, s3).write_bytes("raw/corpus.txt", b"second ")
    status, output = importing.retrain(**KEYS)
    assert status == 0, output
    assert "new data" in output
    assert "second" in (importing.root / "artifacts/merge/text.txt").read_text()
    tags = git(importing.root, "tag", "--sort=creatordate").split()
    assert len(tags) == 2
    recorded = git(importing.root, "show", f"{tags[1]}:data/corpus.txt.dvc")
    assert recorded == (importing.root / "data/corpus.txt.dvc").read_text().strip()


def test_edited_imports_are_not_fetched_over(importing: Toy, s3: S3):
    importing.edit_corpus("mine ")
    source_of(importing, s3).write_bytes("raw/corpus.txt", b"second ")
    status, output = importing.retrain(**KEYS)
    assert status == 1
    assert "data/corpus.txt.dvc" in output
    assert (importing.root / "data/corpus.txt").read_text() == "mine "


def test_a_killed_fetch_is_done_again(importing: Toy, s3: S3):
    content = os.urandom(2**20) * 256
    source_of(importing, s3).write_bytes("raw/corpus.txt", content)
    corpus = importing.root / "data/corpus.txt"
    marker = importing.root / ".samovar/updating/data-corpus.txt.dvc"
    with importing.start("--stages", "ingest", **KEYS) as flow:
        wait_until(lambda: marker.exists() and not corpus.exists(), 90)
        flow.send_signal(signal.SIGKILL)
    assert marker.exists()
    source_of(importing, s3).write_bytes("raw/corpus.txt", b"third ")
    status, output = importing.retrain("--stages", "ingest", **KEYS)
    assert status == 0, output
    assert corpus.read_bytes() == b"third "
    assert not marker.exists()


def test_a_source_that_is_down_is_said_before_any_stage_runs(importing: Toy, s3: S3):
    s3.control("stop")
    status, output = importing.retrain(**KEYS, AWS_MAX_ATTEMPTS="1")
    assert status == 1
    assert "update data/corpus.txt.dvc failed" in output
    assert importing.order() == []
    assert (importing.root / "data/corpus.txt").read_text() == "first "
