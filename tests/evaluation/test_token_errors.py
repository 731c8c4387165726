"""Where CLIP's tokens change: errors on objects and around them."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from comneck_hf.evaluation.baselines import Latents, Original, Received, Reconstruction
from comneck_hf.evaluation.measurements import measure
from comneck_hf.evaluation.token_errors import (
    ObjectPictures,
    TokenErrors,
    error_reduction,
    load_object_pictures,
    object_cells,
)
from comneck_hf.models.clip_inputs import clip_inputs


GRID = 8  # patches of 16 pixels, which CLIP sees with 14


def test_pictures_with_objects_are_cut_as_their_boxes(object_pack):
    found = load_object_pictures(object_pack, side=128, grid=GRID)
    assert found.images.shape == (1, 3, 128, 128)  # the box of the second lies outside of the middle
    expected = torch.zeros(GRID, GRID, dtype=torch.bool)
    expected[:, : GRID // 2] = True  # the middle of 512x320 starts at 96 and is 320 wide
    assert torch.equal(found.regions[0], expected)


def test_a_cell_belongs_to_a_box_that_holds_its_centre():
    region = object_cells([[0, 0, 26, 24], [90, 90, 30, 30]], width=100, height=100, grid=4)
    assert region.nonzero().tolist() == [[0, 0]]  # 12.5 of 26 and 24; 37.5 and 87.5 lie outside
    assert object_cells([], width=100, height=50, grid=2).sum() == 0


def test_pictures_without_boxes_are_refused(object_pack, tmp_path):
    Dataset.from_dict({"image": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="lacks the columns"):
        load_object_pictures(tmp_path, side=128, grid=GRID)
    with pytest.raises(ValueError, match="objects on 5% to 60%"):
        load_object_pictures(object_pack, side=128, grid=1)


def test_errors_are_where_the_picture_was_changed(clip, images):
    regions = torch.zeros(len(images), GRID, GRID, dtype=torch.bool)
    regions[:, :, : GRID // 2] = True
    task = TokenErrors(clip, ObjectPictures(images, regions), layer=0)
    changed = images.clone()
    changed[..., :56] = 255 - changed[..., :56]  # resizing spreads it, but not beyond the fourth column of patches
    columns = task.score(Original(), Received(pixel_values=changed / 255), range(len(images)))
    assert columns["outside"][0].sum() < 1e-6 < columns["inside"][0].sum()
    assert columns["all"][1].tolist() == [GRID**2] * len(images)
    assert np.allclose(columns["all"], columns["inside"] + columns["outside"])
    same = task.score(Original(), Original().receive(images), range(len(images)))
    assert same["all"][0].max() < 1e-6


def test_latents_are_read_at_the_layer_that_is_asked_for(model, clip, images):
    regions = torch.ones(len(images), GRID, GRID, dtype=torch.bool)
    task = TokenErrors(clip, ObjectPictures(images, regions))
    baseline = Latents(model)
    received = baseline.receive(images)
    with torch.no_grad():
        found = model(latents=received.latents, output_hidden_states=True).hidden_states[-2][:, 1:]
        expected = clip.vision_model(clip_inputs(images / 255, 112), output_hidden_states=True).hidden_states[-2]
    errors = (found - expected[:, 1:]).square().mean(2) / expected.square().mean((1, 2))[:, None]
    assert torch.allclose(task.errors(baseline, received, images).flatten(1), errors, rtol=1e-4)


def test_half_the_error_is_a_reduction_of_three_decibels():
    anchor = {place: np.array([[4.0, 6.0, 8.0], [2.0, 3.0, 4.0]]) for place in ("inside", "outside", "all")}
    test = {place: column * [[0.5], [1.0]] for place, column in anchor.items()} | {"outside": anchor["outside"]}
    found = error_reduction(anchor, test, resamples=50)
    assert found["inside"] == {"decibel": pytest.approx(3.0103, abs=1e-4), "interval": pytest.approx([3.0103] * 2)}
    assert found["outside"]["decibel"] == 0
    assert found["inside_minus_outside"]["decibel"] == pytest.approx(3.0103, abs=1e-4)


def test_measured_errors_of_decoded_pictures_are_the_same_in_any_batch(model, clip, images):
    regions = torch.ones(len(images), GRID, GRID, dtype=torch.bool)
    task = TokenErrors(clip, ObjectPictures(images, regions))
    whole, parts = (
        measure(Reconstruction(model.codec), task, batch_size=size, progress=False)["all"] for size in (6, 2)
    )
    assert np.allclose(whole, parts, rtol=1e-4)
