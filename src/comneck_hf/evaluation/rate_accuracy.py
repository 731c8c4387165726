"""Rate, distortion and zero-shot accuracy of a ComNeck or CoTAM, from real bytes."""

from typing import Any

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPModel

from ..models.clip_inputs import clip_inputs
from ..models.codec_vision import CodecVisionModel
from ..models.elic.modeling_elic import ElicModel
from .metrics import bits_per_pixel


@torch.no_grad()
def measure_accuracy(
    model: CodecVisionModel,
    clip: CLIPModel,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    zero_shot_weights: torch.Tensor,
    batch_size: int = 64,
    **coding: Any,
) -> dict[str, float]:
    """Zero-shot accuracy from the originals, from the decoded pictures, and from the latents of the same bytes.

    Args:
        model: Codec and tower.
        clip: The CLIP the tower comes from; it sees the originals and the decoded pictures.
        images: uint8 `(n, 3, height, width)`, at the codec's input size.
        labels: Classes, `(n,)`.
        zero_shot_weights: Unit-norm text embeddings, `(classes, projection_dim)`.
        batch_size: Pictures per batch.
        coding: Options of the model's `compress`, such as `gain`.

    Returns:
        Top-1 and top-5 accuracy in percent for each of the three (not of decoded pictures where the model shows none),
        mean bytes per picture and bpp.
    """
    size = clip.config.vision_config.image_size
    shows_pictures = model.config.shows_pictures
    ways = ("original", "decoded", "latents") if shows_pictures else ("original", "latents")
    hits = {name: torch.zeros(2, dtype=torch.int64) for name in ways}
    num_bytes = 0
    for first in tqdm(range(0, len(images), batch_size), desc="accuracy"):
        pixel_values = images[first : first + batch_size].float().to(model.device) / 255
        expected = labels[first : first + batch_size, None].to(model.device)
        bitstreams = model.compress(pixel_values, **coding)
        num_bytes += sum(len(bitstream) for bitstream in bitstreams)
        latents, gains = model.decompress(bitstreams), model.coded_gains(bitstreams)
        embeddings = {
            "original": clip.get_image_features(clip_inputs(pixel_values, size)).pooler_output,
            "latents": model(latents=latents, **gains).image_embeds,
        }
        if shows_pictures:
            decoded = (model.reconstruct(latents, **gains) * 255).round() / 255
            embeddings["decoded"] = clip.get_image_features(clip_inputs(decoded, size)).pooler_output
        for name, embeds in embeddings.items():
            scores = F.normalize(embeds, dim=-1) @ zero_shot_weights.T
            correct = scores.topk(min(5, len(zero_shot_weights))).indices.eq(expected)
            hits[name] += torch.stack([correct[:, 0].sum(), correct.any(1).sum()]).cpu()
    count = len(images)
    result = {f"{name}_top{k}": 100 * hits[name][i].item() / count for name in hits for i, k in ((0, 1), (1, 5))}
    height, width = images.shape[-2:]
    bpp = bits_per_pixel(num_bytes, height=height, width=width) / count
    return {"pictures": count, "bytes_per_picture": num_bytes / count, "bpp": bpp, **result}


@torch.no_grad()
def measure_distance(
    model: CodecVisionModel, clip: CLIPModel, images: torch.Tensor, *, batch_size: int = 64, **coding: Any
) -> dict[str, float]:
    """How far embeddings from the latents are from CLIP's of the originals, for pictures without classes.

    Args:
        model: Codec and tower.
        clip: The CLIP the tower comes from.
        images: uint8 `(n, 3, height, width)`, at the codec's input size.
        batch_size: Pictures per batch.
        coding: As in `measure_accuracy`.

    Returns:
        Mean squared `distance` of the embeddings, their mean `cosine`, mean bytes per picture and bpp.
    """
    size, num_bytes = clip.config.vision_config.image_size, 0
    distances, cosines = [], []
    for batch in tqdm(images.split(batch_size), desc="distance"):
        pixel_values = batch.float().to(model.device) / 255
        bitstreams = model.compress(pixel_values, **coding)
        num_bytes += sum(map(len, bitstreams))
        latents = model.decompress(bitstreams)
        student = model(latents=latents, **model.coded_gains(bitstreams)).image_embeds
        teacher = clip.get_image_features(clip_inputs(pixel_values, size)).pooler_output
        distances.append((student - teacher).square().mean(1))
        cosines.append(F.cosine_similarity(student, teacher))
    bpp = bits_per_pixel(num_bytes, height=images.shape[-2], width=images.shape[-1]) / len(images)
    means = {"distance": torch.cat(distances).mean().item(), "cosine": torch.cat(cosines).mean().item()}
    return {"pictures": len(images), "bytes_per_picture": num_bytes / len(images), "bpp": bpp, **means}


def validation_score(
    model: CodecVisionModel,
    clip: CLIPModel,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    zero_shot_weights: torch.Tensor | None,
    **coding: Any,
) -> dict[str, float]:
    """`measure_accuracy`, or `measure_distance` where there are no classes, with a `score` that is to be large.

    Args:
        model, clip, images, labels, zero_shot_weights, coding: As in `measure_accuracy`.
    """
    if labels is None:
        distance = measure_distance(model, clip, images, **coding)
        return {"score": -distance["distance"], **distance}
    accuracy = measure_accuracy(model, clip, images, labels, zero_shot_weights=zero_shot_weights, **coding)
    return {"score": accuracy["latents_top1"], **accuracy}


@torch.no_grad()
def measure_codec(
    codec: ElicModel, pictures: torch.Tensor, *, batch_size: int = 16, **coding: Any
) -> dict[str, float]:
    """Real bytes and distortion of pictures of one size.

    Args:
        codec: The codec, ready to code.
        pictures: uint8 `(n, 3, height, width)`.
        batch_size: Pictures per batch.
        coding: Options of the codec's `compress`, such as `gain`.

    Returns:
        Means: `bytes`, `bpp`, `mse` of pictures in [0, 1] and `psnr` in dB, of 8-bit pictures.
    """
    num_bytes, errors = 0, []
    height, width = pictures.shape[-2:]
    for batch in pictures.split(batch_size):
        original = batch.float().to(codec.device) / 255
        bitstreams = codec.compress(original, **coding)
        num_bytes += sum(map(len, bitstreams))
        latents, gains = codec.decompress(bitstreams), codec.coded_gains(bitstreams)
        decoded = codec.decode(latents, size=(height, width), **gains)
        errors.append(((decoded * 255).round() / 255 - original).square().mean((1, 2, 3)).double())
    error, count = torch.cat(errors), len(pictures)
    return {
        "bytes": num_bytes / count,
        "bpp": bits_per_pixel(num_bytes, height=height, width=width) / count,
        "mse": error.mean().item(),
        "psnr": (-10 * error.log10()).mean().item(),
    }


__all__ = ["measure_accuracy", "measure_codec", "measure_distance", "validation_score"]
