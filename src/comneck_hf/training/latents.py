"""Pictures coded once for the training of a neck: a frozen codec gives the same latents every time."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPModel

from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.data import ImagePack, color_jitter, normalize, random_resized_crops


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
    """y_hat of all variants of a pack. Each variant is kept in a file, which later calls read.

    Args:
        codec: The codec; its device is used.
        pack: The pictures.
        augmentation: Which crops of them.
        folder: Gets one safetensors file per variant.

    Returns:
        float `(num_variants * len(pack), latent_channels, size / 16, size / 16)` on the CPU, variant by variant.

    Raises:
        ValueError: If a file of the folder was made by another codec, from other pictures or with other crops.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    codec = codec.eval().to(memory_format=torch.channels_last)
    variants = []
    for variant in range(augmentation.num_variants):
        settings = {
            "codec": _digest(*codec.state_dict().values()),
            "pictures": _digest(pack.images),
            "crops": f"{augmentation.size}/{augmentation.smallest_crop}/{augmentation.jitter}/{augmentation.seed}",
        }
        file = folder / f"latents-{variant:02d}.safetensors"
        if file.exists():
            variants.append(_read(file, settings))
            continue
        batches = tqdm(
            augmentation.batches(pack, variant), desc=f"coding {variant}", total=-(-len(pack) // _BATCH), mininterval=5
        )
        latents = torch.cat([codec.encode(batch.to(codec.device)).latents.cpu() for batch in batches])
        save_file({"latents": latents.contiguous()}, file.with_suffix(".tmp"), metadata=settings)
        file.with_suffix(".tmp").replace(file)
        variants.append(latents)
    return torch.cat(variants)


@torch.no_grad()
def teacher_embeddings(clip: CLIPModel, pack: ImagePack, augmentation: Augmentation) -> torch.Tensor:
    """What CLIP says of the same crops, uncoded: `(num_variants * len(pack), projection_dim)` on the CPU."""
    size = clip.config.vision_config.image_size
    embeds = []
    for variant in tqdm(range(augmentation.num_variants), desc="teacher"):
        for batch in augmentation.batches(pack, variant):
            small = F.interpolate(batch.to(clip.device), (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            embeds.append(clip.get_image_features(normalize(small)).pooler_output.cpu())
    return torch.cat(embeds)


def _read(file: Path, settings: dict[str, str]) -> torch.Tensor:
    with safe_open(file, "pt") as opened:
        found = opened.metadata()
        if found != settings:
            differing = [name for name, value in settings.items() if (found or {}).get(name) != value]
            raise ValueError(
                f"{file} was made with other {' and '.join(differing)}; remove it or pass another folder."
            )
        return opened.get_tensor("latents")


def _digest(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = ["Augmentation", "coded_latents", "teacher_embeddings"]
