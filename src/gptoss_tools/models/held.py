"""A base model that stays loaded while one adapter after another is put on it.

Training, PEFT and TRL all leave something on the model they are given: layers replaced, hooks,
flags, a changed generation config. `HeldModel` is called like `load_model` and lends the same
weights again with all of that undone; weights that were changed are never lent, but loaded anew.
"""

from __future__ import annotations

import copy
import gc
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gptoss_tools.models.experts import held_as
from gptoss_tools.models.loading import load_model
from gptoss_tools.models.names import resolve_model

Loader = Callable[..., Any]
"""Called with a model's name and `load_model`'s keywords; returns the model."""
_IRRELEVANT = ("for_training", "cache_dir")
_CONFIGS = ("config", "generation_config")
_SIGNATURE = inspect.signature(load_model)


class HeldModel:
    """Lends one loaded model at a time; the newest borrower has it, older ones must let go.

    `load` is asked for what is not held: another model, or the same with other options.
    """

    def __init__(self, load: Loader = load_model) -> None:
        self._load = load
        self._wanted: dict[str, Any] | None = None
        self._model: PreTrainedModel | None = None
        self._modules: list[tuple[torch.nn.Module, dict[str, Any]]] = []
        self._weights: list[tuple[torch.Tensor, torch.Tensor, bool]] = []
        self._configs: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str | Path, **options: Any) -> PreTrainedModel:
        """Return the model as it was loaded; options are those of `load_model`."""
        path = resolve_model(name, cache_dir=options.get("cache_dir"))
        path = str(Path(path).resolve()) if Path(path).is_dir() else path
        asked = _SIGNATURE.bind(path, **options)
        asked.apply_defaults()
        wanted = {k: v for k, v in asked.arguments.items() if k not in _IRRELEVANT}
        if wanted["experts"] == "auto" and self._wanted is not None:
            wanted["experts"] = self._wanted["experts"]
        if self._model is None or wanted != self._wanted or self._changed():
            self.free()
            # Attention that can be trained through also answers, so one loading serves both.
            self._remember(self._load(path, **{**options, "for_training": True}))
            self._wanted = {**wanted, "experts": held_as(self._model)}
        self._restore()
        assert self._model is not None
        return self._model

    @property
    def held_bytes(self) -> int:
        """Memory that the weights take already."""
        return sum(weight.nbytes for weight, _, _ in self._weights)

    def free(self) -> None:
        """Let go of the model; the next call loads it again."""
        self._model, self._wanted = None, None
        self._modules, self._weights, self._configs = [], [], {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _changed(self) -> bool:
        """Whether something was trained: that moves whole tensors, so some numbers of each tell."""
        return any(not torch.equal(_some(weight), some) for weight, some, _ in self._weights)

    def _remember(self, model: PreTrainedModel) -> None:
        self._model = model
        self._modules = [(module, _copied(vars(module))) for module in model.modules()]
        tensors = [*model.parameters(), *model.buffers()]
        self._weights = [(t, _some(t), t.requires_grad) for t in tensors]
        self._configs = {name: copy.deepcopy(vars(getattr(model, name))) for name in _CONFIGS}

    def _restore(self) -> None:
        for module, state in self._modules:
            vars(module).clear()
            vars(module).update(_copied(state))
        for weight, _, requires_grad in self._weights:
            weight.requires_grad_(requires_grad)
            weight.grad = None
        for name, values in self._configs.items():
            vars(getattr(self._model, name)).clear()
            vars(getattr(self._model, name)).update(copy.deepcopy(values))


def _some(weight: torch.Tensor) -> torch.Tensor:
    """Up to 512 numbers of a tensor, evenly spread. Its version counter misses fused optimizers."""
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 256)].clone()


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module: its collections one level deep, everything else itself."""
    return {k: copy.copy(v) if isinstance(v, dict | list | set) else v for k, v in state.items()}
