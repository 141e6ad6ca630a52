"""A GGUF as plain Python: its keys, and its tensors as checkpoint-like shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader


class Tensor(NamedTuple):
    """Type by name, shape with the outermost axis first, and the bytes."""

    kind: str
    shape: tuple[int, ...]
    data: bytes

    def floats(self) -> np.ndarray:
        """The values of a float tensor, in float32."""
        if self.kind == "BF16":
            wide = np.frombuffer(self.data, "<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(self.shape)
        return np.frombuffer(self.data, {"F32": "<f4"}[self.kind]).reshape(self.shape)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All keys but the counts of the header, and all tensors."""
    reader = GGUFReader(path)
    keys = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {
        one.name: Tensor(
            one.tensor_type.name,
            tuple(int(n) for n in reversed(one.shape.tolist())),
            one.data.tobytes(),
        )
        for one in reader.tensors
    }
    return keys, tensors
