"""The model of lmms-eval: a LLaVA that is asked about coded pictures, with their bytes beside the scores.

python -m lmms_eval --model comneck_llava --tasks pope,gqa,coco2014_cap_val --batch_size 8 --output_path results \
    --model_args pretrained=llava-hf/llava-1.5-7b-hf,comneck=FOLDER,source=latents,rate_file=results/latents.json
"""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm
from transformers.image_utils import load_image

from .. import __version__
from .coded_llava import CodedLlava, cut_answer, generation_options, ignored_options
from .rate_log import RateLog, rate_path


try:
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
    from lmms_eval.api.model import lmms
    from lmms_eval.models.model_utils.gen_metrics import log_metrics
    from lmms_eval.protocol import ChatMessages
except ImportError as error:
    raise ImportError('Evaluation with lmms-eval needs an extra: pip install "comneck_hf[mllm]"') from error

logger = logging.getLogger(__name__)


class ComNeckLlava(lmms):
    """`--model comneck_llava`: codes every image, then asks a LLaVA in batches through its chat template.

    lmms-eval has no notion of rate. A JSON file tells it: images, pixels, bytes and bits per pixel of the original
    images for every document, every task and in total; the total is also among lmms-eval's `throughput`. Answers that
    lmms-eval takes from its cache (`--use_cache`) are not coded and not in the file.

    Args:
        pretrained: Folder or Hub id of a LLaVA that was trained on pixels, or has a ComNeck tower.
        comneck: Folder or Hub id of the ComNeck whose codec and tower are used.
        source: `"latents"`; for comparison `"reconstruction"`, decoded pictures through the whole CLIP, or
            `"original"`, pictures that were never coded.
        batch_size: Documents per batch, from `--batch_size`.
        device: From `--device`; Accelerate chooses by default, and always where there are several processes.
        dtype: Of the LLaVA, such as `"bfloat16"`; as saved by default. The codec always runs in float32.
        max_new_tokens: Longest answer where a task sets none.
        rate_file: The JSON file; by default `DATE_TIME_comneck_rates.json` in the working folder.
        force: Attach a neck that was trained for another CLIP of the same shape.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        comneck: str | None = None,
        source: str = "latents",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = 512,
        rate_file: str | None = None,
        force: bool = False,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) == 0:
            raise ValueError(f"`--batch_size` must be a positive number, got {batch_size!r}.")
        self.rate_file = rate_path(rate_file)
        self.accelerator = Accelerator()
        several = self.accelerator.num_processes > 1
        self._device = self.accelerator.device if several or device is None else device
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size, self.max_new_tokens = int(batch_size), max_new_tokens
        self.model = CodedLlava.from_pretrained(
            pretrained, comneck=comneck, source=source, device=self._device, dtype=dtype, force=force
        )
        coder = None if source == "original" else comneck
        self.rates = RateLog(pretrained=pretrained, comneck=coder, source=source, comneck_hf=__version__)
        self._seconds, self._num_tokens = 0.0, 0
        self._ignored: set[str] = set()

    @property
    def device(self) -> Any:
        """Where the model runs; lmms-eval gathers counts there."""
        return self._device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests. What goes wrong is raised, never an empty answer."""
        results: list[GenerationResult | None] = [None] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="answers") as progress:
            for indexes in self._batches(requests):
                answers = self._answer([requests[index] for index in indexes])
                for index, answer in zip(indexes, answers, strict=True):
                    results[index] = answer
                progress.update(len(indexes))
        return results

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Numbers of requests that want the same generation."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items())), []).append(index)
        for indexes in groups.values():
            for first in range(0, len(indexes), self.batch_size):
                yield indexes[first : first + self.batch_size]

    def _answer(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        conversations, pictures = [], []
        for request in requests:
            _, doc_to_messages, _, doc_id, task, split = request.args
            messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            images, videos, audios = messages.extract_media()
            if videos or audios:
                raise ValueError(
                    f"Document {doc_id} of {task} has {len(videos)} videos and {len(audios)} sounds. `comneck_llava` "
                    "takes pictures; choose a task with images or text alone."
                )
            conversations.append(_conversation(messages, self.model.processor.image_token))
            pictures.append([_picture(image) for image in images])
        coded = self.model.code([picture for own in pictures for picture in own])
        images, lengths = iter(coded.images), None if coded.num_bytes is None else iter(coded.num_bytes)
        for request, own in zip(requests, pictures, strict=True):
            _, _, _, doc_id, task, _ = request.args
            num_bytes = None if lengths is None else [next(lengths) for _ in own]
            self.rates.add(task, doc_id, [picture.size for picture in own], num_bytes)
        start, wanted = time.perf_counter(), requests[0].args[2]
        self._warn(ignored_options(wanted))
        options = generation_options(wanted, max_new_tokens=self.max_new_tokens)
        answers = self.model.answer(conversations, [[next(images) for _ in own] for own in pictures], **options)
        self._seconds += time.perf_counter() - start
        self._num_tokens += sum(answers.num_tokens)
        return [
            GenerationResult(cut_answer(text, wanted.get("until")), TokenCounts(output_tokens=count))
            for text, count in zip(answers.texts, answers.num_tokens, strict=True)
        ]

    def _warn(self, ignored: set[str]) -> None:
        """Once per setting."""
        if new := ignored - self._ignored:
            self._ignored |= new
            logger.warning("Generation settings without effect on comneck_llava: %s.", ", ".join(sorted(new)))

    def clean(self) -> None:
        """Writes the rates of all processes; lmms-eval calls it once, when every request is answered."""
        self.rates.update(gather_object(self.rates.documents))
        if self.rank == 0 and len(self.rates):
            total = self.rates.total()
            self.rates.save(self.rate_file)
            cost = f"{total['bytes']} bytes, {total['bpp']:.4f} bits per original pixel" if total["bpp"] else "uncoded"
            # A warning, because lmms-eval shows no less of other libraries.
            logger.warning(
                "The scores do not tell bytes: %d images in %d documents, source=%s, %s. Each document is in %s",
                total["images"],
                total["documents"],
                self.model.source,
                cost,
                self.rate_file,
            )
            speed = self._num_tokens / self._seconds if self._seconds else 0.0
            rate = {"bpp": total["bpp"]} if total["bpp"] else None
            log_metrics(self._seconds, self._num_tokens, speed, additional_metrics=rate)
        del self.model  # a judge may need the memory
        super().clean()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not available: LLaVA's tasks generate."""
        raise ValueError("`comneck_llava` answers in words; choose a task with `output_type: generate_until`.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not available."""
        raise ValueError("`comneck_llava` answers once; choose a task with `output_type: generate_until`.")


def _conversation(messages: ChatMessages, image_token: str) -> list[dict[str, Any]]:
    """Messages of a chat template; a task's own placeholders would count as further images."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "image"}
                if part.type == "image"
                else {"type": "text", "text": part.text.replace(image_token, "")}
                for part in message.content
            ],
        }
        for message in messages.messages
    ]


def _picture(image: Any) -> Image.Image:
    """A picture as the task has it: its size counts."""
    return image if isinstance(image, Image.Image) else load_image(image)


__all__ = ["ComNeckLlava"]
