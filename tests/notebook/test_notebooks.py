"""The notebooks of examples/ run from end to end, and a real kernel's interrupt button."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
import run_lab
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import run_notebooks  # noqa: E402

SIX_STEPS = "config = SessionSettings(**values)\nsession = prepare_session(config)"
TRAIN = "state = train_grpo(config, session, on_step=lambda s: print('at', s.step, flush=True))"


def shape(notebook):
    """What each code cell shows, by kind."""
    return [[o.output_type for o in cell.outputs] for cell in code(notebook)]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kept(name):
    return nbformat.read(run_notebooks.EXAMPLES / name, as_version=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", run_notebooks.NOTEBOOKS)
def test_a_notebook_runs_and_shows_what_the_kept_one_shows(name, tiny):
    done = run_notebooks.execute(run_notebooks.EXAMPLES / name)  # raises where a cell fails
    assert shape(done) == shape(kept(name))


@pytest.mark.parametrize("name", run_notebooks.NOTEBOOKS)
def test_a_kept_notebook_was_run_in_order_without_errors(name):
    notebook = kept(name)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 16
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {kind for cell in shape(notebook) for kind in cell}
    assert "display_data" in kinds and "error" not in kinds


@pytest.mark.parametrize("name", run_notebooks.NOTEBOOKS)
def test_a_kept_notebook_is_tidy_and_names_no_place_of_the_machine_that_ran_it(name):
    text = (run_notebooks.EXAMPLES / name).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert nbformat.writes(run_notebooks.tidy(notebook)) == nbformat.writes(kept(name))
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|opt|work|Users)/", text)


def test_every_notebook_is_run_and_has_a_form():
    assert {p.name for p in run_notebooks.EXAMPLES.glob("*.ipynb")} == set(run_notebooks.NOTEBOOKS)
    for name in run_notebooks.NOTEBOOKS:
        [form] = [c.source for c in code(kept(name)) if "# @title" in c.source]
        lines = [line for line in form.splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"\w+ = .+  # @param .+", line) for line in lines)


@pytest.fixture
def kernel(tmp_path):
    """A kernel of this environment that works in the test's folder."""
    manager = KernelManager()
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel(cwd=str(tmp_path), env=dict(os.environ))
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, source, on_text=lambda text: None):
    """Execute a cell; return the reply and all that it wrote."""
    written: list[str] = []

    def hook(message):
        if message["msg_type"] == "stream":
            written.append(message["content"]["text"])
            on_text(message["content"]["text"])

    reply = client.execute_interactive(source, output_hook=hook, timeout=240)
    return reply["content"], "".join(written)


@pytest.mark.slow
def test_the_interrupt_button_saves_and_running_the_cell_again_goes_on_exactly(
    lab, config, kernel, tmp_path
):
    manager, client = kernel
    values = config().model_dump(mode="json", exclude_unset=True)
    source = f"""
import sys, torch
sys.path.insert(0, {str(Path(run_lab.__file__).parent)!r})
torch.set_num_threads(1)
import grpo_lab
from gptoss_tools.notebook import *
values = {values!r}
{SIX_STEPS}"""
    reply, _ = run(client, source)
    assert reply["status"] == "ok", reply

    def press(text):
        if "at 2" in text:
            manager.interrupt_kernel()

    reply, written = run(client, TRAIN, press)
    assert reply["status"] == "error" and reply["ename"] == "Interrupted"
    assert "of 6" in reply["evalue"] and "at 6" not in written
    assert reply["traceback"][1:] == ["hint: gptoss resume runs/grpo-001"]
    reply, _ = run(client, TRAIN)
    assert reply["status"] == "ok", reply
    assert run_lab.same_bits(tmp_path / "runs/grpo-001/adapter", lab / "straight/adapter")
