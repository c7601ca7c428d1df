"""A decoder as a GGUF file, written by the package of the format."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END = "<|endoftext|>"


def tiny_decoder(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Random weights, every one a number of bfloat16."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        max_position_embeddings=128,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(torch.bfloat16)


def write_gguf(
    path: Path,
    decoder: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    architecture: str = "qwen2",
) -> None:
    """The weights in float32 with the tokenizer, as llama.cpp's converter lays them out."""
    config = decoder.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in decoder.state_dict().items():
        if name != "lm_head.weight":
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert target is not None, name
            writer.add_tensor(target, weight.float().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    ordered = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    # the name that transformers' reader of this architecture adds where it is missing
    vocabulary = [END if token == tokenizer.eos_token else token for token in ordered]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    special = {tokenizer.pad_token, END}
    kinds = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([kinds[token in special] for token in vocabulary])
    writer.add_token_merges(_merges(tokenizer))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


def _merges(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
