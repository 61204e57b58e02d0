"""Eight families of the transformers library, from small random configurations, ready to export.

Each family is a function that builds a module in eval mode with seeded weights, and its inputs: a
tuple, or a dict of keyword arguments. The modules return plain tensors and draw nothing from the
network; attention is the library call wherever the family has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is first imported, below

Built = tuple[nn.Module, tuple[Tensor, ...] | dict[str, Tensor]]

VOCABULARY, TOKENS, IMAGE = 71, 9, 32


class Plain(nn.Module):
    """The model's answer `field` alone, so that outputs are tensors and no records."""

    def __init__(self, model: nn.Module, field: str, **options: object) -> None:
        super().__init__()
        self.model, self.field, self.options = model, field, options

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return getattr(self.model(*args, **kwargs, **self.options), self.field)


def finish(model: nn.Module, field: str, **options: object) -> nn.Module:
    """Eval mode, and numbers that are alive: norms that scale and shift, weights that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = parameter[0].numel() ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return Plain(model, field, **options).eval()


def ids(batch: int = 2) -> Tensor:
    """Token ids, (batch, TOKENS)."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, VOCABULARY, (batch, TOKENS), generator=generator)


def noise(*shape: int) -> Tensor:
    """Standard normal values of a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def padding() -> Tensor:
    """An attention mask, (2, TOKENS), whose second row ends early."""
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, -3:] = 0
    return mask


def bert() -> Built:
    """BERT with padding and two segments."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        attn_implementation="sdpa",
    )
    segments = torch.zeros(2, TOKENS, dtype=torch.int64)
    segments[:, 4:] = 1
    inputs = {"input_ids": ids(), "attention_mask": padding(), "token_type_ids": segments}
    return finish(BertModel(config), "last_hidden_state"), inputs


def gpt2() -> Built:
    """GPT-2 with its language head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    return finish(GPT2LMHeadModel(config), "logits", use_cache=False), (ids(),)


def llama() -> Built:
    """Llama with grouped heads and its language head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        attn_implementation="sdpa",
    )
    return finish(LlamaForCausalLM(config), "logits", use_cache=False), (ids(),)


def vit() -> Built:
    """ViT with its pooled answer."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=IMAGE,
        patch_size=8,
        attn_implementation="sdpa",
    )
    return finish(ViTModel(config), "pooler_output"), (noise(2, 3, IMAGE, IMAGE),)


def resnet() -> Built:
    """ResNet of two bottleneck stages, with its classifier."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        layer_type="bottleneck",
        num_labels=7,
    )
    return finish(ResNetForImageClassification(config), "logits"), (noise(2, 3, IMAGE, IMAGE),)


def t5_encoder() -> Built:
    """T5's encoder, gated, with relative position buckets and padding."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    inputs = {"input_ids": ids(), "attention_mask": padding()}
    return finish(T5EncoderModel(config), "last_hidden_state"), inputs


def mixtral() -> Built:
    """Mixtral; its experts as one batched matmul, whose shapes are static."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=16,
        attn_implementation="sdpa",
        experts_implementation="batched_mm",
    )
    return finish(MixtralForCausalLM(config), "logits", use_cache=False), (ids(),)


def whisper_encoder() -> Built:
    """Whisper's encoder over a short log-mel spectrogram."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        max_source_positions=10,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        attn_implementation="sdpa",
    )
    return finish(WhisperEncoder(config), "last_hidden_state"), (noise(2, 8, 20),)


FAMILIES: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (bert, gpt2, llama, vit, resnet, t5_encoder, mixtral, whisper_encoder)
}


def families() -> dict[str, Callable[[], Built]]:
    """Every family by name; a call builds it from seed 0 and leaves the global generator alone."""

    def seeded(build: Callable[[], Built]) -> Callable[[], Built]:
        def call() -> Built:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return build()

        return call

    return {name: seeded(build) for name, build in FAMILIES.items()}


def run(module: nn.Module, inputs: tuple[Tensor, ...] | dict[str, Tensor]) -> Tensor:
    """The module's answer to inputs of either kind."""
    with torch.no_grad():
        return module(**inputs) if isinstance(inputs, dict) else module(*inputs)
