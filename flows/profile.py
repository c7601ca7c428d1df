"""Installs a profile as params.yaml: `python -m flows.profile NAME`, without NAME lists them."""

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from flows.checkout.locks import hold_checkout
from flows.errors import FlowError
from tasks.params.load import PARAMS_FILE, KeyTwiceError, ParamsError, load_params, read_yaml

PROFILES = Path("infra/profiles")

logger = logging.getLogger(__name__)


def list_profiles() -> list[str]:
    """The names of the profiles, sorted."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def install_profile(name: str, data: Path | None = None) -> None:
    """Make params.yaml a copy of the profile `name`.

    Args:
        name: Of a file in infra/profiles.
        data: Folder that the last parts of data.corpus and data.benchmark are looked up in; the
            profile's own paths when None.

    Raises:
        FlowError: There is no such profile or folder, or params.yaml holds edits that are in no
            profile.
        ParamsError: The profile is not valid; params.yaml stays as it is.
    """
    if name not in list_profiles():
        raise FlowError(f"no profile {name!r}; there are {', '.join(list_profiles())}")
    profile = PROFILES / f"{name}.yaml"
    load_params(profile)
    if PARAMS_FILE.exists() and not _is_a_profile(PARAMS_FILE):
        raise FlowError(
            f"{PARAMS_FILE} holds edits that are in no profile. To run it as it stands, leave the "
            f"profile out; to keep it, copy it to {PROFILES}/NAME.yaml; to drop it, remove it"
        )
    text = profile.read_text(encoding="utf-8")
    partial = PARAMS_FILE.with_suffix(".partial")
    partial.write_text(text if data is None else _with_data(text, data), encoding="utf-8")
    partial.rename(PARAMS_FILE)


def _with_data(text: str, data: Path) -> str:
    """The profile with its data section pointing into the folder `data`; comments stay."""
    for key, value in read_yaml(text)["data"].items():
        path = data / Path(value).name
        if not path.is_dir():
            raise FlowError(f"{path} is no folder: data.{key} of the profile needs it")
        line = f"  {key}: {json.dumps(str(path), ensure_ascii=False)}"
        text = re.sub(rf"(?m)^  {key}: .*$", lambda _, line=line: line, text, count=1)
    return text


def _is_a_profile(path: Path) -> bool:
    """Whether a file says what some profile says, wherever its data lie."""
    content = _without_data(path)
    return any(_without_data(profile) == content for profile in PROFILES.glob("*.yaml"))


def _without_data(path: Path) -> Any:  # noqa: ANN401 - any YAML value
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, KeyTwiceError, UnicodeDecodeError):
        return None
    return {**content, "data": None} if isinstance(content, dict) else None


def main() -> None:
    """Install the profile named on the command line, or list what there is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description="Make params.yaml a copy of a profile.")
    parser.add_argument("name", nargs="?", help="profile to install; without it, list them")
    name = parser.parse_args().name
    if name is None:
        logger.info("%s", "\n".join(list_profiles()))
        return
    try:
        with hold_checkout(Path.cwd()):  # a run reads params.yaml at its beginning
            install_profile(name)
    except (FlowError, ParamsError) as error:
        sys.exit(str(error))
    logger.info("params.yaml is now %s/%s.yaml", PROFILES, name)


if __name__ == "__main__":
    main()
