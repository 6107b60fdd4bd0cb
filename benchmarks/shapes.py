"""The parameters of well-known models, name and shape, written down from their architectures.

Shapes decide everything about the distribution of work; no model is built and no weight is stored.
"""

from collections.abc import Callable, Mapping
from math import prod

Shapes = dict[str, tuple[int, ...]]


def gpt2() -> Shapes:
    """GPT-2 124M (Radford et al. 2019): 12 layers of width 768, context 1024, head tied to the embedding."""
    width = 768
    shapes: Shapes = {"wte.weight": (50257, width), "wpe.weight": (1024, width)}
    for layer in (f"h.{index}" for index in range(12)):
        for norm in ("ln_1", "ln_2"):
            shapes |= _with_bias(f"{layer}.{norm}", width)
        shapes |= _with_bias(f"{layer}.attn.c_attn", 3 * width, width)
        shapes |= _with_bias(f"{layer}.attn.c_proj", width, width)
        shapes |= _with_bias(f"{layer}.mlp.c_fc", 4 * width, width)
        shapes |= _with_bias(f"{layer}.mlp.c_proj", width, 4 * width)
    return shapes | _with_bias("ln_f", width)


def llama_7b() -> Shapes:
    """Llama 7B (Touvron et al. 2023): 32 layers of width 4096, gated feed-forward of 11008."""
    shapes = _ends(width=4096)
    for layer in (f"model.layers.{index}" for index in range(32)):
        shapes |= _attention(layer, 4096) | _gated(f"{layer}.mlp", 4096, 11008)
    return shapes


def mixture_of_experts() -> Shapes:
    """100 experts: 24 layers of width 2048 whose experts are gated feed-forwards of 1408, as in DeepSeekMoE 16B (2024)."""
    shapes = _ends(width=2048)
    for layer in (f"model.layers.{index}" for index in range(24)):
        shapes |= _attention(layer, 2048) | {f"{layer}.mlp.gate.weight": (100, 2048)}
        for expert in range(100):
            shapes |= _gated(f"{layer}.mlp.experts.{expert}", 2048, 1408)
    return shapes


def resnet50() -> Shapes:
    """ResNet-50 (He et al. 2015): bottlenecks of 3, 4, 6, 3 blocks behind a 7 x 7 convolution."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7)} | _with_bias("bn1", 64)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in (f"layer{stage}.{index}" for index in range(blocks)):
            kernels = ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for index, kernel in enumerate(kernels, 1):
                shapes |= {f"{block}.conv{index}.weight": kernel} | _with_bias(f"{block}.bn{index}", kernel[0])
            if block.endswith(".0"):
                shapes |= {f"{block}.downsample.0.weight": (4 * width, inputs, 1, 1)}
                shapes |= _with_bias(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    return shapes | _with_bias("fc", 1000, inputs)


MODELS: Mapping[str, Callable[[], Shapes]] = {
    "GPT-2 124M": gpt2,
    "Llama-7B": llama_7b,
    "MoE, 100 experts": mixture_of_experts,
    "ResNet-50": resnet50,
}


def elements(shapes: Shapes) -> int:
    """The number of parameters."""
    return sum(prod(shape) for shape in shapes.values())


def _with_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _ends(width: int) -> Shapes:
    tokens = (32000, width)
    return {"model.embed_tokens.weight": tokens, "lm_head.weight": tokens, "model.norm.weight": (width,)}


def _attention(layer: str, width: int) -> Shapes:
    """The four projections of an attention, and the norms before it and before the feed-forward."""
    projections = {f"{layer}.self_attn.{each}_proj.weight": (width, width) for each in "qkvo"}
    norms = ("input_layernorm", "post_attention_layernorm")
    return projections | {f"{layer}.{norm}.weight": (width,) for norm in norms}


def _gated(name: str, width: int, hidden: int) -> Shapes:
    up: Shapes = {f"{name}.{each}_proj.weight": (hidden, width) for each in ("gate", "up")}
    return up | {f"{name}.down_proj.weight": (width, hidden)}
