from pathlib import Path

import pytest
import yaml

from flows.checkout.locks import hold_checkout
from flows.errors import FlowError
from flows.profile import install_profile, list_profiles, main
from tasks.params.load import ParamsError, load_params

PROFILES = Path(__file__).resolve().parents[2] / "infra" / "profiles"


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """An empty checkout with two of the real profiles."""
    (tmp_path / "infra" / "profiles").mkdir(parents=True)
    for name in ("sample", "rumteb-scratch"):
        (tmp_path / "infra" / "profiles" / f"{name}.yaml").write_bytes(
            (PROFILES / f"{name}.yaml").read_bytes()
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_is_valid(path):
    load_params(path)


def test_profiles_are_listed_by_name(checkout):
    assert list_profiles() == ["rumteb-scratch", "sample"]


def test_params_become_a_copy_and_may_be_replaced(checkout):
    install_profile("sample")
    install_profile("rumteb-scratch")
    wanted = (checkout / "infra/profiles/rumteb-scratch.yaml").read_bytes()
    assert (checkout / "params.yaml").read_bytes() == wanted


def test_edits_are_never_overwritten(checkout):
    install_profile("sample")
    params = checkout / "params.yaml"
    edited = params.read_text().replace("threads: 2", "threads: 3")
    params.write_text(edited)
    with pytest.raises(FlowError, match="edits"):
        install_profile("rumteb-scratch")
    assert params.read_text() == edited


def test_a_key_twice_is_an_edit_and_never_overwritten(checkout):
    """Of two equal keys plain YAML takes the last, which here is that of the profile."""
    install_profile("sample")
    params = checkout / "params.yaml"
    edited = params.read_text().replace("  threads: 2", "  threads: 3\n  threads: 2")
    params.write_text(edited)
    with pytest.raises(FlowError, match="edits"):
        install_profile("rumteb-scratch")
    assert params.read_text() == edited


def test_params_are_not_exchanged_under_a_run(checkout, monkeypatch):
    install_profile("sample")
    before = (checkout / "params.yaml").read_bytes()
    monkeypatch.setattr("sys.argv", ["flows.profile", "rumteb-scratch"])
    with hold_checkout(checkout), pytest.raises(SystemExit, match="another run holds"):
        main()
    assert (checkout / "params.yaml").read_bytes() == before
    main()
    assert (checkout / "params.yaml").read_bytes() != before


def test_profile_that_does_not_exist_is_refused_with_the_names_of_those_that_do(checkout):
    with pytest.raises(FlowError, match="rumteb-scratch, sample"):
        install_profile("nosuch")


def test_invalid_profile_leaves_params_as_they_are(checkout):
    install_profile("sample")
    (checkout / "infra/profiles/bad.yaml").write_text("data: {corpus: 3}\n")
    before = (checkout / "params.yaml").read_bytes()
    with pytest.raises(ParamsError):
        install_profile("bad")
    assert (checkout / "params.yaml").read_bytes() == before


def test_data_may_lie_elsewhere_and_comments_stay(checkout):
    data = checkout / "my texts"
    section = yaml.safe_load((checkout / "infra/profiles/rumteb-scratch.yaml").read_text())["data"]
    for value in section.values():
        (data / Path(value).name).mkdir(parents=True)
    install_profile("rumteb-scratch", data)
    text = (checkout / "params.yaml").read_text()
    assert yaml.safe_load(text)["data"] == {
        key: str(data / Path(value).name) for key, value in section.items()
    }
    assert text.startswith("#")
    install_profile("sample")


def test_data_folder_that_misses_a_part_is_refused(checkout):
    with pytest.raises(FlowError, match="is no folder"):
        install_profile("rumteb-scratch", checkout / "nothing")
    assert not (checkout / "params.yaml").exists()


def test_a_profile_and_its_data_may_have_names_in_cyrillic(checkout):
    (checkout / "infra/profiles/sample.yaml").rename(checkout / "infra/profiles/мой.yaml")
    for name in ("train", "benchmark"):
        (checkout / "Данные: №1" / name).mkdir(parents=True)
    install_profile("мой", checkout / "Данные: №1")
    assert load_params(checkout / "params.yaml").data.corpus == f"{checkout}/Данные: №1/train"
