"""Publication: a model that passed the gate goes to the registry in object storage.

No DVC stage: the flow runs it after the gate, a person by hand. What it did is said in the log and
in .samovar/published.json.
"""

import hashlib
import logging
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tasks.contract.stage import StageError, read_json, run_stage, write_json
from tasks.evaluate.instructions import Instructions
from tasks.params.load import PARAMS_FILE, Params
from tasks.params.paths import ARTIFACTS, BASE, BASE_RECORD, DECISION, MODEL_CARD, PUBLISHED, REPORT
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import open_storage

PROMPTS_FILE = "config_sentence_transformers.json"

logger = logging.getLogger(__name__)


def main() -> None:
    """Publish the candidate if the gate let it pass; exit 0 as well when it did not."""
    run_stage("publish", publish)


def publish(params: Params) -> None:
    """Store the candidate as the next version of publish.name, or say why not.

    Raises:
        StageError: There is no decision, the model changed since the decision, a file is missing,
            or the store cannot be used.
    """
    decision = read_json(DECISION)
    PUBLISHED.parent.mkdir(parents=True, exist_ok=True)
    if not decision["publish"]:
        for reason in decision["reasons"]:
            logger.info("nothing published: %s", reason)
        write_json(PUBLISHED, {"version": None, "is_new": False, "reasons": decision["reasons"]})
        return
    model = ARTIFACTS / params.publish.checkpoint
    fingerprint = fingerprint_folder(model)
    if fingerprint != decision["candidate"]["fingerprint"]:
        raise StageError(
            f"{model} is not the model that the gate judged: bring the gate up to date (dvc repro)"
        )
    registry = Registry(
        open_storage(params.store.url, params.store.endpoint_url), params.publish.name
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder)
        assemble(model, bundle)
        add_mteb_prompts(bundle, Instructions.of(params).by_mteb_name())
        version, is_new = registry.publish(
            bundle,
            fingerprint=fingerprint,
            mean=decision["candidate"]["mean"],
            scores=decision["candidate"]["scores"],
            run=describe_run(),
        )
    address = registry.address(version.version)
    published = {"version": version.version, "is_new": is_new, "address": address}
    write_json(PUBLISHED, published | {"mean": version.mean, "scores": version.scores})
    if is_new:
        logger.info("published %s at %s", version.version, address)
    else:
        logger.info("nothing published: this model is %s already, at %s", version.version, address)


def assemble(model: Path, bundle: Path) -> None:
    """Fill `bundle` with links to the model's files, its card as README.md, report and terms.

    Raises:
        StageError: The report or the record of the base is missing.
    """
    sources = {path.relative_to(model): path for path in model.rglob("*") if path.is_file()}
    sources |= {Path(name): BASE / name for name in read_json(BASE_RECORD)["notices"]}
    sources |= {Path("README.md"): MODEL_CARD, Path("report/index.html"): REPORT}
    for name, source in sources.items():
        if not source.is_file():
            raise StageError(f"{source} does not exist: run the stage report before publishing")
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).symlink_to(source.resolve())


def add_mteb_prompts(bundle: Path, prompts: Mapping[str, str]) -> None:
    """Put prompts beside those of the model, in a copy of the linked file.

    Raises:
        StageError: The model has no such file.
    """
    path = bundle / PROMPTS_FILE
    content = read_json(path)
    path.unlink()  # the link: the file of the model is the one that the gate judged
    write_json(path, content | {"prompts": content["prompts"] | prompts})


def describe_run() -> dict[str, str | None]:
    """Hashes of params.yaml and dvc.lock and the git commit; null for what does not exist."""
    return {
        "params_sha256": _sha256(PARAMS_FILE),
        "dvc_lock_sha256": _sha256(Path("dvc.lock")),
        "git_commit": _git_commit(),
    }


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


if __name__ == "__main__":
    main()
