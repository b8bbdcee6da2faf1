"""Tiny random models with a tokenizer trained on the spot: real in every respect but size.

python -m tests.models llama|gpt2|bert FOLDER
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH, LAYERS, HEADS, VOCABULARY = 32, 4, 4, 300
CORPUS = (
    "The union is strong, and the state of the union is good.",
    "We hold these truths to be self-evident, that all men are created equal.",
    "A film that is as good as it is long; a dull film is a long film.",
    "What the device knows stays on the device, what it learns may travel.",
)


def tiny_llama(folder: pathlib.Path, layers: int = LAYERS, seed: int = 0, **options: Any) -> pathlib.Path:
    """A Llama with grouped heads, of width 32, as `save_pretrained` writes it. `options` go to its configuration."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    config = transformers.LlamaConfig(num_hidden_layers=layers, pad_token_id=0, **{**sizes, **options})
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tiny_gpt2(folder: pathlib.Path, layers: int = 3, seed: int = 0, **options: Any) -> pathlib.Path:
    """A GPT-2 of width 32, biases and norms drawn too, as `save_pretrained` writes it. `options` go to its
    configuration.
    """
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_inner": 48, "n_head": HEADS, "n_positions": 64}
    config = transformers.GPT2Config(n_layer=layers, bos_token_id=0, eos_token_id=0, **{**sizes, **options})
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # transformers starts them at 0 and 1, where an exchange of two goes unseen
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tiny_bert(folder: pathlib.Path, layers: int = 3, seed: int = 0, **options: Any) -> pathlib.Path:
    """A BERT encoder of width 32 with a pooler, as `save_pretrained` writes it. `options` go to its configuration."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer = _tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer() -> Tokenizer:
    """A byte-level BPE of at most 300 tokens: any text has one, as any text has bytes."""
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
    return tokenizer


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert}

if __name__ == "__main__":
    MODELS[sys.argv[1]](pathlib.Path(sys.argv[2]))
