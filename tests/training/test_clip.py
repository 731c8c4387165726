import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor, AutoTokenizer, CLIPModel

from comneck_hf.training.clip import (
    balanced_order,
    caption_loss,
    evaluate_zero_shot,
    image_embeddings,
    mix_images,
    parameter_groups,
    save_clip,
    text_embeddings,
)
from comneck_hf.training.data import ImagePack
from comneck_hf.training.zero_shot import ClassPrompts, zero_shot_weights

from .conftest import CLASSES, TEMPLATES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_pack(count: int, *, size: int = 20) -> ImagePack:
    """Pictures of one color per class, which any model that learns at all can tell apart."""
    colors = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10], [10, 250, 250], [9, 9, 9]])
    labels = torch.arange(count) % len(CLASSES)
    noise = torch.randint(-8, 6, (count, 3, size, size), generator=generator())
    images = (colors[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
    return ImagePack(images, labels, CLASSES)


def test_any_text_gets_tokens_between_start_and_end_and_comes_back_in_lower_case(tokenizer):
    for text in ("a photo of a cup.", "Zebra crossing #7", "caf\u00e9 \u4e2d"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == 1
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()


def test_words_of_the_prompts_are_single_tokens(tokenizer):
    assert len(tokenizer("a photo of a windsor chair.")["input_ids"]) == 2 + 7


def test_long_text_is_cut_but_keeps_its_end_token(tokenizer):
    ids = tokenizer("xyz " * 100, truncation=True)["input_ids"]
    assert len(ids) == tokenizer.model_max_length and ids[-1] == tokenizer.eos_token_id


def test_a_text_has_the_same_embedding_alone_and_in_a_padded_batch(tiny_clip, tokenizer):
    with torch.no_grad():
        alone = text_embeddings(tiny_clip, tokenizer, ["a cup"])
        batch = text_embeddings(tiny_clip, tokenizer, ["a cup", "a photo of a very long windsor chair with text"])
    assert torch.allclose(alone[0], batch[0], atol=1e-5)
    assert not torch.allclose(batch[0], batch[1], atol=1e-3)


def test_a_saved_model_loads_as_float32_through_the_auto_classes_from_half_the_bytes(tmp_path, tiny_clip, tokenizer):
    save_clip(tiny_clip, tmp_path, tokenizer=tokenizer, prompts=ClassPrompts(TEMPLATES, CLASSES))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, CLIPModel) and loaded.dtype == torch.float32
    assert (tmp_path / "model.safetensors").stat().st_size < 2.1 * tiny_clip.num_parameters()
    for name, tensor in tiny_clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    text = "A photo of a Windsor chair, and more"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]
    inputs = AutoProcessor.from_pretrained(tmp_path)(
        images=torch.zeros((3, 150, 200), dtype=torch.uint8), text=text, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 112, 112)
    assert inputs["input_ids"][0].tolist() == tokenizer(text)["input_ids"]


def test_image_embeddings_take_smaller_pictures_and_match_transformers_at_full_size(tiny_clip):
    pixels = torch.randn((2, 3, 112, 112), generator=generator())
    with torch.no_grad():
        expected = F.normalize(tiny_clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        assert torch.allclose(image_embeddings(tiny_clip, pixels), expected, atol=1e-5)
        assert image_embeddings(tiny_clip, pixels[:, :, :56, :56]).shape == (2, 128)


def test_mixed_targets_say_how_much_of_each_picture_is_there():
    targets = torch.eye(4)
    for seed in range(20):
        images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()
        mixed, mixed_targets = mix_images(images, targets, generator=generator(seed))
        assert torch.allclose(mixed_targets.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3)), mixed_targets @ torch.arange(4.0), atol=1e-4)


def test_only_matrices_decay(tiny_clip):
    decayed, kept = parameter_groups(tiny_clip, weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(kept["params"]) == len(list(tiny_clip.parameters()))
    assert any(parameter is tiny_clip.logit_scale for parameter in kept["params"])
    assert any(parameter is tiny_clip.visual_projection.weight for parameter in decayed["params"])


def test_evaluation_counts_right_pictures(tiny_clip, tokenizer):
    weights = zero_shot_weights(tiny_clip, tokenizer, class_names=CLASSES, templates=TEMPLATES)
    pack = make_pack(12)
    accuracy = evaluate_zero_shot(tiny_clip, tokenizer, pack, templates=TEMPLATES, size=56)
    assert set(accuracy) == {"top1", "top5"} and 0 <= accuracy["top1"] <= accuracy["top5"] <= 100
    swapped = ImagePack(pack.images, pack.labels, pack.class_names[::-1])
    reverse = evaluate_zero_shot(tiny_clip, tokenizer, swapped, templates=TEMPLATES, size=56)
    mirrored = ImagePack(pack.images, len(CLASSES) - 1 - pack.labels, pack.class_names)
    assert reverse == evaluate_zero_shot(tiny_clip, tokenizer, mirrored, templates=TEMPLATES, size=56)
    assert weights.shape[0] == len(CLASSES)


def test_the_caption_loss_separates_captions_and_leaves_the_vision_tower_alone(tiny_clip, tokenizer):
    def likeness() -> torch.Tensor:
        embeddings = text_embeddings(tiny_clip, tokenizer, CLASSES)
        return (embeddings @ embeddings.T).mean().detach()

    before = likeness()
    parameters = [*tiny_clip.text_model.parameters(), *tiny_clip.text_projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    for _ in range(12):
        caption_loss(tiny_clip, tokenizer, class_names=CLASSES, templates=TEMPLATES).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert likeness() < before - 0.3
    assert all(parameter.grad is None for parameter in (*tiny_clip.vision_model.parameters(), tiny_clip.logit_scale))


def test_a_balanced_epoch_shows_rare_classes_more_often_and_all_pictures_of_a_class_alike():
    labels = torch.tensor([0] * 900 + [1] * 100)
    order = balanced_order(labels, 1000, generator=generator())
    counts = labels[order].bincount()
    assert 740 <= counts[0] <= 760 and 240 <= counts[1] <= 260  # 3 to 1 instead of 9 to 1
    assert set(order[labels[order] == 1].bincount()[900:].tolist()) == {2, 3}
    assert torch.equal(
        balanced_order(labels, 1000, generator=generator(), power=0.0).sort().values, torch.arange(1000)
    )
    assert len(balanced_order(labels, 64, generator=generator())) == 64
