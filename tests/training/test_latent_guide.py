"""The guide that sees latents only."""

import pytest
import torch

from comneck_hf.models.cotam.guide_cotam import ShallowAttentionGuide
from comneck_hf.models.cotam.importance_cotam import quantize_importance
from comneck_hf.models.cotam.latent_guide_cotam import LatentGuide, latent_energy
from comneck_hf.training.latent_guide import GuideExamples, guide_examples, map_correlation, train_latent_guide


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hidden_rule(count, seed):
    """Latents, and a map that is where two channels are large together: convolutions can find it, energy cannot."""
    latents = (
        torch.randn((count, 6, 8, 8), generator=generator(seed)) * torch.tensor([1, 9, 1, 9, 1, 1.0])[:, None, None]
    )
    target = latents[:, :1].abs() + latents[:, 2:3].clamp(min=0)
    return GuideExamples(latents, target)


def test_training_finds_a_map_that_energy_does_not_show():
    train, held_out = hidden_rule(256, 1), hidden_rule(64, 2)
    torch.manual_seed(0)
    guide = LatentGuide(6, hidden_channels=8)
    loss = train_latent_guide(guide, train, steps=150, learning_rate=1e-2, generator=generator())
    with torch.no_grad():
        learned = map_correlation(guide(held_out.latents), held_out.targets).mean()
    energy = map_correlation(latent_energy(held_out.latents), held_out.targets).mean()
    assert loss < 0.2 and learned > 0.8 and energy < 0.3


def test_examples_are_the_codecs_latents_and_the_pooled_attention(tiny_codec, pictures, clip):
    guide = ShallowAttentionGuide(clip)
    images = (pictures * 255).round().to(torch.uint8)
    examples = guide_examples(tiny_codec, guide, images, batch_size=4)
    assert examples.latents.shape == (6, 20, 8, 8) and examples.targets.shape == (6, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(examples.latents[5], tiny_codec.g_a(images[5:].float() / 255)[0], atol=1e-4)
    assert torch.allclose(examples.targets, guide(images.float() / 255), atol=1e-6)  # 8x8 patches as well


def test_correlation_ignores_scale_and_offset():
    maps = torch.rand((3, 1, 4, 4), generator=generator())
    assert torch.allclose(map_correlation(maps, 5 * maps - 2), torch.ones(3), atol=1e-5)
    assert torch.allclose(map_correlation(maps, -maps), -torch.ones(3), atol=1e-5)
    other = torch.rand((3, 1, 4, 4), generator=generator(1))
    expected = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(maps, other, strict=True)
    ]
    assert torch.allclose(map_correlation(maps, other), torch.stack(expected), atol=1e-5)
    assert torch.equal(map_correlation(maps, torch.ones_like(maps)), torch.zeros(3))


def test_energy_is_the_root_mean_square_of_the_channels():
    latents = torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 2, 3)
    assert torch.allclose(latent_energy(latents), torch.full((1, 1, 2, 3), 2.5))


def test_a_latent_guide_takes_any_grid_and_feeds_the_levels():
    guide = LatentGuide(6)
    guide.calibrate(hidden_rule(4, 0).latents)
    maps = guide(torch.randn((2, 6, 12, 5), generator=generator()))
    assert maps.shape == (2, 1, 12, 5)
    assert len(quantize_importance(maps.detach(), grid=(4, 4))) == 2


def test_latents_of_another_codec_are_refused():
    with pytest.raises(ValueError, match="batch, 6, height, width"):
        LatentGuide(6)(torch.zeros(1, 7, 4, 4))
