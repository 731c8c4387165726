"""What frozen models say of a pack, computed once: a codec's latents and a teacher's embeddings of the same crops."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import CLIPModel, PreTrainedModel

from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.data import ImagePack, clip_inputs, color_jitter, random_resized_crops


_BATCH = 64


@dataclass(frozen=True)
class Augmentation:
    """Random crops of a pack: several variants of every picture, each a pass over the pack in its order.

    Attributes:
        size: Side of the crops in pixels.
        num_variants: Passes.
        smallest_crop: Smallest share of the picture in a crop.
        jitter: Largest relative change of brightness, contrast and saturation.
        seed: A variant's random numbers come from this and its number.
    """

    size: int
    num_variants: int
    smallest_crop: float = 0.35
    jitter: float = 0.3
    seed: int = 0

    def batches(self, pack: ImagePack, variant: int) -> Iterator[torch.Tensor]:
        """Yields the crops of one variant: float `(at most 64, 3, size, size)` in [0, 1]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + variant)
        for images in pack.images.split(_BATCH):
            crops = random_resized_crops(images, self.size, generator=generator, scale=(self.smallest_crop, 1.0))
            yield color_jitter(crops, strength=self.jitter, generator=generator)


@torch.no_grad()
def coded_latents(codec: ElicModel, pack: ImagePack, augmentation: Augmentation, folder: str | Path) -> torch.Tensor:
    """y_hat of all variants of a pack, each variant kept in a file of the folder, which later calls read.

    Args:
        codec: The codec; its device is used.
        pack: The pictures.
        augmentation: Which crops of them.
        folder: Gets one safetensors file per variant, named after everything that its content depends on.

    Returns:
        float `(num_variants * len(pack), latent_channels, size / 16, size / 16)` on the CPU, variant by variant.
    """
    codec = codec.eval().to(memory_format=torch.channels_last)
    return _kept_variants(
        "latents", lambda batch: codec.encode(batch.to(codec.device)).latents, codec, pack, augmentation, folder
    )


@torch.no_grad()
def teacher_embeddings(
    clip: CLIPModel, pack: ImagePack, augmentation: Augmentation, folder: str | Path
) -> torch.Tensor:
    """What CLIP says of the same crops, uncoded: `(num_variants * len(pack), projection_dim)`, kept likewise."""
    size = clip.config.vision_config.image_size

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return clip.get_image_features(clip_inputs(batch.to(clip.device), size)).pooler_output

    return _kept_variants("teacher", embed, clip, pack, augmentation, folder)


def _kept_variants(
    name: str,
    function: Callable[[torch.Tensor], torch.Tensor],
    model: PreTrainedModel,
    pack: ImagePack,
    augmentation: Augmentation,
    folder: str | Path,
) -> torch.Tensor:
    """The function's values for all crops, from files where they were computed before with the same weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr((augmentation.size, augmentation.smallest_crop, augmentation.jitter)).encode())
    digest.update(str(augmentation.seed).encode())
    for tensor in (pack.images, *model.state_dict().values()):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    variants = []
    for variant in range(augmentation.num_variants):
        file = folder / f"{name}-{digest.hexdigest()[:16]}-{variant:02d}.safetensors"
        if not file.exists():
            batches = tqdm(
                augmentation.batches(pack, variant),
                desc=f"{name} {variant + 1}/{augmentation.num_variants}",
                total=-(-len(pack) // _BATCH),
                mininterval=5,
            )
            values = torch.cat([function(batch).cpu() for batch in batches])
            save_file({name: values.contiguous()}, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)
        variants.append(load_file(file)[name])
    return torch.cat(variants)


__all__ = ["Augmentation", "coded_latents", "teacher_embeddings"]
