"""The embedded default: a Qwen2.5-VL of about one million parameters, generated without any download.

It is an ordinary Hugging Face folder (config, safetensors, tokenizer, processor): plain transformers and plain vLLM
load it. The architecture is the published one with small sizes. The weights are random, with a standard deviation that
lets the model learn within hundreds of steps. The byte-level BPE tokenizer is trained on given texts and has Qwen's
special tokens; each digit is a token, as in Qwen2.5.

    timemaster tiny checkpoints/tiny --text-from data/italy_power_image/sft.parquet
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timemaster.system.console import print_any_letter
from timemaster.types import InputError

log = logging.getLogger(__name__)

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# ChatML with vision markers: the format of Qwen2.5-VL's own template, without its default system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_TEXTS = (
    "system\nuser\nassistant\nLook at the plot of the time series and say which class it belongs to.",
    "<think>The level is low in the morning and the peak is at 18.</think><class>Winter</class>",
)


def make_tokenizer(texts: Iterable[str], vocab_size: int = 640) -> Any:
    """A Qwen2 tokenizer trained on `texts`, with single digits, Qwen's special tokens and the chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_config(tokenizer: Any, hidden_size: int, num_layers: int) -> Any:
    """A Qwen2_5_VLConfig of small sizes with the tokenizer's ids; patches as published: 14 pixels, merged 2 x 2."""
    from transformers import Qwen2_5_VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    head_dim = hidden_size // 4
    section = [head_dim // 8, head_dim // 16 * 3, head_dim // 16 * 3]
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section},
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": hidden_size // 2,
        "intermediate_size": hidden_size,
        "num_heads": 2,
        "out_hidden_size": hidden_size,
        "fullatt_block_indexes": [1],
        "window_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        dtype="float32",
    )


def init_weights(model: Any, std: float, seed: int) -> None:
    """Normal weights of the given std; norms are 1, biases 0. With std 0.02 a model this small does not learn."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name or "ln_q" in name else 0.0)


def write_tiny(
    folder: str | Path, texts: Sequence[str] = DEFAULT_TEXTS, hidden_size: int = 128, num_layers: int = 2, seed: int = 0
) -> Path:
    """Write the folder and return it. The tokenizer is trained on `texts`; the sizes are the language model's."""
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(texts)
    model = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer, hidden_size, num_layers))
    init_weights(model, std=0.1, seed=seed)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=1280 * 28 * 28),
        tokenizer,
        Qwen2VLVideoProcessor(min_pixels=28 * 28, max_pixels=1280 * 28 * 28),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts_of(parquet: str | Path) -> list[str]:
    """All texts in the messages of a parquet file, for training the tokenizer."""
    from timemaster.data.store import read_examples

    examples, _ = read_examples([str(parquet)])
    return [part.text for example in examples for message in example.messages for part in message.parts if part.text]


def main() -> None:
    """Command line."""
    print_any_letter()
    parser = argparse.ArgumentParser(prog="timemaster tiny", description="Make a tiny Qwen2.5-VL without a download.")
    parser.add_argument("folder", help="where to write the model")
    parser.add_argument("--text-from", default="", help="parquet whose texts train the tokenizer")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.hidden_size < 1 or args.hidden_size % 64 or args.num_layers < 1:
        parser.error("--hidden-size must be a multiple of 64, --num-layers at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        texts = [*DEFAULT_TEXTS, *(texts_of(args.text_from) if args.text_from else [])]
        write_tiny(args.folder, texts, args.hidden_size, args.num_layers, args.seed)
    except (InputError, OSError) as error:
        parser.exit(2, f"{error}\n")
    log.info("wrote a tiny Qwen2.5-VL to %s", args.folder)


if __name__ == "__main__":
    main()
