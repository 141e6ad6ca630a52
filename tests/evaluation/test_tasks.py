"""Tasks of lm-eval: on the model that answers, its adapter active; what is refused, and when."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tasks_lab import QUESTIONS, log_likelihood, random_lora, random_mixlora, write_tasks

from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.evaluation.policy import Policy, load_policy
from gptoss_tools.evaluation.task_names import refuse_unwritten
from gptoss_tools.evaluation.task_results import beside
from gptoss_tools.evaluation.tasks import Tasks, run_tasks
from gptoss_tools.settings import EvaluateSettings

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs pip install 'gptoss-tools[eval]'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    return random_lora(tiny, tmp_path_factory.mktemp("lora") / "adapter")


def by_hand(policy: Policy) -> tuple[list[float], list[float]]:
    """What `levels` and `endings` are, example by example, from forward passes of our own."""
    right = []
    for question in QUESTIONS:
        lls = [log_likelihood(policy, question, f" {choice}") for choice in question["choices"]]
        right.append(float(lls.index(max(lls)) == question["best"]))
    return right, [log_likelihood(policy, q, q["said"]) for q in QUESTIONS]


def by_lm_eval(policy: Policy, folder: Path) -> tuple[list[float], list[float]]:
    rows = run_tasks(policy, ["levels", "endings"], batch_size=5, include_path=folder)["tasks"]
    return rows["levels"]["examples"]["acc"], rows["endings"]["examples"]["perplexity"]


@needs_lm_eval
@pytest.mark.slow
def test_base_and_adapter_have_the_log_likelihoods_of_our_own_forward_pass(tiny, adapter, folder):
    found = {}
    for target in (tiny, adapter):
        policy = load_policy(target)
        right, lls = by_hand(policy)
        assert by_lm_eval(policy, folder) == (right, pytest.approx(lls, abs=1e-4))
        found[target] = right, lls
    gains = [a - b for a, b in zip(found[adapter][1], found[tiny][1], strict=True)]
    assert min(map(abs, gains)) > 1  # of about -45 each: the adapter changes every example


@needs_lm_eval
@pytest.mark.slow
def test_a_merged_export_has_the_adapters_figures(tiny, adapter, folder, gptoss):
    code, _, error = gptoss("export", adapter, "--out", "merged", "--format", "bf16")
    assert code == 0, error
    right, lls = by_lm_eval(load_policy(adapter), folder)
    merged_right, merged_lls = by_lm_eval(load_policy("merged"), folder)
    assert merged_right == right
    # the merged attention is rounded to bfloat16, 8 bits, once
    assert merged_lls == pytest.approx(lls, rel=0.02)


@needs_lm_eval
@pytest.mark.slow
def test_a_mixlora_is_active_and_put_aside_for_its_base(tiny, folder, tmp_path, gptoss):
    adapter = random_mixlora(tiny, tmp_path / "mixlora")
    policy, base = load_policy(adapter), load_policy(tiny)
    right, lls = by_hand(policy)
    assert by_lm_eval(policy, folder) == (right, pytest.approx(lls, abs=1e-4))
    line = ("evaluate", adapter, "--tasks", "endings", "--task-folder", folder, "--json")
    code, text, error = gptoss(*line)
    assert code == 0, error
    figures = json.loads(text)["tasks"]["endings"]["metrics"]["perplexity"]
    for name, value in (("policy", lls), ("base", by_hand(base)[1])):
        assert math.log(figures[name]) == pytest.approx(-sum(value) / 12, abs=1e-4)
    assert abs(math.log(figures["policy"] / figures["base"])) > 1


@needs_lm_eval
def test_figures_are_lm_evals_with_standard_errors_and_counts(policy, folder):
    found = run_tasks(policy, ["levels", "endings"], limit=8, include_path=folder)
    levels, endings = (found["tasks"][name] for name in ("levels", "endings"))
    assert (levels["n"], levels["n_all"], levels["version"]) == (8, 12, 1.5)
    assert levels["num_fewshot"] == 0 and levels["part_of"] is None
    assert found["lm_eval"] == importlib.metadata.version("lm_eval")
    share = sum(levels["examples"]["acc"]) / 8
    acc = levels["metrics"]["acc"]
    assert acc["value"] == pytest.approx(share)
    # of n zeros and ones with mean p, that of the mean is sqrt(p (1 - p) / (n - 1))
    assert acc["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 7))
    lls = endings["examples"]["perplexity"]
    value = endings["metrics"]["perplexity"]["value"]
    assert math.log(value) == pytest.approx(-sum(lls) / 8, rel=1e-9)


@needs_lm_eval
@pytest.mark.slow
def test_a_tag_is_its_tasks_and_a_group_has_figures_of_its_own(policy, folder):
    known = Tasks(["both", "ours"], folder)
    assert list(known.definitions) == ["both", "levels", "levels_again"]
    shares: list[float] = []
    rows = known.load("both").run(policy, limit=3, on_share=shares.append)
    parts = {name: row["part_of"] for name, row in rows.items()}
    assert parts == {"both": None, "levels": "both", "levels_again": "both"}
    assert (rows["both"]["n"], rows["both"]["n_all"], rows["both"]["version"]) == (6, 24, "2.0")
    assert rows["both"]["examples"]["acc"] == 2 * rows["levels"]["examples"]["acc"]
    # two tasks of three examples with four choices each
    assert shares == [pytest.approx(done / 24) for done in range(1, 25)]


def test_a_difference_is_paired_where_the_metric_is_a_mean():
    def row(acc: list[float], ppl: float) -> dict:
        metrics = {"acc": sum(acc) / 4, "ppl": ppl, "odd": 1.0}
        examples = {"acc": acc, "ppl": [-1.0] * 4, "odd": [None, 1.0, 1.0, 1.0]}
        shown = {name: {"value": value, "stderr": 0.25} for name, value in metrics.items()}
        return {"n": 4, "metrics": shown, "examples": examples}

    ours, base = row([1, 1, 0, 1], 2.5), row([0, 1, 0, 0], 3.0)
    found = beside(ours, base)
    assert "examples" not in found and found["n"] == 4
    # differences 1, 0, 0, 1: mean 1/2, variance 4 (1/2)^2 / 3 = 1/3, of the mean sqrt(1/12)
    assert found["metrics"]["acc"] == {
        "policy": 0.75, "stderr": 0.25, "base": 0.25, "base_stderr": 0.25,
        "difference": 0.5, "difference_stderr": pytest.approx(math.sqrt(1 / 12)),
    }  # fmt: skip
    assert found["metrics"]["ppl"]["difference"] == -0.5
    assert found["metrics"]["ppl"]["difference_stderr"] is None  # no mean of the examples
    assert found["metrics"]["odd"]["difference_stderr"] is None  # an example without a value
    alone = beside(ours, None)["metrics"]["acc"]
    assert alone["policy"] == 0.75 and alone["base"] is alone["difference"] is None
    assert alone["base_stderr"] is alone["difference_stderr"] is None


@needs_lm_eval
@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest_names_before_any_model(
    gptoss, folder, tmp_path
):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "gpt_oss"}')
    code, _, error = gptoss(
        "evaluate", broken, "--tasks", "levels,arc_esy", "--task-folder", folder
    )
    assert code == 2
    assert f"`tasks` names 'arc_esy', which is no task of lm-eval or {folder}" in error
    assert "hint: near it: arc_easy" in error


@needs_lm_eval
@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("dataset_path: json", "dataset_path: nobody/nothing", MachineError,
         "the data of task levels are not here and could not be fetched: .*nobody/nothing"),
        ("test_split: test", "test_split: exam", ConfigError, "task levels cannot be read: KeyErr"),
    ],
)  # fmt: skip
def test_a_task_whose_data_are_not_there_is_named(folder, tmp_path, old, new, error, message):
    (tmp_path / "one.yaml").write_text((folder / "levels.yaml").read_text().replace(old, new))
    with pytest.raises(error, match=message):
        Tasks(["levels"], tmp_path).load("levels")


def test_a_missing_lm_eval_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MachineError, match="lm-evaluation-harness, which is not installed") as e:
        Tasks(["arc_easy"])
    assert e.value.hint == "pip install 'gptoss-tools[eval]'"


@needs_lm_eval
def test_a_name_in_no_definition_is_refused_before_anything_heavy_is_imported(folder):
    code = (
        "import sys\n"
        "from gptoss_tools.cli.app import main\n"
        f"assert main(['evaluate', 'tiny', '--tasks', 'hellasag', '--task-folder', {str(folder)!r}"
        "]) == 2\n"
        "print({'torch', 'transformers', 'pandas', 'lm_eval'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr
    assert "`tasks` names 'hellasag', which is no task of lm-eval or" in done.stderr
    assert "hint: near it: hellaswag" in done.stderr


@needs_lm_eval
def test_every_name_that_lm_eval_knows_stands_in_a_definition(folder):
    """Else one of them would be refused: a group, a tag, and one made in an included file."""
    refuse_unwritten(["arc_easy", "mmlu", "ai2_arc", "salt_tasks", "mmlu_high_school_us_history"])
    refuse_unwritten(["levels", "both", "ours", "arc_easy"], folder)
    for name in ("arc_eas", "levels_again"):
        with pytest.raises(ConfigError, match=f"'{name}', which is no task of lm-eval"):
            refuse_unwritten(["arc_easy", name])


@needs_lm_eval
def test_a_task_folder_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="`task_folder` = 'nowhere' is not a folder"):
        Tasks(["levels"], "nowhere")


def test_tasks_may_be_separated_by_commas_or_repeated_and_a_limit_needs_them():
    assert EvaluateSettings(tasks=["a, b", "c", "a,"]).tasks == ["a", "b", "c"]
    for name, value in (("limit", 5), ("task_folder", "here")):
        with pytest.raises(ValueError, match="are about tasks, and none is named"):
            EvaluateSettings.model_validate({name: value})
