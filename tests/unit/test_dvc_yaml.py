"""dvc.yaml lists every file a stage's code consists of, and no other: DVC follows no imports.

A file that is missing from `deps` is edited without any stage running again; a stranger runs them
for nothing. The message of a failure holds the lines to add and to remove.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

import grimp
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tasks", "model", "infra")
"""Packages a stage may run; flows start processes and are part of no stage."""


class LeftOut(NamedTuple):
    """Code of stages that is no dependency: a word changed in it would train everything again."""

    why: str
    door: str
    """The one module of it that others import."""
    imports: set[str]
    """Modules of ours that it imports."""


CANNOT_CHANGE_AN_OUTPUT = {
    Path("tasks/machine/gpus"): LeftOut(
        "waits for GPUs, says which CUDA may see, and counts what they did",
        "tasks.machine.gpus.hold",
        {"tasks.contract.stage"},
    ),
    Path("tasks/machine/heap.py"): LeftOut(
        "says where memory comes from", "tasks.machine.heap", set()
    ),
    Path("tasks/outside.py"): LeftOut(
        "refuses what outside.json does not record, and hashes it",
        "tasks.outside",
        {"tasks.contract.stage", "tasks.params.load", "tasks.params.paths", "tasks.store.storage"},
    ),
}

SAME_BYTES = {
    *("pydantic", "pydantic-core", "pyyaml", "psutil", "threadpoolctl"),  # values, processes
    *("fsspec", "botocore", "openai", "huggingface-hub", "httpx2"),  # carry bytes, and make none
    "nvidia-ml-py",  # counts energy
    *("safetensors", "xxhash"),  # fixed by what they write
}
"""Libraries of stages whose versions cannot change an output."""


def read_stages() -> dict[str, dict]:
    """The entries of dvc.yaml, foreach and matrix ones as their template."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return {name: entry.get("do", entry) for name, entry in content["stages"].items()}


STAGES = read_stages()


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        *PACKAGES,
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )


def module_of(entry: dict, graph: grimp.ImportGraph) -> str:
    """The module a stage runs: `python -m tasks.X`, the __main__ of a package where it is one."""
    words = entry["cmd"].split()
    assert words[:2] == ["python", "-m"], f"{entry['cmd']!r}: expected python -m tasks.X"
    module = words[2]
    main = f"{module}.__main__"
    return main if main in graph.modules else module


def file_of(module: str) -> Path:
    folder = Path(*module.split("."))
    return folder / "__init__.py" if (ROOT / folder).is_dir() else folder.with_suffix(".py")


def code_of(module: str, graph: grimp.ImportGraph) -> set[Path]:
    """Every first-party file that is run or imported; an empty __init__.py says nothing."""
    modules = {module} | graph.find_upstream_modules(module)
    files = {file_of(each) for each in modules if not graph.is_module_squashed(each)}
    return {
        file
        for file in files
        if (ROOT / file).read_text(encoding="utf-8").strip()
        and not is_covered(file, set(CANNOT_CHANGE_AN_OUTPUT))
    }


def libraries_of(module: str, graph: grimp.ImportGraph) -> set[str]:
    """Names in requirements.lock of what the code of a stage imports, but for SAME_BYTES."""
    distributions = importlib.metadata.packages_distributions()
    modules = {
        each for each in graph.find_upstream_modules(module) if graph.is_module_squashed(each)
    }
    names = {name for each in modules for name in distributions.get(each.split(".")[0], [])}
    return {name.lower().replace("_", "-") for name in names} - SAME_BYTES


def declared_keys(entry: dict, file: str) -> list[str]:
    """The parameters of a stage that are read from `file`, which is not params.yaml."""
    return [key for each in entry["params"] if isinstance(each, dict) for key in each.get(file, [])]


def declared_code(entry: dict) -> set[Path]:
    """The dependencies inside our packages, files and folders."""
    return {Path(dep) for dep in entry["deps"] if Path(dep).parts[0] in PACKAGES}


def is_covered(file: Path, declared: set[Path]) -> bool:
    return file in declared or any(parent in declared for parent in file.parents)


@pytest.mark.parametrize("path", sorted(CANNOT_CHANGE_AN_OUTPUT))
def test_code_that_is_left_out_is_there_and_reached_by_its_door_alone(path, graph):
    """It computes nothing: no stage imports more of it than that, and it imports little."""
    left_out = CANNOT_CHANGE_AN_OUTPUT[path]
    inside = {module for module in graph.modules if is_covered(file_of(module), {path})}
    assert inside, f"{path} does not exist: remove it from CANNOT_CHANGE_AN_OUTPUT"
    doors = {
        module for module in inside if graph.find_modules_that_directly_import(module) - inside
    }
    assert doors == {left_out.door}
    imported = set().union(*map(graph.find_modules_directly_imported_by, inside)) - inside
    assert {each for each in imported if not graph.is_module_squashed(each)} == left_out.imports


