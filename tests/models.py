"""Tiny random models, those of text with a tokenizer trained on the spot: real in every respect but size.

python -m tests.models KIND FOLDER        with a KIND of MODELS below
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH, LAYERS, HEADS, VOCABULARY = 32, 4, 4, 300
FFN, TOKENS = 48, 64
CORPUS = (
    "The union is strong, and the state of the union is good.",
    "We hold these truths to be self-evident, that all men are created equal.",
    "A film that is as good as it is long; a dull film is a long film.",
    "What the device knows stays on the device, what it learns may travel.",
)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "max_position_embeddings": TOKENS,
    "pad_token_id": 0,
}
GPT2 = {**SIZES, "n_embd": WIDTH, "n_inner": FFN, "n_layer": 3, "n_head": HEADS, "n_positions": TOKENS}
# Drawn as narrowly as OPT has it, so small a model attends to all alike: its queries' gradients were rounding errors.
OPT = {**SIZES, "ffn_dim": FFN, "pad_token_id": 1, "init_std": 0.1}
DISTILBERT = {**SIZES, "dim": WIDTH, "hidden_dim": FFN, "n_layers": 3, "n_heads": HEADS}
SPECIAL = 4  # so many special tokens the tokenizer has, before all others
UNKNOWN = 3  # the id of one of them, [UNK], which no text has: every text has bytes
ROBERTA = {**SIZES, "pad_token_id": UNKNOWN, "max_position_embeddings": TOKENS + UNKNOWN + 1, "type_vocab_size": 1}

# Patches attend to all alike where weights are drawn as narrowly as transformers has it; see OPT.
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "initializer_range": 0.2,
}
SCALING = {"rescale_factor": 1 / 255, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}

# By kind: the model type, and its configuration. Odd on purpose: no two numbers that could be mistaken for each other.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        {
            **SIZES,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
    ),
    "llama-biased": ("llama", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**SIZES, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 6}),
    "qwen2": (
        "qwen2",
        {
            **SIZES,
            "num_key_value_heads": HEADS,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
    "qwen3": ("qwen3", {**SIZES, "num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", GPT2),
    "opt": ("opt", OPT),
    "opt-norm-behind": ("opt", {**OPT, "do_layer_norm_before": False, "tie_word_embeddings": False}),
    "opt-plain": ("opt", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "gpt_neox": ("gpt_neox", SIZES),
    "gpt_neox-in-turn": (
        "gpt_neox",
        {
            **SIZES,
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "bert": ("bert", SIZES),
    "roberta": ("roberta", ROBERTA),
    "xlm-roberta": ("xlm-roberta", {**ROBERTA, "type_vocab_size": 2}),
    "camembert": ("camembert", ROBERTA),
    "distilbert": ("distilbert", {**DISTILBERT, "sinusoidal_pos_embds": True}),
    "vit": ("vit", {**VISION, "image_size": [12, 20], "patch_size": 4}),
    "deit": ("deit", {**VISION, "image_size": 18, "patch_size": [6, 3], "num_channels": 1}),
    "dinov2": ("dinov2", {**VISION, "mlp_ratio": 2, "image_size": 15, "patch_size": 5, "layerscale_value": 0.5}),
    "dinov2-gated": ("dinov2", {**VISION, "image_size": 15, "patch_size": 5, "use_swiglu_ffn": True}),
}
ENCODERS = {"bert", "roberta", "xlm-roberta", "camembert", "distilbert"}
OF_IMAGES = {"vit", "deit", "dinov2"}


def tiny_model(kind: str, folder: pathlib.Path, seed: int = 0, **options: Any) -> pathlib.Path:
    """A model of a kind of MODELS, as `save_pretrained` writes it: a decoder with its vocabulary, an encoder or one of
    images without a head. Its vectors, biases and norms, are drawn too. `options` go to its configuration.
    """
    model_type, sizes = MODELS[kind]
    of_images = model_type in OF_IMAGES
    special = {} if of_images else {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(model_type, **{**special, **sizes, **options})
    is_encoder = model_type in ENCODERS
    torch.manual_seed(seed)
    auto: Any = transformers.AutoModel if is_encoder or of_images else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim in {1, 3}:  # transformers starts them at 0 and 1, where an exchange of two goes unseen
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if of_images:
        channels = config.num_channels
        scaling = {name: value[:channels] if isinstance(value, list) else value for name, value in SCALING.items()}
        (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
        return folder
    _tokenizer(frame=is_encoder).save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer(*, frame: bool) -> Tokenizer:
    """A byte-level BPE of at most 300 tokens: any text has one, as any text has bytes. [CLS] and [SEP] `frame` it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
    return tokenizer


if __name__ == "__main__":
    tiny_model(sys.argv[1], pathlib.Path(sys.argv[2]))
