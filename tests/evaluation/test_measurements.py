"""Baselines on tasks: what arrives, what is asked, what is kept, and what comes out."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

import comneck_hf
from comneck_hf.evaluation.answers import Question
from comneck_hf.evaluation.baselines import Latents, Original, PictureFiles, PostProcessing, Reconstruction
from comneck_hf.evaluation.file_formats import encode_picture
from comneck_hf.evaluation.intervals import mean_of
from comneck_hf.evaluation.measurements import Point, measure, measure_all, summarize
from comneck_hf.evaluation.metrics import ms_ssim, psnr
from comneck_hf.evaluation.pictures import tensor_picture
from comneck_hf.evaluation.tasks import Distortion, Questions, ZeroShot
from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.cotam.modeling_cotam import CotamModel
from comneck_hf.models.unet import PostProcessingUNet
from comneck_hf.training.content import content_digest
from comneck_hf.training.llava import build_llava, llava_processor, train_tokenizer


@pytest.fixture(scope="module")
def unet(model: ComNeckModel, images: torch.Tensor) -> PostProcessingUNet:
    """With statistics of the pictures, so that they differ behind it."""
    torch.manual_seed(0)
    unet = PostProcessingUNet((4, 8), fingerprint=model.codec.exact.fingerprint)
    for module in unet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        unet(images / 255)
    return unet.eval()


@torch.no_grad()
def embeddings(way: str, model: ComNeckModel, clip: CLIPModel, unet: PostProcessingUNet, images: torch.Tensor):
    """What CLIP says in each way, computed picture by picture without the code under test."""
    result = []
    for image in images:
        pixel_values = image[None] / 255
        if way == "jpeg":
            jpeg = encode_picture(tensor_picture(image), quality=10)
            pixel_values = torch.from_numpy(np.array(jpeg.image)).permute(2, 0, 1)[None] / 255
        elif way != "original":
            latents = model.decompress(model.compress(pixel_values))
            if way == "latents":
                result.append(model(latents=latents).image_embeds)
                continue
            pixel_values = (model.reconstruct(latents) * 255).round() / 255
            pixel_values = unet(pixel_values) if way == "post-processing" else pixel_values
        result.append(clip.get_image_features(clip_inputs(pixel_values, 112)).pooler_output)
    return F.normalize(torch.cat(result), dim=-1)


def baseline_of(way: str, model: ComNeckModel, unet: PostProcessingUNet):
    return {
        "original": Original(),
        "jpeg": PictureFiles("jpeg", quality=10, num_threads=2),
        "reconstruction": Reconstruction(model.codec),
        "post-processing": PostProcessing(model.codec, unet),
        "latents": Latents(model),
    }[way]


WAYS = ("original", "jpeg", "reconstruction", "post-processing", "latents")


@pytest.mark.parametrize("way", WAYS)
def test_every_baseline_is_judged_by_what_arrives(way, model, clip, unet, images):
    """Every picture is a class of its own, whose text is what this way says of it: it is always right."""
    weights, labels = embeddings(way, model, clip, unet, images), torch.arange(len(images))
    baseline = baseline_of(way, model, unet)
    right = measure(baseline, ZeroShot(clip, images, labels, weights), batch_size=4, progress=False)
    wrong = measure(baseline, ZeroShot(clip, images, labels.roll(1), weights), batch_size=4, progress=False)
    assert mean_of(right["top1"]) == 100
    assert mean_of(wrong["top1"]) == 0


def test_bytes_and_quality_are_those_of_the_files(model, images):
    task = Distortion([images[0], images[1, :, :112, :100]])
    for name, baseline in (("codec", Reconstruction(model.codec)), ("latents", Latents(model))):
        found = measure(baseline, task, progress=False)
        for place, picture in enumerate(task.pictures):
            (bitstream,) = model.compress(picture[None] / 255)
            decoded = model.codec.decode(model.decompress([bitstream]), size=tuple(picture.shape[-2:]))
            decoded = (decoded * 255).round() / 255
            assert found["bytes"][0, place] == len(bitstream), name
            assert found["bpp"][0, place] == 8 * len(bitstream) / picture[0].numel()
            assert found["psnr"][0, place] == pytest.approx(psnr(decoded, picture[None] / 255).item())
            assert found["ms_ssim"][0, place] == pytest.approx(ms_ssim(decoded, picture[None] / 255).item())
    files = measure(PictureFiles("webp", max_bytes=700), task, progress=False)
    assert files["bytes"].max() <= 700
    assert measure(Original(), task, progress=False) == {}


def test_pictures_nobody_was_trained_to_show_are_not_measured(model, images):
    only_for_machines = ComNeckModel(model.config).eval()
    only_for_machines.load_state_dict(model.state_dict())
    only_for_machines.config.scenario = "d3"
    found = measure(Latents(only_for_machines), Distortion([images[0]]), progress=False)
    model.config.scenario = "d1"
    assert "bytes" in found and "psnr" not in found


def test_ms_ssim_refuses_pictures_that_are_too_small():
    with pytest.raises(ValueError, match="sides above 96 pixels"):
        ms_ssim(torch.rand(1, 3, 96, 128), torch.rand(1, 3, 96, 128))


@pytest.fixture(scope="module")
def asked(clip, images):
    """A LLaVA with a random language model, and two questions about every other picture."""
    questions = [Question(number, text, "") for number in range(0, 6, 2) for text in ("what is this?", "which color?")]
    processor = llava_processor(
        comneck_hf.auto.AutoImageProcessor.from_pretrained(comneck_hf.pretrained("comneck-tiny-clip")),
        train_tokenizer([question.text for question in questions], vocab_size=300),
    )
    torch.manual_seed(0)
    llava = build_llava(
        clip, processor, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ).eval()
    return llava, processor, questions


@pytest.mark.parametrize("way", ["reconstruction", "latents"])
def test_questions_are_counted_with_their_pictures(way, model, unet, images, asked):
    llava, processor, questions = asked
    heard: list[str] = []

    def judge(answer: str, question: Question) -> float:
        heard.append(answer)
        return float(question.picture == 2)

    task = Questions(llava, processor, images, questions, name="questions", judge=judge, max_new_tokens=3)
    found = measure(baseline_of(way, model, unet), task, batch_size=4, progress=False)
    assert found["accuracy"].tolist() == [[0, 0, 200, 0, 0, 0], [2, 0, 2, 0, 2, 0]]
    assert mean_of(found["accuracy"]) == pytest.approx(100 / 3)
    assert len(heard) == 6
    # The same words as for the pictures one by one, in another order
    alone = Questions(llava, processor, images, questions, name="questions", judge=judge, max_new_tokens=3)
    measure(baseline_of(way, model, unet), alone, batch_size=1, progress=False)
    assert heard[6:] == heard[:6]


def test_what_is_done_is_kept_and_read_again(model, clip, images, tmp_path, monkeypatch):
    weights = embeddings("original", model, clip, None, images)
    task = ZeroShot(clip, images, torch.arange(6), weights)
    options = {"folder": tmp_path, "batch_size": 4, "progress": False}
    first = measure_all([Original, lambda: Latents(model)], [task], **options)
    monkeypatch.setattr(Latents, "receive", None)  # would fail if anything were measured again
    again = measure_all([Original, lambda: Latents(model)], [task], **options)
    assert [point.name for point in again] == ["original", "d1"]
    for before, after in zip(first, again, strict=True):
        assert all(np.array_equal(before.columns[name], after.columns[name]) for name in before.columns)
    changed = ZeroShot(clip, images, torch.arange(6).roll(1), weights)
    with pytest.raises(TypeError):
        measure_all([lambda: Latents(model)], [changed], **options)


def test_two_models_are_never_one_point_of_a_curve(model, clip, images, tmp_path):
    task = ZeroShot(clip, images, torch.arange(6), embeddings("original", model, clip, None, images))
    other = copy.deepcopy(model)
    other.vision_model.neck.projection.weight.data.mul_(2)
    options = {"folder": tmp_path, "progress": False}
    same = measure_all([lambda: Latents(model), lambda: Latents(copy.deepcopy(model))], [task], **options)
    assert [point.columns["top1"].sum() for point in same] == [same[0].columns["top1"].sum()] * 2
    with pytest.raises(ValueError, match="Two baselines are called 'd1' .*--model NAME=FOLDER"):
        measure_all([lambda: Latents(model), lambda: Latents(other)], [task], **options)
    named = measure_all([lambda: Latents(model), lambda: Latents(other, name="other")], [task], **options)
    assert [point.name for point in named] == ["d1", "other"]


def test_what_is_kept_is_not_taken_for_another_version(model, clip, images, tmp_path, monkeypatch):
    task = ZeroShot(clip, images, torch.arange(6), embeddings("original", model, clip, None, images))
    measure_all([Original], [task], folder=tmp_path, progress=False)
    monkeypatch.setattr("comneck_hf.evaluation.measurements.__version__", "99.0")
    monkeypatch.setattr(Original, "receive", None)
    with pytest.raises(TypeError):
        measure_all([Original], [task], folder=tmp_path, progress=False)


def column(value: float) -> np.ndarray:
    return np.stack([np.full(50, value), np.ones(50)])


def test_the_summary_has_compressais_shape_and_compares_with_the_anchor():
    points = [Point("zero-shot", "original", "", {"top1": column(80.0)})]
    for name, share in (("reconstruction", 1.0), ("d1", 0.5)):
        for quality, (size, value) in enumerate([(400, 70.0), (100, 50.0), (200, 60.0), (800, 80.0)]):
            columns = {"bytes": column(share * size), "top1": column(value), "psnr": column(value / 2)}
            points.append(Point("zero-shot", name, f"q{quality}", columns))
    found = summarize(points)["zero-shot"]
    json.dumps(found, allow_nan=False)
    assert (found["pictures"], found["value"]) == (50, "top1")
    original, _, d1 = found["systems"]
    assert original["results"]["top1"] == [80.0]
    assert d1["results"]["quality"] == ["q1", "q2", "q0", "q3"]
    assert d1["results"]["bytes"] == [50, 100, 200, 400]
    assert d1["results"]["psnr-rgb"] == [25, 30, 35, 40]
    assert d1["results"]["top1_interval"][0] == [50, 50]
    against = found["against_reconstruction"]
    assert set(against) == {"d1"}
    assert against["d1"]["top1_bd_rate"]["percent"] == pytest.approx(-50)
    assert against["d1"]["psnr_gain"]["difference"] == pytest.approx(5)
    both = summarize(points, anchors=["d1", "reconstruction"])["zero-shot"]
    assert both["against_reconstruction"] == against
    assert both["against_d1"]["reconstruction"]["top1_bd_rate"]["percent"] == pytest.approx(100)
    with pytest.raises(ValueError, match="is called d3, construction; measured are original, reconstruction, d1"):
        summarize(points, anchors=["d1", "d3", "construction"])


def test_curves_that_cannot_be_compared_say_why():
    points = [
        Point("t", name, f"q{size}", {"bytes": column(size), "top1": column(50.0)})
        for name in ("reconstruction", "d1")
        for size in (100, 200, 400, 800)
    ]
    found = summarize(points)["t"]["against_reconstruction"]["d1"]
    assert "grow with the rate" in found["top1_bd_rate"]
    assert found["top1_gain"]["difference"] == 0
    assert set(summarize(points[::4])["t"]["against_reconstruction"]["d1"]) == {"top1_gain"}  # points, no curves


def test_a_unet_is_saved_with_the_codec_it_was_trained_for(unet, tmp_path, images):
    unet.save_pretrained(tmp_path)
    again = PostProcessingUNet.from_pretrained(tmp_path).eval()
    assert again.fingerprint == unet.fingerprint
    with torch.no_grad():
        assert torch.equal(again(images / 255), unet(images / 255))


def test_files_need_a_quality_or_a_size():
    with pytest.raises(ValueError, match="`quality` or `max_bytes`"):
        PictureFiles("jpeg")
    assert PictureFiles("jpeg", max_bytes=500).name == "jpeg at 500 bytes"


def test_settings_without_weights_decide_what_is_kept(model, clip, images, asked):
    llava, processor, questions = asked
    task = Questions(copy.deepcopy(llava), processor, images, questions, name="questions")
    before = content_digest(*task.depends_on())
    comneck_hf.pool_visual_tokens(task.llava, pool_layer=1, pool_stride=4)
    pooled = content_digest(*task.depends_on())
    task.llava.set_visual_pooling(1, 8)
    changed = copy.deepcopy(model)
    changed.config.vision_config.post_layernorm_repeats = 2
    digests = {before, pooled, content_digest(*task.depends_on())}
    assert len(digests) == 3
    assert content_digest(*Latents(model).depends_on()) != content_digest(*Latents(changed).depends_on())


@torch.no_grad()
@pytest.mark.parametrize("has_vectors", [False, True])
def test_a_cotam_tells_a_llava_what_decoded_pictures_do_before_it_is_trained(
    has_vectors, asked, images, clip, tiny_codec, vector_codec
):
    """It reads the decoded picture beside the latents, and codecs with gain vectors decode by the gain."""
    codec = vector_codec if has_vectors else tiny_codec
    cotam = CotamModel.from_codec_and_clip(codec, clip, use_guide=False).eval()
    task = Questions(*asked[:2], images, asked[2], name="questions")
    ways = Latents(cotam, gain=-1.0), Reconstruction(codec, gain=-1.0)
    found, expected = (torch.stack(task.features(way, way.receive(images))) for way in ways)
    assert (found - expected).abs().max() < 0.05 * expected.std()  # decoded pictures have 8 bits
    at_other_gain = Reconstruction(codec, gain=1.0)
    other = torch.stack(task.features(at_other_gain, at_other_gain.receive(images)))
    assert (other - expected).abs().max() > 0.5 * expected.std()


def test_a_machine_that_pauses_does_not_change_the_reported_time():
    seconds = np.stack([np.array([0.1] * 9 + [300.0]), np.ones(10)])
    columns = {"bytes": np.stack([np.arange(10.0), np.ones(10)]), "encode_seconds": seconds}
    (system,) = summarize([Point("zero-shot", "d1", "q1", columns)])["zero-shot"]["systems"]
    assert system["results"]["encode_seconds"] == [0.1] and system["results"]["bytes"] == [4.5]


def test_a_llava_that_has_a_tower_is_refused(model, asked, images):
    llava, processor, questions = asked
    attached = comneck_hf.attach_vision_tower(copy.deepcopy(llava), model)
    with pytest.raises(ValueError, match="has a ComNeck tower"):
        Questions(attached, processor, images, questions, name="questions")


def test_flat_and_small_pictures_are_measured_as_far_as_they_can(model, unet):
    flat = torch.full((3, 80, 72), 255, dtype=torch.uint8)
    found = measure(PictureFiles("jpeg", quality=90), Distortion([flat]), progress=False)
    assert "ms_ssim" not in found
    assert 0 < mean_of(found["psnr"]) <= 100
    cleaned = measure(PostProcessing(model.codec, unet), Distortion([flat]), progress=False)
    assert "psnr" not in cleaned and mean_of(cleaned["bytes"]) > 0  # it paints for CLIP, not for people


def test_a_process_without_pictures_takes_part(monkeypatch, model, images):
    shares = []

    def gather(part):
        shares.extend(part)
        return shares

    monkeypatch.setattr("comneck_hf.evaluation.measurements.gather_object", gather)
    task = Distortion([images[0], images[1], images[2]])
    found = [measure(Latents(model), task, rank=rank, world_size=4, progress=False) for rank in (1, 3, 0, 2)]
    alone = measure(Latents(model), task, progress=False)
    assert np.array_equal(found[-1]["bytes"], alone["bytes"])


def test_without_the_extra_bd_rate_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    points = [
        Point("t", name, f"q{size}", {"bytes": column(size), "top1": column(size / 10)})
        for name in ("reconstruction", "d1")
        for size in (100, 200)
    ]
    against = summarize(points)["t"]["against_reconstruction"]["d1"]
    assert "comneck_hf[eval]" in against["top1_bd_rate"]
    assert against["top1_gain"]["difference"] == 0


def test_points_may_have_measured_different_things():
    points = [
        Point("t", "mine", "q1", {"bytes": column(100), "top1": column(50.0), "psnr": column(25.0)}),
        Point("t", "mine", "q2", {"bytes": column(200), "top1": column(60.0)}),
    ]
    (system,) = summarize(points)["t"]["systems"]
    assert system["results"]["psnr-rgb"] == [25.0, None]
