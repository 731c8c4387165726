"""Measures what LLaVolta's pooling saves on a Llama with random weights, beside the paper's compression ratio.

python scripts/benchmark_llavolta.py --output results/llavolta.json --figure results/llavolta.png
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig

from comneck_hf.evaluation.machine import describe_machine
from comneck_hf.evaluation.plots import plot_speedups
from comneck_hf.evaluation.pooling_speed import measure_pooling, random_llava
from comneck_hf.training.arguments import parse_arguments


@dataclass
class Arguments:
    """Sizes of the model and of the prompt, and the settings to compare."""

    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    vocab_size: int = 8000
    visual_tokens: int = field(default=576, metadata={"help": "576 are a picture of 336 pixels in LLaVA 1.5"})
    text_tokens: int = 64
    layers: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "the paper's 2 and 16 of 32 layers"})
    strides: list[int] = field(default_factory=lambda: [2, 4, 8])
    repeats: int = 5
    threads: int = 1
    output: str = "results/llavolta.json"
    figure: str = "results/llavolta.png"


def main(args: Arguments) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    llava = random_llava(
        LlamaConfig(
            vocab_size=args.vocab_size,
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
        )
    )
    settings = [(args.layers[0], 1), *((layer, stride) for layer in args.layers for stride in args.strides)]
    results = measure_pooling(
        llava,
        settings,
        visual_tokens=args.visual_tokens,
        text_tokens=args.text_tokens,
        repeats=args.repeats,
    )
    Path(args.output).write_text(json.dumps({"machine": describe_machine(), **results}, indent=1) + "\n")
    plot_speedups(results["settings"], args.figure)


if __name__ == "__main__":
    main(parse_arguments(Arguments))
