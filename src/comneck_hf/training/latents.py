"""What frozen models say of a pack, computed once: a codec's latents and a teacher's features of the same crops."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import CLIPModel

from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.content import content_digest
from comneck_hf.training.data import ImagePack
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.surrogate import encode_at, teacher_features


__all__ = ["CodedPictures", "Variants", "coded_latents", "kept_features", "teacher_targets"]

_BATCH = 64
_GAINS_SEED = 2**40  # apart from the seeds of the crops

Features = dict[str, Tensor]


@dataclass(frozen=True)
class Variants:
    """Random crops of a pack: several passes over the pack in its order.

    Attributes:
        pack: The pictures.
        augmentation: What happens to them.
        count: Passes.
        seed: A pass's random numbers come from this and its number.
    """

    pack: ImagePack
    augmentation: Augmentation
    count: int
    seed: int = 0

    def batches(self, variant: int) -> Iterator[Tensor]:
        """Yields the crops of one pass: float `(at most 64, 3, size, size)` in [0, 1]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + variant)
        for images in self.pack.images.split(_BATCH):
            yield self.augmentation(images, generator=generator)


@torch.no_grad()
def coded_latents(
    codec: ElicModel, variants: Variants, folder: str | Path, *, gains: RandomGains | None = None
) -> list[Features]:
    """y_hat of all crops, each pass kept in a file of the folder, which later calls read.

    Args:
        codec: The codec; its device is used.
        variants: Which crops of which pictures.
        folder: Gets one safetensors file per pass, named after everything that its content depends on.
        gains: Of the quantizer; as it was trained by default.

    Returns:
        For every pass `latents`, float `(len(pack), latent_channels, size / 16, size / 16)` on the CPU, read from
        the disk when they are needed.
    """
    codec = codec.eval().to(memory_format=torch.channels_last)

    def code(batch: Tensor, generator: torch.Generator) -> Features:
        return {"latents": encode_at(codec, batch.to(codec.device), gains, generator=generator)}

    return kept_features("latents", code, [codec, *([] if gains is None else [repr(gains)])], variants, folder)


@torch.no_grad()
def teacher_targets(
    clip: CLIPModel,
    variants: Variants,
    folder: str | Path,
    targets: Iterable[str],
    *,
    post_layernorm_repeats: int = 1,
) -> list[Features]:
    """What CLIP says of the same crops, uncoded.

    Args:
        clip: The teacher.
        variants: Which crops of which pictures.
        folder: Gets one safetensors file per target and pass.
        targets: Names as in `check_targets`.
        post_layernorm_repeats: As in `clip_features`.

    Returns:
        For every pass the features by the names of the targets, `(len(pack), ...)` on the CPU; those of all tokens
        are in float16, for they take much space.
    """
    passes: list[Features] = [{} for _ in range(variants.count)]
    repeats = [f"{post_layernorm_repeats} norms"] if post_layernorm_repeats > 1 else []
    for target in targets:

        def teach(batch: Tensor, generator: torch.Generator, target: str = target) -> Features:
            """One target of a batch."""
            found = teacher_features(clip, batch, {target: 1.0}, post_layernorm_repeats=post_layernorm_repeats)
            value = found[target]
            return {"teacher": value if value.ndim == 2 else value.half()}

        for kept, said in zip(
            passes, kept_features("teacher", teach, [clip, target, *repeats], variants, folder), strict=True
        ):
            kept[target] = said["teacher"]
    return passes


class CodedPictures(Dataset):
    """Batches of what frozen models said of crops, by name, and `labels` where there are classes.

    Args:
        parts: What each model said in every pass: features `(len(pack), ...)`; float16 becomes float32.
        labels: Classes of the pack, `(len(pack),)`, or `None`.
    """

    def __init__(self, parts: Sequence[Sequence[Features]], labels: Tensor | None) -> None:
        self.passes = [{name: part for one in passes for name, part in one.items()} for passes in zip(*parts)]
        self.labels, self.count = labels, len(next(iter(self.passes[0].values())))

    def __len__(self) -> int:
        return self.count * len(self.passes)

    def set_epoch(self, epoch: int) -> None:
        """The crops are the same in every epoch."""

    def __getitems__(self, indices: list[int]) -> Features:
        """The rows of all features."""
        places = [divmod(index, self.count) for index in indices]
        batch = {
            name: torch.stack([self.passes[number][name][row] for number, row in places]).float()
            for name in self.passes[0]
        }
        if self.labels is not None:
            batch["labels"] = self.labels[[row for _, row in places]]
        return batch


def kept_features(
    name: str,
    function: Callable[[Tensor, torch.Generator], Features],
    depends_on: Sequence[str | nn.Module],
    variants: Variants,
    folder: str | Path,
) -> list[Features]:
    """The function's values for all crops, from files where they were computed before by the same.

    Args:
        name: Of the files.
        function: Features of a batch of crops, given a source of random numbers.
        depends_on: What decides on them besides the crops, for `content_digest`.
        variants: Which crops.
        folder: Gets one safetensors file per pass.

    Returns:
        The features of every pass, on the CPU, read from the disk when they are needed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = content_digest(repr((variants.augmentation, variants.seed)), variants.pack.images, *depends_on)
    passes = []
    for variant in range(variants.count):
        file = folder / f"{name}-{digest}-{variant:02d}.safetensors"
        if not file.exists():
            generator = torch.Generator().manual_seed(_GAINS_SEED + variants.seed * 1_000_003 + variant)
            batches = tqdm(
                variants.batches(variant),
                desc=f"{name} {variant + 1}/{variants.count}",
                total=-(-len(variants.pack) // _BATCH),
                mininterval=5,
            )
            parts = [{key: value.cpu() for key, value in function(batch, generator).items()} for batch in batches]
            values = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}
            save_file(values, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)
        passes.append(load_file(file))
    return passes