def test_the_graph_sees_imports(graph):
    """Guards against a graph that is empty, which would make every list below look right."""
    assert "tasks.contract.stage" in graph.find_upstream_modules("tasks.champion")


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_exactly_the_code_of_the_stage(name, graph):
    entry = STAGES[name]
    needed = code_of(module_of(entry, graph), graph)
    declared = declared_code(entry)
    missing = sorted(file for file in needed if not is_covered(file, declared))
    strangers = sorted(
        path for path in declared if not any(is_covered(file, {path}) for file in needed)
    )
    wanted = sorted((declared - set(strangers)) | set(missing))
    assert not missing + strangers, "\n".join(
        [
            f"stage {name} of dvc.yaml:",
            *(f"  add     - {path}" for path in missing),
            *(f"  remove  - {path}" for path in strangers),
            "its code is then",
            *(f"      - {path}" for path in wanted),
        ]
    )


@pytest.mark.parametrize("name", STAGES)
def test_libraries_are_exactly_those_the_stage_imports(name, graph):
    """A new torch computes other bytes, and a new Prefect trains nothing again."""
    entry = STAGES[name]
    wanted = sorted(libraries_of(module_of(entry, graph), graph))
    line = f"      - libraries.json: [{', '.join(wanted)}]"
    found = declared_keys(entry, "libraries.json")
    assert found == wanted, f"params of stage {name} in dvc.yaml need\n{line}"


def test_libraries_have_the_versions_of_the_lock():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = dict(
        line.split(";")[0].strip().split("==") for line in lock.splitlines() if "==" in line
    )
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    used = {key for entry in STAGES.values() for key in declared_keys(entry, "libraries.json")}
    wanted = {name: pinned[name] for name in sorted(used)}
    text = json.dumps(wanted, indent=2) + "\n"
    assert (ROOT / "libraries.json").read_text(encoding="utf-8") == text, f"it must hold\n{text}"


@pytest.mark.parametrize("name", STAGES)
def test_folder_among_the_deps_holds_no_file_the_stage_does_not_import(name, graph):
    """A folder is a shorthand for all its files; one stranger in it runs the stage for nothing."""
    needed = code_of(module_of(STAGES[name], graph), graph)
    for folder in (path for path in declared_code(STAGES[name]) if (ROOT / path).is_dir()):
        inside = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}
        full = {path for path in inside if (ROOT / path).read_text(encoding="utf-8").strip()}
        unused = sorted(str(path) for path in full - needed)
        assert not unused, f"stage {name}: {folder} also holds {unused}, which it does not import"


@pytest.mark.parametrize("name", STAGES)
def test_no_declared_file_is_missing_on_disk(name):
    gone = [str(path) for path in declared_code(STAGES[name]) if not (ROOT / path).exists()]
    assert not gone, f"stage {name} of dvc.yaml names {gone}, which do not exist"


def written(entry: dict) -> list[str]:
    """The outputs, metrics and plots of a stage; one of a foreach up to its first variable."""
    kinds = (entry.get(kind, []) for kind in ("outs", "metrics", "plots"))
    paths = (next(iter(out)) if isinstance(out, dict) else out for kind in kinds for out in kind)
    return [path.split("${")[0] for path in paths]


@pytest.mark.parametrize("name", STAGES)
def test_every_artifact_it_reads_is_written_by_another_stage(name):
    outs = [out for other, entry in STAGES.items() if other != name for out in written(entry)]
    for dep in STAGES[name]["deps"]:
        path = dep.split("${")[0]
        if path.startswith("artifacts/"):
            known = any(path.startswith(out) or out.startswith(path) for out in outs)
            assert known, f"stage {name} reads {dep}, which no other stage writes"


@pytest.mark.parametrize("profile", sorted((ROOT / "infra/profiles").glob("*.yaml")))
@pytest.mark.parametrize("name", STAGES)
def test_every_value_a_stage_names_is_in_every_profile(name, profile):
    """DVC finds out when the stage's turn comes, which may be hours after the start."""
    content = yaml.safe_load(profile.read_text(encoding="utf-8"))
    for key in (key for key in STAGES[name]["params"] if isinstance(key, str)):
        section = content
        for part in key.split(".${")[0].split("."):
            assert part in section, f"stage {name} names {key}, which {profile.name} lacks"
            section = section[part]
