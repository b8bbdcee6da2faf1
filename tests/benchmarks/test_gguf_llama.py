"""A GGUF file becomes the very model that it was made from."""

from __future__ import annotations

import pathlib

import gguf
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gguf_llama import IN_BLOCK, TOP_LEVEL, Array, convert_model

HEADS = {"attn_q": 4, "attn_k": 2}


def tiny_llama(*, tied: bool) -> LlamaForCausalLM:
    """Two layers of random weights, with fewer key heads than query heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


def interleaved(weight: Array, heads: int) -> Array:
    """What llama.cpp's converter does to query and key rows (convert_hf_to_gguf.py, LlamaModel.permute)."""
    rows, width = weight.shape
    mixed: Array = weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
    return mixed


def write_gguf(path: pathlib.Path, model: LlamaForCausalLM, architecture: str = "llama") -> None:
    """`model` as llama.cpp would write it, in fp32."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    theirs = {ours: name for name, ours in {**TOP_LEVEL, **IN_BLOCK}.items()}
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            layer, part = stem.removeprefix("model.layers.").split(".", 1)
            weight = tensor.numpy()
            if theirs[part] in HEADS:
                weight = interleaved(weight, HEADS[theirs[part]])
            writer.add_tensor(f"blk.{layer}.{theirs[part]}.weight", weight)
        else:
            writer.add_tensor(f"{theirs[stem]}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_the_source(tmp_path: pathlib.Path, *, tied: bool) -> None:
    """The folder loads with from_pretrained and gives the same logits, bit for bit, with the sizes as they were."""
    model = tiny_llama(tied=tied)
    write_gguf(tmp_path / "tiny.gguf", model)
    convert_model(tmp_path / "tiny.gguf", tmp_path / "folder")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "folder").eval()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    for name in ("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "bos_token_id", "head_dim"):
        assert getattr(loaded.config, name) == getattr(model.config, name)


def test_another_architecture_is_refused(tmp_path: pathlib.Path) -> None:
    """A file that holds no Llama is refused in one line that names what it holds."""
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True), architecture="gpt2")
    with pytest.raises(ValueError, match="'gpt2'; only 'llama'"):
        convert_model(tmp_path / "tiny.gguf", tmp_path / "folder")
