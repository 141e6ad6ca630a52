"""The page as a file: one, whole, safe, and never in the way of anybody else's."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import plotly.graph_objects as go
import pytest
from report_lab import bare_run, small_run, write_json, write_lines

from gptoss_tools.errors import RunFolderError
from gptoss_tools.report.collect import collect
from gptoss_tools.report.figures import sections
from gptoss_tools.report.page import (
    MARKER,
    default_path,
    inline_script,
    script_json,
    write_report,
)

PROBE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1><!--<script>"


def painted(value):
    """The figure with every `@colour` replaced, so that plotly's own schema can judge it."""
    if isinstance(value, dict):
        return {k: painted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [painted(v) for v in value]
    return "#123456" if isinstance(value, str) and value.startswith("@") else value


def test_every_figure_is_valid_in_plotlys_schema(tmp_path):
    both = collect([small_run(tmp_path / "a"), small_run(tmp_path / "b")])
    panels = [p for section in sections(both) for p in section.panels if p.figure]
    assert len(panels) == 24
    for panel in panels:
        go.Figure(painted(panel.figure))  # raises for any property that plotly does not know


def test_the_page_is_one_file_with_plotly_once_and_no_address_to_fetch(tmp_path):
    path = write_report([small_run(tmp_path / "run")], tmp_path / "out" / "r.html")
    page = path.read_text(encoding="utf-8")
    assert page.startswith(f"<!doctype html>\n{MARKER}")
    assert page.count("* plotly.js v") == 1 and 4e6 < len(page) < 7e6
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http:" not in own and "https:" not in own
    assert not re.search(r"<(link|iframe|img|script[^>]*\bsrc)\b", own)


def test_text_of_a_run_can_neither_end_a_script_nor_become_an_element(tmp_path):
    run = small_run(tmp_path / "run", model=PROBE)
    decisions = [
        {"row": 1, "q": [0.0, 1.0], "optimal_action": 1, "action": 0, "reason": "ok", "regret": 1.0,
         "prompt": PROBE, "completion": PROBE, "names": [PROBE, "b"], "episode": PROBE,
         "phase": PROBE, "timestamp": "2026-06-01T08:00:00"}
    ]  # fmt: skip
    write_lines(run / "evaluation" / "decisions.jsonl", decisions)
    path = write_report([run], tmp_path / "r.html")
    page = path.read_text(encoding="utf-8")
    assert "hacked" in page
    assert "<script>window.hacked" not in page and "<img" not in page.split("<script>")[0]
    figures = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)[1]
    assert "<" not in figures and "hacked" in figures
    assert json.loads(figures)["map-chosen-0"]


def test_json_for_scripts_holds_no_tag_no_nan_and_reads_back():
    text = script_json({"a": "</script>", "b": [float("nan"), 1 / 3, 2], "c": None})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script>", "b": [None, 0.333333, 2], "c": None}


def test_scripts_cannot_end_their_element():
    assert inline_script("a='</script>';\r\nb='<!--';\rc") == "a='<\\/script>';\nb='<\\!--';\nc"


def test_only_a_report_of_ours_is_replaced_unasked(tmp_path):
    run = bare_run(tmp_path / "run")
    path = write_report([run])
    assert path == run / "report.html"
    write_report([run])  # an older report gives way
    path.write_text("my thesis", encoding="utf-8")
    with pytest.raises(RunFolderError, match="exists and is no report") as caught:
        write_report([run])
    assert "--overwrite" in caught.value.hint and path.read_text(encoding="utf-8") == "my thesis"
    write_report([run], overwrite=True)
    assert MARKER in path.read_text(encoding="utf-8")
    with pytest.raises(RunFolderError, match="is a folder"):
        write_report([run], tmp_path)


def test_a_report_of_several_runs_goes_beside_the_first(tmp_path):
    one, other = bare_run(tmp_path / "runs" / "a"), bare_run(tmp_path / "b")
    assert default_path([one, other]) == tmp_path / "runs" / "report.html"
    assert default_path([one, one]) == one / "report.html"


def test_half_characters_do_not_keep_a_report_from_being_written(tmp_path):
    run = small_run(tmp_path / "run")
    row = {"row": 1, "regret": 1.0, "reason": "ok", "prompt": "half \ud83d"}
    write_lines(run / "evaluation" / "decisions.jsonl", [row])
    assert "half ?" in write_report([run]).read_text(encoding="utf-8")


def test_what_could_not_be_read_is_said_on_the_page_and_to_the_caller(tmp_path):
    run = small_run(tmp_path / "run")
    write_json(run / "evaluation" / "evaluation.json", {"format": 9})
    heard: list[str] = []
    path = write_report([run], on_notice=heard.append)
    assert len(heard) == 1 and "of format 9" in heard[0]
    assert "of format 9" in path.read_text(encoding="utf-8")


def test_the_command_prints_the_path_and_as_json_its_size(gptoss, tmp_path):
    run = small_run(tmp_path / "runs" / "first")
    code, out, err = gptoss("report", run)
    assert (code, out.strip()) == (0, str(run / "report.html")), err
    other = small_run(tmp_path / "runs" / "second")
    code, out, _ = gptoss("report", run, other, "--json")
    found = json.loads(out)
    size = (tmp_path / "runs" / "report.html").stat().st_size
    assert found == {
        "report": str(tmp_path / "runs" / "report.html"),
        "runs": [str(run), str(other)],
        "bytes": size,
    }


def test_the_command_opens_the_page_where_asked(gptoss, tmp_path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = bare_run(tmp_path / "first")
    assert gptoss("report", run, "--open")[0] == 0
    assert opened == [(run / "report.html").as_uri()]


def test_a_dry_run_writes_no_report(gptoss, tmp_path):
    run = bare_run(tmp_path / "first")
    code, out, _ = gptoss("report", run, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["written"] is False
    assert not (run / "report.html").exists()


def test_a_missing_run_is_a_sentence_and_exit_code_2(gptoss):
    code, out, err = gptoss("report", "runs/none")
    assert (code, out) == (2, "") and "runs/none is not there" in err


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["runs", "runs"], ["torch", "transformers", "trl", "pandas", "numpy", "plotly", "jinja2"]),
        (["report", "runs/first"], ["torch", "transformers", "trl"]),
    ],
)
def test_neither_runs_nor_report_loads_a_models_libraries(tmp_path, arguments, unwanted):
    small_run(tmp_path / "runs" / "first")
    program = (
        "import sys\nfrom gptoss_tools.cli.app import main\n"
        f"code = main({arguments!r})\n"
        f"print('LOADED', [m for m in {unwanted!r} if m in sys.modules])\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
