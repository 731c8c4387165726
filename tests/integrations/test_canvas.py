"""LLaVA-NeXT pictures coded as one canvas: one bitstream, and the same inputs for the model as from tiles."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from comneck_hf import CotamModel, attach_vision_tower, llava_next_processor
from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.coding.tiles import TiledBitstream
from comneck_hf.models.comneck.canvas_comneck import join_tiles
from comneck_hf.models.cotam.joined_cotam import join_picture, split_picture
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors


PROMPTS = ["USER: <image> what is this ? ASSISTANT:", "USER: <image> <image> what ? ASSISTANT:", "USER: a cat"]
POINTS = [[112, 224], [224, 112], [224, 224]]


@pytest.fixture(scope="session")
def pictures(photos):
    """A square, a wide and a high picture: canvases of 2x2, 1x2 and 2x1 tiles; the last two have black borders."""
    return [photos[0], photos[1].resize((300, 101)), photos[2].resize((90, 201))]


@pytest.fixture
def models(llava, next_processor, comneck, cotam):
    """A LLaVA-NeXT with either tower, and its processor for canvases."""

    def make(tower, **options):
        torch.manual_seed(0)
        source = {"comneck": comneck, "cotam": cotam}[tower]
        model = attach_vision_tower(llava("next", image_grid_pinpoints=POINTS), source)
        return model, llava_next_processor(model, next_processor, code_canvas=True, **options)

    return make


def greedy(model, inputs):
    outputs = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    return outputs[:, inputs["input_ids"].shape[1] :]


def canvas_of(bitstream):
    (canvas,) = TiledBitstream.parse(bitstream).tiles
    return Bitstream.parse(canvas)


@pytest.mark.parametrize("tower", ["comneck", "cotam"])
@torch.no_grad()
def test_pictures_and_canvases_give_the_same_tokens_and_tiles_as_many(models, pictures, tower):
    model, ours = models(tower)
    bitstreams = ours.compress(pictures)
    sizes = [(canvas_of(data).height, canvas_of(data).width) for data in bitstreams]
    assert sizes == [(256, 256), (128, 256), (256, 128)]
    inputs = ours(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")
    by_pictures = ours(text=PROMPTS, images=pictures, padding=True, return_tensors="pt")
    assert inputs.keys() == by_pictures.keys()
    assert all(torch.equal(inputs[name], by_pictures[name]) for name in inputs)
    tokens = greedy(model, inputs)
    assert tokens.unique(dim=0).shape[0] > 1

    tiled = llava_next_processor(model, ours)
    expected = tiled(text=PROMPTS, images=tiled.compress(pictures), padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "image_sizes"):
        assert torch.equal(inputs[name], expected[name])
    assert torch.equal(
        greedy(model, tiled(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")), tokens
    )


@torch.no_grad()
def test_tiles_are_crops_of_the_canvas_and_the_whole_is_its_average(models, pictures, comneck):
    _, ours = models("comneck")
    bitstreams = ours.compress(pictures[:2])
    square, wide = (comneck.decompress(TiledBitstream.parse(data).tiles)[0] for data in bitstreams)
    found = ours(images=bitstreams, return_tensors="pt")["pixel_values"]
    for index in range(4):
        row, column = divmod(index, 2)
        assert torch.equal(found[0, 1 + index], square[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8])
    assert torch.equal(found[1, 2], wide[:, :, 8:]) and not found[1, 3:].any()
    torch.testing.assert_close(found[0, 0], F.adaptive_avg_pool2d(square, (8, 8)))
    # 300x101 pixels become 256x87 in the middle of 256x128: black from row 20 on, 0 to 20 and 107 to 128
    fine = wide.repeat_interleave(16, 1)[:, 20:107].repeat_interleave(8, 1)
    expected = F.avg_pool2d(fine, (87, 2))
    torch.testing.assert_close(found[1, 0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_canvas_shows_the_picture_that_transformers_cuts(models, pictures, comneck):
    _, ours = models("comneck")
    tiles = ours.image_processor(pictures[1], return_tensors="pt").pixel_values[0]
    canvas = join_tiles(tiles[1:], 1, 2)
    assert torch.equal(canvas, torch.cat([tiles[1], tiles[2]], dim=2))
    assert not canvas[:, :20].any() and canvas[:, 20].any() and canvas[:, 106].any() and not canvas[:, 107:].any()
    assert TiledBitstream.parse(ours.compress(pictures[1])[0]).tiles == tuple(comneck.compress(canvas[None]))


@torch.no_grad()
def test_an_encoded_view_is_the_decoded_picture_made_small(models, pictures, comneck):
    _, ours = models("comneck", overview="encoded")
    bitstreams = ours.compress(pictures[:2])
    found = ours(images=bitstreams, return_tensors="pt")["pixel_values"]
    decoded = [comneck.reconstruct(comneck.decompress(TiledBitstream.parse(data).tiles)) for data in bitstreams]
    for own, picture in zip(found, (decoded[0], decoded[1][:, :, 20:107]), strict=True):
        small = F.interpolate(picture, (128, 128), mode="bicubic", antialias=True).clamp(0, 1)
        assert torch.equal(own[0], comneck.encode(small).latents[0])


@torch.no_grad()
def test_cotam_sees_the_decoded_canvas_and_its_small_version(models, pictures):
    model, ours = models("cotam")
    tower = model.model.vision_tower
    bitstream = ours.compress(pictures[0])[0]
    joined = ours(images=[bitstream], return_tensors="pt")["pixel_values"][0]
    latents, seen = split_picture(joined)
    canvas = tower.reconstruct(tower.decompress(TiledBitstream.parse(bitstream).tiles))
    assert torch.equal(join_tiles(seen[1:], 2, 2), canvas[0])
    assert torch.equal(seen[:1], F.interpolate(canvas, (128, 128), mode="bicubic", antialias=True).clamp(0, 1))
    by_parts = tower(latents=latents, reconstruction=seen).last_hidden_state
    assert torch.equal(tower(joined).last_hidden_state, by_parts)
    # decoded from their own latents, tiles look different at their borders, and averages decode to no picture
    own = tower(latents=latents).last_hidden_state
    assert ((own - by_parts).flatten(1).norm(dim=1) / by_parts.flatten(1).norm(dim=1)).min() > 1e-3


def test_the_guide_looks_at_every_tile_of_a_canvas(models, pictures):
    model, ours = models("cotam")
    tower = model.model.vision_tower
    for picture, shape in zip(pictures, [(16, 16), (8, 16), (16, 8)], strict=True):
        gain_map = canvas_of(ours.compress(picture)[0]).gain_map
        assert (gain_map.rows, gain_map.columns) == shape
        tiles = ours.image_processor(picture, return_tensors="pt").pixel_values[0]
        canvas = join_tiles(tiles[1:], shape[0] // 8, shape[1] // 8)[None]
        assert [gain_map] == tower.gain_maps(canvas, tile=128) != tower.gain_maps(canvas)


@torch.no_grad()
def test_tiles_and_canvases_mix_in_one_batch(models, pictures):
    for tower in ("comneck", "cotam"):
        model, ours = models(tower)
        tiled = llava_next_processor(model, ours)
        images = [ours.compress(pictures[0])[0], tiled.compress(pictures[1])[0], ours.compress(pictures[2])[0]]
        together = ours(text=PROMPTS, images=images, padding=True, return_tensors="pt")
        alone = [ours(images=[image], return_tensors="pt") for image in images]
        features = model.get_image_features(together["pixel_values"], together["image_sizes"]).pooler_output
        for found, own in zip(features, alone, strict=True):
            expected = model.get_image_features(own["pixel_values"], own["image_sizes"]).pooler_output[0]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert len(greedy(model, together)) == 3


@torch.no_grad()
def test_a_saved_folder_reads_canvases(models, pictures, tmp_path):
    for tower in ("comneck", "cotam"):
        model, ours = models(tower)
        bitstream = ours.compress(pictures[1])[0]
        expected = greedy(model, ours(text=PROMPTS[:1], images=[bitstream], return_tensors="pt"))
        model.save_pretrained(tmp_path / tower)
        ours.save_pretrained(tmp_path / tower)
        server = AutoProcessor.from_pretrained(tmp_path / tower)
        assert (server.code_canvas, server.overview, server.reads_pictures) == (True, "pooled", tower == "cotam")
        if tower == "cotam":  # beside it lies its guide, too
            assert server.compress(pictures[1]) == [bitstream]
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / tower)
        assert torch.equal(greedy(loaded, server(text=PROMPTS[:1], images=[bitstream], return_tensors="pt")), expected)


def test_a_canvas_takes_fewer_bytes_than_its_tiles(models, photos):
    model, ours = models("comneck")
    tiled = llava_next_processor(model, ours)
    sizes = [[len(data) for data in processor.compress(photos)] for processor in (ours, tiled)]
    assert all(canvas < tiles for canvas, tiles in zip(*sizes, strict=True))


def test_what_does_not_fit_is_named(models, pictures, comneck, next_processor):
    model, ours = models("comneck")
    small = TiledBitstream(101, 300, tuple(comneck.compress(torch.rand(1, 3, 128, 128)))).pack()
    with pytest.raises(ValueError, match="101x300 pixels was coded on a canvas of 128x128, but .* one of 128x256"):
        ours(images=[small], return_tensors="pt")
    with pytest.raises(ValueError, match="`overview` must be one of .*, got 'none'"):
        llava_next_processor(model, next_processor, overview="none")
    cotam, _ = models("cotam")
    joined = join_picture(torch.zeros(1, 80, 8, 8), torch.zeros(1, 3, 128, 128))
    with pytest.raises(ValueError, match="in `pixel_values` alone"):
        cotam.model.vision_tower(joined, latents=joined[:, :80])


@torch.no_grad()
def test_a_codec_with_vectors_is_decoded_at_the_gains_of_canvas_and_tiles(
    llava, next_processor, comneck, clip, photos
):
    """The guide's maps are gains, which the tower itself would not be told."""
    codec = add_gain_vectors(comneck.codec, levels=2, level_range=(-1.0, 1.0))
    codec.g_s.log_vectors.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    model = CotamModel.from_codec_and_clip(codec, clip).eval()
    model = attach_vision_tower(llava("next", image_grid_pinpoints=[[112, 224]]), model)
    canvases = llava_next_processor(model, next_processor, code_canvas=True)
    tiles = llava_next_processor(model, next_processor)
    codec, picture = canvases.codec, photos[1].resize((256, 128))
    for processor, first in ((canvases, 1), (tiles, 0)):
        (bitstream,) = processor.compress(picture)
        found = processor(images=bitstream, return_tensors="pt")["pixel_values"][0]
        coded = TiledBitstream.parse(bitstream).tiles
        latents, gains = codec.decompress(coded), codec.coded_gains(coded)
        right, wrong = codec.reconstruct(latents, **gains), codec.reconstruct(latents, gain=0.0)
        if processor is canvases:
            assert torch.equal(found, canvases(images=picture, return_tensors="pt")["pixel_values"][0])
            right, wrong = (torch.cat(picture[0].chunk(2, 2)).unflatten(0, (2, 3)) for picture in (right, wrong))
        seen = split_picture(found)[1][first:]
        assert torch.allclose(seen, right, atol=1e-5)
        assert not torch.allclose(seen, wrong, atol=1e-2)
