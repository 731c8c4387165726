"""What frozen models say of a pack, computed once: a codec's latents and a teacher's embeddings of the same crops."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import CLIPModel, PreTrainedModel

from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.content import content_digest
from comneck_hf.training.data import ImagePack
from comneck_hf.training.surrogate import teacher_features


__all__ = ["CodedPictures", "Variants", "coded_latents", "teacher_embeddings"]

_BATCH = 64


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
def coded_latents(codec: ElicModel, variants: Variants, folder: str | Path) -> Tensor:
    """y_hat of all crops, each pass kept in a file of the folder, which later calls read.

    Args:
        codec: The codec; its device is used.
        variants: Which crops of which pictures.
        folder: Gets one safetensors file per pass, named after everything that its content depends on.

    Returns:
        float `(count * len(pack), latent_channels, size / 16, size / 16)` on the CPU, pass by pass.
    """
    codec = codec.eval().to(memory_format=torch.channels_last)
    return _kept("latents", lambda batch: codec.encode(batch.to(codec.device)).latents, codec, variants, folder)


@torch.no_grad()
def teacher_embeddings(clip: CLIPModel, variants: Variants, folder: str | Path) -> Tensor:
    """What CLIP says of the same crops, uncoded: `(count * len(pack), projection_dim)`, kept likewise."""
    target = "image_embeds"
    return _kept("teacher", lambda batch: teacher_features(clip, batch, {target: 1.0})[target], clip, variants, folder)


class CodedPictures(Dataset):
    """Batches of what frozen models said of crops: `latents`, `image_embeds` and, where there are classes, `labels`.

    Args:
        latents: From `coded_latents`.
        image_embeds: From `teacher_embeddings`, of the same crops.
        labels: Classes of the pack, `(len(pack),)`, or `None`.
    """

    def __init__(self, latents: Tensor, image_embeds: Tensor, labels: Tensor | None) -> None:
        self.parts = {"latents": latents, "image_embeds": image_embeds}
        if labels is not None:
            self.parts["labels"] = labels.repeat(len(latents) // len(labels))

    def __len__(self) -> int:
        return len(self.parts["latents"])

    def set_epoch(self, epoch: int) -> None:
        """The crops are the same in every epoch."""

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The rows of all parts."""
        return {name: part[indices] for name, part in self.parts.items()}


def _kept(
    name: str, function: Callable[[Tensor], Tensor], model: PreTrainedModel, variants: Variants, folder: str | Path
) -> Tensor:
    """The function's values for all crops, from files where they were computed before with the same weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = content_digest(repr((variants.augmentation, variants.seed)), variants.pack.images, model)
    parts = []
    for variant in range(variants.count):
        file = folder / f"{name}-{digest}-{variant:02d}.safetensors"
        if not file.exists():
            batches = tqdm(
                variants.batches(variant),
                desc=f"{name} {variant + 1}/{variants.count}",
                total=-(-len(variants.pack) // _BATCH),
                mininterval=5,
            )
            values = torch.cat([function(batch).cpu() for batch in batches])
            save_file({name: values.contiguous()}, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)
        parts.append(load_file(file)[name])
    return torch.cat(parts)
