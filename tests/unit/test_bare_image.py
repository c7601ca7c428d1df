"""model/ runs on a GPU image with torch and little else: only listed packages may be imported."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "model").rglob("*.py"))
ON_THE_IMAGE = {
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "httpx2",
    "safetensors",
    "numpy",
    "pyarrow",
    "peft",
}
"""Installed there, by transformers as well; peft for LoRA alone."""


def imported_packages(source: str) -> set[str]:
    """Top-level names of every import, inside functions and `if TYPE_CHECKING` as well.

    A relative one is of the package itself.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_an_import_inside_a_function_is_seen() -> None:
    source = "import os\ndef f():\n    from scipy.sparse import csr_matrix\n    import torch.nn\n"
    assert imported_packages(source) == {"os", "scipy", "torch"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_model_imports_what_the_image_has(path: Path) -> None:
    """A list of what is forbidden lets through what nobody thought of: scipy, psutil, rich."""
    allowed = ON_THE_IMAGE | sys.stdlib_module_names | {"model"}
    assert imported_packages(path.read_text(encoding="utf-8")) <= allowed
