"""What export_checkpoint writes: the newest adapter by number, loadable by stock PEFT."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import run_lab
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptoss_tools.core.runs import Run
from gptoss_tools.errors import ConfigError, RunFolderError
from gptoss_tools.notebook import TrainerState, export_checkpoint


def state_of(run: Path) -> TrainerState:
    return TrainerState(run, 6)


def test_stock_peft_loads_the_export_and_answers_as_the_run_does(lab, config):
    path = export_checkpoint(config(), state_of(lab / "straight"))
    base = AutoModelForCausalLM.from_pretrained(lab / "model")
    ids = AutoTokenizer.from_pretrained(path)("<|start|>user", return_tensors="pt")
    with torch.no_grad():
        plain = base(**ids).logits
        exported = PeftModel.from_pretrained(base, path)(**ids).logits
        base = AutoModelForCausalLM.from_pretrained(lab / "model")
        trained = PeftModel.from_pretrained(base, str(lab / "straight/adapter"))(**ids).logits
    assert torch.equal(exported, trained) and not torch.equal(exported, plain)
    held = {p.name for p in Path(path).iterdir()}
    assert held & {"optimizer.pt", "trainer_state.json", "README.md"} == set()


def test_of_an_unfinished_run_the_newest_checkpoint_by_number_is_exported(lab, config, tmp_path):
    """As text step-1000000 would stand before step-999999."""
    run = Run(tmp_path / "runs/long")
    shutil.copytree(lab / "straight", run.path, ignore=shutil.ignore_patterns("adapter"))
    run.outcome_path.unlink()
    (run.checkpoints_path / "step-000003").rename(run.checkpoints_path / "step-999999")
    (run.checkpoints_path / "step-000006").rename(run.checkpoints_path / "step-1000000")
    path = export_checkpoint(config(), state_of(run.path))
    assert Path(path) == tmp_path / "exports/long-adapter"
    assert run_lab.same_bits(Path(path), lab / "straight/checkpoints/step-000006")


def test_the_zip_file_holds_the_folder(lab, config):
    path = Path(export_checkpoint(config(zip_export=True), state_of(lab / "straight")))
    with zipfile.ZipFile(path.with_name(path.name + ".zip")) as packed:
        inside = {name: packed.read(name) for name in packed.namelist() if name[-1] != "/"}
    assert inside == {f"{path.name}/{p.name}": p.read_bytes() for p in path.iterdir()}


def test_an_older_export_is_replaced_and_anything_else_is_left_alone(lab, config, tmp_path):
    mine = config(export_dir="mine")
    export_checkpoint(mine, state_of(lab / "straight"))
    export_checkpoint(mine, state_of(lab / "straight"))
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "dear.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="not empty"):
        export_checkpoint(config(export_dir="letters"), state_of(lab / "straight"))
    assert (letters / "dear.txt").read_text() == "dear"


def test_a_hub_models_name_stays_in_the_adapter(lab, config, tmp_path):
    run = tmp_path / "hub"
    shutil.copytree(lab / "straight", run)
    record = json.loads((run / "config.json").read_text())
    record["settings"]["model"] = "openai/gpt-oss-20b"
    (run / "config.json").write_text(json.dumps(record))
    path = export_checkpoint(config(), state_of(run))
    written = json.loads((Path(path) / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "openai/gpt-oss-20b"


def test_nothing_to_export_is_an_error_that_says_so(config, tmp_path):
    run = Run(tmp_path / "empty")
    run.path.mkdir()
    with pytest.raises(RunFolderError, match="no adapter"):
        export_checkpoint(config(), state_of(run.path))


@pytest.mark.parametrize(("given", "kind"), [(None, "None"), ("runs/a", "a str")])
def test_what_is_no_state_of_a_training_is_refused_in_a_sentence(config, given, kind):
    with pytest.raises(ConfigError, match=f"no state of a training but {kind}") as caught:
        export_checkpoint(config(), given)
    assert "train_grpo" in caught.value.hint
