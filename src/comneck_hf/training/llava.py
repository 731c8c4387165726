"""A small LLaVA from scratch: tokenizer, processor, and a Llama behind a frozen CLIP."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from comneck_hf.training.conversations import ConversationCollator, PictureQuestions


IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in message['content'] %} {{ part['text'] }}{% endfor %}{{ eos_token }}{% endgeneration %}"
    "{% else %}USER:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    "{% endif %}{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows the texts well and can spell everything else.

    Args:
        texts: What the language model will read and write.
        vocab_size: Tokens, at least 256 bytes and the special ones.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS.values(), IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "USER: ASSISTANT:"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def llava_processor(image_processor: CLIPImageProcessor, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor of `build_llava`'s model, before the patch size is known from its CLIP."""
    return LlavaProcessor(
        image_processor,
        tokenizer,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def build_llava(
    clip: CLIPModel,
    processor: LlavaProcessor,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    max_position_embeddings: int = 1024,
) -> LlavaForConditionalGeneration:
    """A LLaVA with a frozen copy of CLIP's image tower and a fresh Llama; sets the processor's patch size.

    Args:
        clip: The CLIP whose penultimate layer is read.
        processor: Its tokenizer gives vocabulary and special tokens.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings: Llama's.
    """
    tokenizer, vision_config = processor.tokenizer, clip.config.vision_config
    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    processor.patch_size = vision_config.patch_size
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision_config,
            text_config=text_config,
            image_token_index=processor.image_token_id,
            image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        )
    )
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    return model


class LlavaTrainer(Trainer):
    """`Trainer` that resumes a LLaVA: its weights are stored under the names of transformers 4.

    transformers 5.23 looks for them under their own names, finds none, warns, and goes on with fresh weights.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if isinstance(model, PreTrainedModel) and not self.is_fsdp_enabled:  # shards have names of their own
            model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class EpochCallback(TrainerCallback):
    """Tells the data which epoch begins; the trainer tells its sampler only."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the epoch of data that change from epoch to epoch."""
        if isinstance(self.dataset, PictureQuestions):
            self.dataset.set_epoch(int(round(state.epoch, 6)))


def train_llava(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: Dataset,
    args: TrainingArguments,
    *,
    callbacks: list[TrainerCallback],
) -> None:
    """Trains the parameters that want gradients, with the vision tower frozen, and saves the model with its processor.

    A run that was interrupted goes on from the last checkpoint in `args.output_dir`, if there is one, to the same
    weights; the whole result goes to `args.output_dir/model`, PEFT's adapters to `adapter` beside it.

    Args:
        model: A LLaVA, plain or inside PEFT.
        processor: Its processor.
        dataset: Conversations, as in `training.conversations`.
        args: transformers' own.
        callbacks: Such as [`VisualPoolingCallback`].
    """
    for name, parameter in model.named_parameters():
        if "vision_tower" in name:
            parameter.requires_grad_(False)
    trainer = LlavaTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=ConversationCollator(processor),
    )
    for callback in [*reversed(callbacks), EpochCallback(dataset)]:
        trainer.callback_handler.callbacks.insert(0, callback)  # before those that report what it adds to the log
    last = last_checkpoint(args.output_dir)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    folder = Path(args.output_dir, "model")
    if trainer.is_fsdp_enabled:  # else the trainer would leave shards only
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if not isinstance(model, PreTrainedModel):
        trainer.save_model(str(folder.with_name("adapter")))
        trainer.model = model.merge_and_unload()
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        processor.save_pretrained(folder)
        trainer.state.save_to_json(str(folder.with_name("log.json")))


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of a `Trainer` that was written to its end: a killed process may leave half of one."""
    complete = []
    for path in Path(folder).glob("checkpoint-*"):
        try:
            # The trainer writes this file last.
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        complete.append((state["global_step"], path))
    return max(complete, default=(0, None))[1]


__all__ = ["CHAT_TEMPLATE", "build_llava", "last_checkpoint", "llava_processor", "train_llava", "train_tokenizer"]
