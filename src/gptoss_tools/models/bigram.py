"""The small decoder that a well-known lecture builds up and still calls BigramLanguageModel.

Karpathy's "Let's build GPT" begins with a table of token pairs and ends, under the same name, with
a transformer: learned positions, blocks of attention and ReLU feed-forward with layer norms before
them, dropout, a head of its own. This is that last one as a transformers model: importing this file
makes `from_pretrained` know it, and `generate` slides its window along texts of any length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu, scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.generation.utils import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput


class BigramConfig(PreTrainedConfig):
    """Sizes of a BigramLanguageModel, under the names all models use."""

    model_type = "bigram"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 256,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 128,
        dropout: float = 0.2,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.use_cache = False
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class Block(GradientCheckpointingLayer):
    """Attention, then feed-forward, each added to what came in."""

    def __init__(self, config: BigramConfig):
        super().__init__()
        size = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.attention_norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.proj = nn.Linear(size, size)
        self.ffn_norm = nn.LayerNorm(size)
        self.ffn_up = nn.Linear(size, config.intermediate_size)
        self.ffn_down = nn.Linear(config.intermediate_size, size)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`hidden` [_B, _T, size]; `mask` [_B, 1, _T, _T] says who may look where, None: causal."""
        rows, tokens, size = hidden.shape
        normed = self.attention_norm(hidden)
        query, key, value = (
            part(normed).view(rows, tokens, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )
        hidden = hidden + self.drop(self.proj(seen.transpose(1, 2).reshape(rows, tokens, size)))
        inner = relu(self.ffn_up(self.ffn_norm(hidden)))
        return hidden + self.drop(self.ffn_down(inner))


class BigramLanguageModel(PreTrainedModel, GenerationMixin):
    """The decoder. Windows longer than `max_position_embeddings` cannot be read."""

    config_class = BigramConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: BigramConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.token_embedding = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Score the next token at every place: logits [_B, _T, vocabulary].

        `attention_mask` is 0 at padding, which may stand on either side. With `labels` (ids as the
        input, -100 where none is asked) there is a loss, shifted by one as everywhere.
        """
        tokens = input_ids.shape[1]
        mask = None
        places = torch.arange(tokens, device=input_ids.device)[None]
        if attention_mask is not None and not bool(attention_mask.all()):
            places = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
            earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=input_ids.device).tril()
            itself = torch.eye(tokens, dtype=torch.bool, device=input_ids.device)
            # Padding looks at itself: a row that may look nowhere would be NaN.
            mask = (earlier & attention_mask.bool()[:, None, None, :]) | itself
        hidden = self.token_embedding(input_ids) + self.position_embedding(places)
        for block in self.blocks:
            hidden = block(hidden, mask)
        logits = self.lm_head(self.norm(hidden))
        loss = None
        if labels is not None:
            loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Replaces transformers': show the newest tokens that fit, and keep no cache."""
        window = self.config.max_position_embeddings
        if attention_mask is not None:
            attention_mask = attention_mask[:, -window:]
        return {"input_ids": input_ids[:, -window:], "attention_mask": attention_mask}


AutoConfig.register("bigram", BigramConfig, exist_ok=True)
AutoModelForCausalLM.register(BigramConfig, BigramLanguageModel, exist_ok=True)
