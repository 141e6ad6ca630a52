"""Teach openai/gpt-oss to decide well from a table of prompts and Q-values."""

__version__ = "0.1.0"
