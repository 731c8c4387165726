"""Fine-tunes a LLaVA with LLaVolta's schedules, all of its language model or LoRA adapters.

python scripts/train_llavolta.py --model llava-hf/llava-1.5-7b-hf --data DATA --pooling 4stage --output_dir runs/lv
torchrun --nproc_per_node 8 scripts/train_llavolta.py ...

`DATA` is anything `datasets` loads, with `messages` or LLaVA's `conversations` beside `image` or `images`. A run that
was interrupted goes on in its stage when it is repeated.
"""

from dataclasses import dataclass, field

import datasets
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments, set_seed

import comneck_hf
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.conversations import ConversationRows
from comneck_hf.training.llava import train_llava
from comneck_hf.training.visual_pooling import VisualPoolingCallback


@dataclass(kw_only=True)
class LlavoltaArguments(TrainingArguments):
    """Model, data and schedule; everything else is transformers' `TrainingArguments`."""

    model: str = field(metadata={"help": "folder or Hub id of a LLaVA with a Llama language model"})
    data: str = field(metadata={"help": "conversations: folder or Hub id"})
    split: str = "train"
    pooling: str = field(default="4stage", metadata={"help": "4stage, three-stage, heavy or light"})
    lora_rank: int = field(default=0, metadata={"help": "rank of LoRA adapters, 0 trains all weights"})
    num_threads: int = field(default=0, metadata={"help": "CPU threads, 0 for torch's default"})


def main(args: LlavoltaArguments) -> None:
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    # Weights are stored in half precision; the optimizer needs them in float32, `--bf16` is for the products.
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    if model.config.model_type not in ("llavolta", "llavolta_next"):
        comneck_hf.pool_visual_tokens(model, pool_stride=1)
    if args.lora_rank:
        model = with_adapters(model, args.lora_rank)
    dataset = ConversationRows(datasets.load_dataset(args.data, split=args.split))
    callbacks = [VisualPoolingCallback(args.pooling)]
    train_llava(model, AutoProcessor.from_pretrained(args.model), dataset, args, callbacks=callbacks)


def with_adapters(model: torch.nn.Module, rank: int) -> torch.nn.Module:
    """LoRA on the attention and MLP matrices of the language model."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('LoRA needs an extra: pip install "comneck_hf[peft]"') from error
    names = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))


if __name__ == "__main__":
    main(parse_arguments(LlavoltaArguments))
