"""A Llama-family GGUF file, turned into a plain Hugging Face folder: config, fp32 weights, tokenizer.

Sizes come from the file's own metadata (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). GGUF interleaves
the rows of the query and key projections for its rotary embedding; they are put back here, as transformers' own loader
does. That loader cannot save what it loaded; the folder written here loads with `from_pretrained` and saves again.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

Array = np.ndarray[Any, np.dtype[np.float32]]

TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the GGUF file `source` into `folder` as config.json, model.safetensors and tokenizer files.

    Raises ValueError for a file of another architecture than Llama's, or with a tensor that has no place in it.
    """
    convert_model(source, folder)
    convert_tokenizer(source, folder)


def convert_model(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write config.json and model.safetensors, every weight dequantised to fp32. Raises ValueError, see `convert`."""
    from transformers import LlamaConfig

    reader = GGUFReader(source)
    sizes = _sizes(reader)
    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name, heads = _place(tensor.name, sizes)
        weights[name] = np.ascontiguousarray(_uninterleaved(weight, heads) if heads else weight)
    tied = "lm_head.weight" not in weights
    config = LlamaConfig(**sizes, tie_word_embeddings=tied, architectures=["LlamaForCausalLM"], dtype="float32")
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def convert_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the tokenizer that the GGUF file carries."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(folder)


def _sizes(reader: GGUFReader) -> dict[str, Any]:
    """LlamaConfig's arguments, from the file's metadata."""

    def field(name: str) -> Any:  # noqa: ANN401 - a GGUF field has a type of its own
        return reader.fields[name].contents()

    architecture = field("general.architecture")
    if architecture != "llama":
        msg = f"this GGUF file holds the architecture {architecture!r}; only 'llama' is converted"
        raise ValueError(msg)
    tokens = {
        ours: field(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
        if f"tokenizer.ggml.{theirs}_token_id" in reader.fields
    }
    return {
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "vocab_size": field("llama.vocab_size"),
        "max_position_embeddings": field("llama.context_length"),
        # The file holds both as 32-bit floats: 1e-5 reads back as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(f"{field('llama.rope.freq_base'):.6g}")},
        **tokens,
    }


def _place(name: str, sizes: dict[str, Any]) -> tuple[str, int]:
    """The Hugging Face name of a GGUF tensor, and the heads whose rows are interleaved in it (0: none are)."""
    parts = name.split(".")
    if parts[-1] == "weight" and len(parts) == 2 and parts[0] in TOP_LEVEL:
        return f"{TOP_LEVEL[parts[0]]}.weight", 0
    if parts[-1] == "weight" and len(parts) == 4 and parts[0] == "blk" and parts[2] in IN_BLOCK:
        heads = {"attn_q": sizes["num_attention_heads"], "attn_k": sizes["num_key_value_heads"]}.get(parts[2], 0)
        return f"model.layers.{int(parts[1])}.{IN_BLOCK[parts[2]]}.weight", heads
    msg = f"the GGUF tensor {name!r} has no place in a Llama model"
    raise ValueError(msg)


def _uninterleaved(weight: Array, heads: int) -> Array:
    """`weight` (heads * size, width) with each head's rows 0, size/2, 1, size/2 + 1, ... back in order 0, 1, 2, ..."""
    rows, width = weight.shape
    ordered: Array = weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
    return ordered
