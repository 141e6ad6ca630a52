"""What cells show of a training: the last steps in a table, all of them in a plot."""

from __future__ import annotations

import subprocess
import sys

from gptoss_tools.notebook.display import Cells, Display, _plot, _table, display_for
from gptoss_tools.training.tracking import Progress

STEPS = [
    Progress(step=n, max_steps=12, loss=0.5, reward=n / 4, regret=None if n < 6 else 2.0, eta=12.0)
    for n in range(1, 11)
]


def test_the_plot_has_every_measured_value_at_its_step():
    traces = _plot(STEPS)["application/vnd.plotly.v1+json"]["data"]
    drawn = {t["name"]: (list(t["x"]), list(t["y"])) for t in traces}
    assert drawn["reward"] == (list(range(1, 11)), [n / 4 for n in range(1, 11)])
    assert drawn["regret"] == ([6, 7, 8, 9, 10], [2.0] * 5)
    assert "https://cdn.plot.ly/plotly-" in _plot(STEPS)["text/html"]


def test_the_table_has_the_last_eight_steps_and_no_empty_column():
    text = _table(STEPS, 12)["text/plain"]
    assert "3/12" in text and "10/12" in text and "2/12" not in text.replace("12/12", "")
    assert "reward" in text and "12 s" in text and "tokens/s" not in text
    assert "<pre" in _table(STEPS, 12)["text/html"]


def test_only_a_kernel_gets_cells():
    assert type(display_for()) is Display and type(display_for(quiet=True)) is Display
    assert issubclass(Cells, Display)


def test_a_script_never_imports_ipython():
    code = "import sys, gptoss_tools.notebook as n; n.display.display_for(); "
    code += "sys.exit('IPython' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
