"""Compares the teacher `vlm` with one whole pass of its model per prompt. Prints JSON.

The model is a Qwen2.5-VL with random weights in a temporary folder; `write_random_qwen` is also for
tests. Needs the extra `hf`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.program import run_main
from benchmarks.timing import time_in_turns
from pipeline.utils.devices import resolve_device
from pipeline.vocabulary import load_vocabulary
from teacher_cache.teachers.prompts import prompt_classes
from teacher_cache.teachers.vlm import PHRASE, QUESTIONS, VlmTeacher

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL_TOKENS += ("<|image_pad|>", "<|video_pad|>", "<|endoftext|>")
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(
    texts: Sequence[str],
    special_tokens: Sequence[str],
    kind: str = "PreTrainedTokenizerFast",
    **options: str,
):
    """A byte-level BPE tokenizer in which each word of the texts is one token.

    Args:
        kind: its class in transformers.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return getattr(transformers, kind)(tokenizer_object=tokenizer, **options)


def write_random_qwen(
    folder: Path, texts: Sequence[str], width: int = 32, layers: int = 2, scale: float = 0.02
) -> None:
    """Saves a Qwen2.5-VL with random weights and its processor.

    Args:
        texts: of the tokenizer's training.
        width, layers: of the text model as well as of the image encoder.
        scale: standard deviation of the weights; a larger one makes outputs of different inputs
            more different.
    """
    import transformers

    tokenizer = train_tokenizer(
        texts, SPECIAL_TOKENS, "Qwen2TokenizerFast", pad_token="<|endoftext|>"
    )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    heads = width // 8 if width < 256 else width // 64
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "initializer_range": scale}
    half = width // heads // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": sections}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **sizes,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "rope_parameters": {**rope, "rope_theta": 10_000.0},
            "rope_scaling": rope,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            **sizes,
            "depth": layers,
            "num_heads": heads,
            "out_hidden_size": width,
            "fullatt_block_indexes": [layers - 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def prompt_texts(vocabulary) -> list[str]:
    """Texts with all words of the default prompts of a vocabulary, and the answers."""
    templates = [*QUESTIONS.values(), PHRASE]
    texts = [
        template.format(ing=ing, object=name).replace("_", " ")
        for _, ing, name in prompt_classes(vocabulary)
        for template in templates
    ]
    return [*texts, "Yes", "No", " Yes", " No", "yes no Yes No", TEMPLATE]


def main() -> None:
    """Entry point of `python -m benchmarks.vlm_passes`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--object", default="horse", help="Object of HICO-DET.")
    parser.add_argument("--width", type=int, default=256, help="Width of the model.")
    parser.add_argument("--layers", type=int, default=6, help="Layers of the model.")
    parser.add_argument("--size", type=int, default=448, help="Side of the image in pixels.")
    parser.add_argument("--score", default="yes-no", choices=["yes-no", "likelihood"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device, vocabulary = resolve_device(options.device), load_vocabulary("hico-det")
    ings = [
        ing
        for verb, ing, name in prompt_classes(vocabulary)
        if name == options.object and verb != "no_interaction"
    ]
    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        write_random_qwen(Path(name), prompt_texts(vocabulary), options.width, options.layers)
        teacher = VlmTeacher(device, name, score=options.score, precision="float32")
    picture = Image.effect_noise((options.size, options.size), 80).convert("RGB")
    prompts = teacher.make_prompts(ings, options.object)
    # CPU seconds are those of this process, whatever else the machine does.
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def timed(run: Callable) -> Callable[[], float]:
        def start() -> float:
            started = clock()
            run(picture, prompts).cpu()
            return clock() - started

        return start

    with torch.inference_mode():
        difference = teacher.run(picture, prompts) - teacher.run_whole(picture, prompts)
        sides = {"shared": timed(teacher.run), "whole": timed(teacher.run_whole)}
        timings = time_in_turns(sides, options.turns, device)
        length = teacher.prepare(prompts.texts[0], picture)["input_ids"].shape[1]
    endings = [len(ending) for ending in prompts.endings]
    whole = [length - endings[0] + ending for ending in endings]
    result = {
        "prompts": len(endings),
        "tokens": {"shared": length - endings[0] + sum(endings), "whole": sum(whole)},
        "seconds": timings.medians(),
        "ratio": timings.ratio("whole", "shared"),
        "largest_difference": float(difference.abs().max()),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_main(main)
