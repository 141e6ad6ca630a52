"""`python -m gptoss_tools` is `gptoss`."""

from gptoss_tools.cli.app import run

run()
