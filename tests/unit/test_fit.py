"""What the end of a run needs is asked at its beginning."""

import subprocess
from pathlib import Path

import pytest
import yaml

from flows.checkout.fit import check_fit, reproduction_doubts
from flows.errors import FlowError
from tasks.params.load import Params, Record, load_params
from tests.unit.test_outside import GUIDE

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
KEPT = Record(branch="retrained", remote=None)


def git(root: Path, *arguments: str) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    subprocess.run(["git", *author, *arguments], cwd=root, check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q")
    return root


def test_a_plain_checkout_is_fit(checkout: Path) -> None:
    (checkout / "artifacts").mkdir()
    check_fit(checkout, KEPT)


def test_artifacts_behind_a_link_are_refused(checkout: Path, tmp_path: Path) -> None:
    (checkout / "artifacts").symlink_to(tmp_path)
    with pytest.raises(FlowError, match="artifacts is a symbolic link"):
        check_fit(checkout, KEPT)


def test_a_checkout_of_another_user_names_what_git_wants(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    with pytest.raises(FlowError, match=rf"config --global --add safe\.directory {checkout}"):
        check_fit(checkout, KEPT)
    check_fit(checkout, Record(branch=None, remote=None))


def test_a_copy_without_git_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match="no git repository"):
        check_fit(tmp_path, KEPT)


def params_with(**sections: dict[str, object]) -> Params:
    params = load_params(PROFILE)
    changed = {
        name: getattr(params, name).model_copy(update=values) for name, values in sections.items()
    }
    return params.model_copy(update=changed)


@pytest.mark.parametrize("address", ["/mnt/texts", "../texts", "s3://bucket/texts"])
def test_data_outside_the_checkout_are_doubted(checkout: Path, address: str) -> None:
    assert reproduction_doubts(checkout, load_params(PROFILE)) == []
    [doubt] = reproduction_doubts(checkout, params_with(data={"corpus": address}))
    assert f"data.corpus is {address}, outside this checkout" in doubt


@pytest.mark.parametrize("path", ["/mnt/texts.csv", "../texts.csv", "s3://bucket/texts.csv"])
def test_so_is_a_single_source(checkout: Path, path: str) -> None:
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    content["ingest"]["sources"]["titles"]["path"] = path
    [doubt] = reproduction_doubts(checkout, Params.model_validate(content))
    assert doubt.startswith("ingest.sources.titles.path is ")


def test_so_are_weights(checkout: Path, tmp_path: Path) -> None:
    """A folder without its revision, and a guide; the id of a hub is none of them."""
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    content["backbone"] |= {"source": str(tmp_path), "scratch": None}
    content["finetune"]["training"]["guide"] = GUIDE | {"checkpoint": f"{tmp_path}/guide"}
    doubts = reproduction_doubts(checkout, Params.model_validate(content))
    assert [doubt.split()[0] for doubt in doubts] == [
        "backbone.source", "finetune.training.guide.checkpoint",
    ]  # fmt: skip
    content["backbone"]["source"] = "owner/decoder"
    assert len(reproduction_doubts(checkout, Params.model_validate(content))) == 1


def test_a_moved_store_is_doubted(checkout: Path) -> None:
    (checkout / "params.yaml").write_bytes(PROFILE.read_bytes())
    git(checkout, "add", "params.yaml")
    git(checkout, "commit", "-q", "-m", "one")
    git(checkout, "tag", "samovar-sample/v0001-aa")
    assert reproduction_doubts(checkout, load_params(PROFILE)) == []
    [doubt] = reproduction_doubts(checkout, params_with(store={"url": "s3://new"}))
    assert "tag samovar-sample/v0001-aa" in doubt
    assert "from store, while store.url is s3://new" in doubt
