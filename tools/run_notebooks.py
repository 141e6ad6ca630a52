"""Run the notebooks of examples/ and keep what they show: `python tools/run_notebooks.py`.

Each runs in a folder of its own beside what it reads, so that no run is left in the checkout.
Outputs are kept without the times of cells and the versions of the kernel.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = ("train.ipynb", "rubrics.ipynb")


def execute(path: Path, timeout: float = 600.0) -> nbformat.NotebookNode:
    """Run a copy of a notebook as it lies in the checkout; return it with its outputs.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    notebook = without_outputs(nbformat.read(path, as_version=4))
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / EXAMPLES.name
        shutil.copytree(EXAMPLES, home, ignore=shutil.ignore_patterns("*.ipynb", "__pycache__"))
        (Path(place) / "data").symlink_to(ROOT / "data", target_is_directory=True)
        resources = {"metadata": {"path": str(home)}}
        # The kernel of this very environment, whatever kernels the user has installed.
        client = NotebookClient(
            notebook, timeout=timeout, resources=resources, coalesce_streams=True
        )
        client.create_kernel_manager()
        client.km.kernel_spec.argv[0] = sys.executable
        client.execute(env={**os.environ, "PYTHONHASHSEED": "0"})
    return tidy(notebook)


def without_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as its author wrote it."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what differs from machine to machine: times of cells, versions of the kernel."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
    return notebook


if __name__ == "__main__":
    for name in NOTEBOOKS:
        done = execute(EXAMPLES / name)
        nbformat.write(done, EXAMPLES / name)
        print(f"{name}: {len(done.cells)} cells")
