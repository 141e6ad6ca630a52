"""Tiny random models for MixLoRA's tests, and their FFNs computed one token at a time."""

from __future__ import annotations

import torch
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from gptoss_tools.models.mixlora import attach
from gptoss_tools.models.mixlora_config import MixLoraConfig

VOCABULARY = 64


def gptoss(experts="eager", dtype=torch.float64, layers=2, **sizes):
    """A random gpt-oss: 4 experts of which 2 run, a sliding and a full layer."""
    options = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
        **sizes,
    }
    config = GptOssConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        pad_token_id=0,
        eos_token_id=1,
        router_aux_loss_coef=0.0,
        **options,
    )
    config._experts_implementation = experts
    return _randomised(GptOssForCausalLM, config, dtype)


def llama(dtype=torch.float64, layers=2, **sizes):
    """A random Llama with grouped-query attention."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        pad_token_id=0,
        eos_token_id=1,
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **sizes,
        },
    )
    return _randomised(LlamaForCausalLM, config, dtype)


def _randomised(kind, config, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(config)
        for parameter in model.parameters():
            # Wide enough to reach gpt-oss's clamp at 7 now and then.
            torch.nn.init.normal_(parameter, 0.0, 0.5)
    return model.to(dtype).eval()


MAKERS = {"gptoss": gptoss, "llama": llama}


def mixed(model, *, seed=0, width=0.5, **settings):
    """Attach a MixLoRA whose every parameter is far from its start; the handle has its type."""
    settings = {"r": 3, "lora_alpha": 6, "lora_dropout": 0.0, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        handle = attach(model, MixLoraConfig(**settings))
        for name, parameter in handle.named_parameters():
            if "lora_" in name or "moe_gate" in name:
                torch.nn.init.normal_(parameter, 0.0, width)
    return handle.to(model.dtype)


def tokens(batch=2, length=9, seed=5):
    """Random token ids without padding."""
    return torch.randint(2, VOCABULARY, (batch, length), generator=_generator(seed))


def states(length=7, hidden=16, seed=6, dtype=torch.float64):
    """Random hidden states [1, length, hidden]."""
    return torch.randn(1, length, hidden, generator=_generator(seed), dtype=dtype)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def lora_delta(experts, k, x):
    """(alpha / r) B A x of expert k, or 0 where this projection has no LoRA."""
    if experts is None:
        return 0.0
    pair = experts.experts[k]
    return experts.scale * (pair.lora_B.weight @ (pair.lora_A.weight @ x))


def routes(block, x):
    """(expert, weight) pairs of one token: softmax over all, the largest k, renormalised."""
    probs = (block.moe_gate.weight @ x).softmax(-1)
    chosen = sorted(range(len(probs)), key=lambda k: -probs[k])[: block.config.top_k]
    total = sum(probs[k] for k in chosen)
    return [(k, probs[k] / total) for k in chosen]


def naive_dense(mlp, block, x):
    """sum_k R_k W2'(act(W1' x) * W3' x) with W' = W + scaled B A, over tokens and experts."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        row = torch.zeros_like(token)
        for k, weight in routes(block, token):
            gate = mlp.gate_proj.weight @ token + lora_delta(block.gate_proj, k, token)
            up = mlp.up_proj.weight @ token + lora_delta(block.up_proj, k, token)
            hidden = mlp.act_fn(gate) * up
            row = row + weight * (
                mlp.down_proj.weight @ hidden + lora_delta(block.down_proj, k, hidden)
            )
        rows.append(row)
    return torch.stack(rows).reshape(x.shape)


def naive_gptoss(mlp, block, x):
    """sum_k R_k sum_j base_j FFN_j(x; LoRA_k), over tokens, base experts and LoRA experts."""
    rows = []
    experts = mlp.experts
    for token in x.reshape(-1, x.shape[-1]):
        row = torch.zeros_like(token)
        logits = mlp.router.weight @ token + mlp.router.bias
        chosen = sorted(range(len(logits)), key=lambda j: -logits[j])[: mlp.router.top_k]
        scores = logits[chosen].softmax(-1)
        for j, score in zip(chosen, scores, strict=True):
            both = token @ experts.gate_up_proj[j] + experts.gate_up_proj_bias[j]
            for k, weight in routes(block, token):
                gate = both[0::2] + lora_delta(block.gate_proj, k, token)
                up = both[1::2] + lora_delta(block.up_proj, k, token)
                gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
                hidden = gate * torch.sigmoid(1.702 * gate) * (up + 1)
                down = hidden @ experts.down_proj[j] + experts.down_proj_bias[j]
                row = row + score * weight * (down + lora_delta(block.down_proj, k, hidden))
        rows.append(row)
    return torch.stack(rows).reshape(x.shape)


NAIVE = {"gptoss": naive_gptoss, "llama": naive_dense}


def ffn(model, x, layer=0):
    """What one layer's FFN makes of x, with the MixLoRA in it."""
    output = model.model.layers[layer].mlp(x)
    return output[0] if isinstance(output, tuple) else output


def block_of(model, layer=0):
    """One layer's new FFN modules."""
    return model.mixlora.layers[layer].mlp
