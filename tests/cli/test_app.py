from __future__ import annotations

import subprocess
import sys
import time

import pytest

from gptoss_tools.cli.app import COMMANDS, load_command
from gptoss_tools.load import COMMAND_SETTINGS

HEAVY = (
    *("torch", "transformers", "trl", "peft", "datasets", "pandas", "numpy"),
    *("pydantic_settings", "modal"),
)


@pytest.mark.parametrize("arguments", [["-h"], *([name, "-h"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments):
    program = (
        "import sys\nfrom gptoss_tools.cli.app import main\n"
        f"code = main({arguments!r})\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_and_its_row_is_its_docstring(gptoss, name):
    code, out, _ = gptoss(name, "-h")
    assert code == 0
    assert f"gptoss {name}" in out.split("Examples:")[1]
    assert load_command(name).run.__doc__.splitlines()[0] == COMMANDS[name]
    assert name == "config" or COMMAND_SETTINGS[name] is load_command(name).settings


def test_commands_that_write_or_train_have_a_dry_run():
    writing = {
        "demo",
        "pipeline",
        "make-dataset",
        "convert-harmony",
        "calc-reward",
        "prepare-data",
        "train-grpo",
        "pretrain",
        "resume",
        "export",
        "generate",
    }
    for name in writing:
        assert "dry_run" in COMMAND_SETTINGS[name].model_fields, name


def test_an_unknown_command_and_an_unknown_flag_are_usage_errors(gptoss):
    assert gptoss("calc-rewrd")[0] == 2
    assert gptoss("calc-reward", "--tauu", "1")[0] == 2


def test_a_wrong_value_is_one_sentence_on_stderr_and_exit_code_2(gptoss):
    code, out, err = gptoss("calc-reward", "--method", "magic")
    assert (code, out) == (2, "")
    assert err.startswith("error: `method` = 'magic' (from --method):")
    assert "Traceback" not in err


def test_root_help_without_arguments_and_the_version(gptoss):
    assert gptoss("--version")[1].startswith("gptoss 0.")
    code, out, _ = gptoss("-h")
    assert code == 0 and all(name in out for name in COMMANDS)


def test_the_cli_page_is_fresh(repository, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # which `render` sets, and nobody else is to meet
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    sys.path.insert(0, str(repository / "tools"))
    try:
        from write_cli_docs import render
    finally:
        sys.path.pop(0)
    page = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == render(), "run `make docs`"


def test_imports_go_only_downwards(repository):
    done = subprocess.run(
        ["lint-imports", "--no-cache"],
        cwd=repository,
        capture_output=True,
        text=True,
        env={"PATH": f"{sys.exec_prefix}/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_an_address_of_a_registry_or_a_path_of_a_machine(repository):
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.split()
    # Put together here, so that this file does not name them either.
    bad = [
        "pypi" + ".org",
        "python" + "hosted",
        *(f"/{name}/" for name in ("work", "home", "root")),
    ]
    for name in tracked:
        text = (repository / name).read_text(encoding="utf-8", errors="replace")
        for word in bad:
            assert word not in text, f"{name} holds {word}"


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    source = tmp_path / "x.csv"
    source.write_text("prompt,q_action_0,q_action_1\n" + '"decide",1,2\n' * 1_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "gptoss_tools", "calc-reward", str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(tmp_path.iterdir())) == 1:
        time.sleep(0.01)
    process.terminate()
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "error: ended by SIGTERM"
    assert list(tmp_path.iterdir()) == [source]


def test_a_stray_rank_variable_silences_nothing(gptoss, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    code, stdout, _ = gptoss("config", "check-data", "--json")
    assert code == 0 and stdout.startswith("{")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert gptoss("config", "check-data", "--json") == (0, "", "")


def test_a_demo_cannot_go_into_a_file(gptoss, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, stderr = gptoss("demo", "--out", tmp_path / "file")
    assert code == 2 and "is a file, not a folder" in stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Exception("No space left on device (os error 28)"), "error: the disk is full\nhint: make"),
        (Exception("of a kind nobody thought of"), "error: Exception: of a kind nobody thought of"),
    ],
)
def test_a_full_disk_is_named_whoever_met_it(gptoss, monkeypatch, error, said):
    monkeypatch.delenv("GPTOSS_DEBUG", raising=False)

    def fails():
        raise error

    monkeypatch.setattr("gptoss_tools.rewards.combined.all_kinds", fails)
    code, _, err = gptoss("rewards")
    assert code == 1 and said in err
