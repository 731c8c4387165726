"""lmms-eval: coding before a LLaVA, bytes beside scores, and its own command where it is installed."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from comneck_hf import ComNeckImageProcessor, ComNeckProcessor, attach_vision_tower, pretrained
from comneck_hf.integrations.coded_llava import CodedLlava, cut_answer, generation_options, ignored_options
from comneck_hf.integrations.lmms_eval_plugin import manifest
from comneck_hf.integrations.rate_log import RateLog, rate_path
from comneck_hf.training.conversations import conversation


COMNECK = pretrained("comneck-tiny-d1-q2")
REPOSITORY = Path(__file__).parents[2]
OPTIONS = {"max_new_tokens": 5, "do_sample": False}
needs_lmms_eval = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")


@pytest.fixture(scope="session")
def folder_for(tmp_path_factory):
    """Saves a model with its processor."""

    def save(model, processor):
        folder = tmp_path_factory.mktemp("llava")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def pixels(llava, processor, folder_for):
    """Folder of a LLaVA on pixels."""
    return folder_for(llava(), processor)


def prompts(photos):
    """Two pictures, none, one."""
    two = conversation([("is this a cat ?", None)])
    two[0]["content"].insert(0, {"type": "image"})
    none = conversation([("what is a cat ?", None)], has_image=False)
    return [two, none, conversation([("what is this ?", None)])], [[photos[0], photos[1]], [], [photos[2]]]


def coded(model, images):
    return [model.code(own).images for own in images]


@pytest.mark.parametrize("source", ["latents", "reconstruction", "original"])
def test_a_batch_of_several_images_none_and_one_answers_as_one_by_one(pixels, photos, source):
    model = CodedLlava.from_pretrained(pixels, comneck=COMNECK, source=source)
    conversations, pictures = prompts(photos)
    images = coded(model, pictures)
    together = model.answer(conversations, images, **OPTIONS)
    single = [model.answer([one], [own], **OPTIONS) for one, own in zip(conversations, images, strict=True)]
    assert together.texts == [answer.texts[0] for answer in single]
    assert all(0 < count <= 5 for count in together.num_tokens)
    assert len(set(together.texts)) > 1


def test_latents_of_the_real_bitstreams_reach_the_tower(pixels, photos, comneck):
    model = CodedLlava.from_pretrained(pixels, comneck=COMNECK)
    result = model.code(photos)
    pictures = ComNeckImageProcessor.for_size(128)(photos, return_tensors="pt").pixel_values
    bitstreams = comneck.compress(pictures)
    assert result.images == bitstreams and result.num_bytes == [len(data) for data in bitstreams]
    conversations, images = prompts(photos)
    inputs = model.inputs(conversations, coded(model, images))
    assert torch.equal(inputs["pixel_values"], comneck.decompress(bitstreams))
    assert (inputs["input_ids"] == 4).sum(1).tolist() == [128, 0, 64]


def test_reconstructions_are_the_decoded_pictures_and_originals_are_untouched(pixels, photos, comneck):
    model = CodedLlava.from_pretrained(pixels, comneck=COMNECK, source="reconstruction")
    result = model.code(photos * 6)  # more than are coded at a time
    pictures = ComNeckImageProcessor.for_size(128)(photos, return_tensors="pt").pixel_values
    bitstreams = comneck.compress(pictures)
    assert result.num_bytes == [len(data) for data in bitstreams] * 6
    with torch.no_grad():
        expected = comneck.reconstruct(comneck.decompress(bitstreams))
    found = torch.stack([torch.from_numpy(np.array(image)) for image in result.images])
    assert (found.permute(0, 3, 1, 2) / 255 - expected.repeat(6, 1, 1, 1)).abs().max() < 0.51 / 255 + 1e-4
    original = CodedLlava.from_pretrained(pixels, comneck="never loaded", source="original")
    assert original.code(photos).images == photos and original.code(photos).num_bytes is None


def test_a_llava_with_a_comneck_tower_codes_by_itself(llava, processor, comneck, folder_for, pixels, photos):
    model = attach_vision_tower(llava(), comneck)
    folder = folder_for(model, ComNeckProcessor.for_llava(model, processor))
    own, attached = CodedLlava.from_pretrained(folder), CodedLlava.from_pretrained(pixels, comneck=COMNECK)
    conversations, images = prompts(photos)
    assert own.code(photos).images == attached.code(photos).images
    answers = [model.answer(conversations, coded(model, images), **OPTIONS).texts for model in (own, attached)]
    assert answers[0] == answers[1]
    half = CodedLlava.from_pretrained(folder, comneck=COMNECK, dtype="bfloat16")
    assert half.llava.dtype == torch.bfloat16
    assert half.code(photos).images == attached.code(photos).images
    assert len(half.answer(conversations, coded(half, images), **OPTIONS).texts) == 3
    with pytest.raises(ValueError, match="has a ComNeck tower, and `source=original` needs the whole CLIP"):
        CodedLlava.from_pretrained(folder, source="original")


def test_llava_next_takes_decoded_pictures(llava, next_processor, processor, folder_for, photos):
    next_processor.chat_template = processor.chat_template
    folder = folder_for(llava("next"), next_processor)
    model = CodedLlava.from_pretrained(folder, comneck=COMNECK, source="reconstruction")
    conversations, images = prompts(photos)
    assert len(model.answer(conversations, coded(model, images), **OPTIONS).texts) == 3
    with pytest.raises(ValueError, match="is a LLaVA-NeXT, which cuts pictures into tiles"):
        CodedLlava.from_pretrained(folder, comneck=COMNECK)


def test_what_does_not_fit_is_named(pixels, comneck, tmp_path):
    with pytest.raises(ValueError, match="`source` must be one of .* got 'pixels'"):
        CodedLlava.from_pretrained(pixels, comneck=COMNECK, source="pixels")
    for source in ("latents", "reconstruction"):
        with pytest.raises(ValueError, match=rf"trained on pixels, and `source={source}` needs a codec"):
            CodedLlava.from_pretrained(pixels, source=source)
    comneck.codec, comneck.config.codec_config = None, None
    comneck.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no codec: it takes latents only"):
        CodedLlava.from_pretrained(pixels, comneck=tmp_path)


def test_generation_settings_of_tasks_are_taken_over():
    assert generation_options({}, max_new_tokens=7) == {"max_new_tokens": 7, "do_sample": False}
    wanted = {
        "max_new_tokens": 16,
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "do_sample": True,
        "until": ["\n"],
    }
    assert generation_options(wanted, max_new_tokens=7) == {"max_new_tokens": 16, "do_sample": False, "num_beams": 1}
    sampled = generation_options({"temperature": 0.7, "top_p": 0.9}, max_new_tokens=7)
    assert sampled == {"max_new_tokens": 7, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert generation_options({"temperature": 0.7, "do_sample": False}, max_new_tokens=7)["do_sample"] is False
    assert ignored_options({**wanted, "image_aspect_ratio": "pad"}) == {"image_aspect_ratio"}
    assert cut_answer("a cat\n\nUSER: and?", ["\n\n", "USER"]) == cut_answer("a cat ###", "###") == "a cat"
    assert cut_answer("a cat", None) == "a cat"


def test_rates_count_original_pixels_and_every_document_once(tmp_path):
    log = RateLog(source="latents")
    log.add("pope", 3, [(640, 480), (10, 20)], [1000, 20])
    log.add("pope", 3, [(640, 480), (10, 20)], [1000, 20])
    log.add("mme", 0, [], [])
    other = RateLog()
    other.add("pope", 1, [(100, 100)], [500])
    log.update([*other.documents, *log.documents])
    log.save(tmp_path / "new" / "rates.json")
    written = json.loads((tmp_path / "new" / "rates.json").read_text())
    pixels = 640 * 480 + 200 + 10000
    total = {"documents": 3, "images": 3, "pixels": pixels, "bytes": 1520, "bpp": 8 * 1520 / pixels}
    assert (written["setting"], written["total"]) == ({"source": "latents"}, total)
    assert written["tasks"]["mme"] == {"documents": 1, "images": 0, "pixels": 0, "bytes": 0, "bpp": None}
    assert [(document["task"], document["doc_id"]) for document in written["documents"]] == [
        ("mme", 0),
        ("pope", 1),
        ("pope", 3),
    ]
    with pytest.raises(ValueError, match="Document 4 of pope has 1 images and 2 bitstreams"):
        log.add("pope", 4, [(1, 1)], [1, 2])
    log.add("pope", 5, [(1, 1)], None)
    assert log.total("pope")["bytes"] is None and log.total("mme")["bytes"] == 0


def test_a_file_for_the_rates_is_chosen_before_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rate_path(None).match("*_comneck_rates.json") and rate_path(None).parent == tmp_path
    assert rate_path("out/rates.json") == tmp_path / "out" / "rates.json"
    with pytest.raises(ValueError, match=r"`rate_file` is a folder, .*Give the path of a file"):
        rate_path(tmp_path)


@pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_without_lmms_eval_the_extra_is_named():
    assert callable(manifest)
    with pytest.raises(ImportError, match=r"comneck_hf\[mllm\]"):
        import_module("comneck_hf.integrations.lmms_eval")


@pytest.fixture
def workplace(tmp_path):
    """A working folder with a small easy-VQA: two pictures of different sizes, three questions."""
    names = datasets.ClassLabel(names=["yes", "no"])
    features = datasets.Features(
        image=datasets.Image(), questions=datasets.List(datasets.Value("string")), answers=datasets.List(names)
    )
    rows = {
        "image": [Image.new("RGB", (64, 48), "red"), Image.effect_noise((100, 80), 60)],
        "questions": [["is this a cat ?", "what is this ?"], ["a cat ?"]],
        "answers": [[0, 1], [1]],
    }
    (tmp_path / "data" / "easy_vqa" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        tmp_path / "data" / "easy_vqa" / "data" / "test-00000-of-00001.parquet"
    )
    return tmp_path, rows["image"]


def evaluate(folder, *, launcher=(), **model_args):
    """The output of lmms-eval's command."""
    arguments = ",".join(f"{name}={value}" for name, value in model_args.items())
    command = ["-m", "lmms_eval", "--model", "comneck_llava", "--model_args", arguments, "--tasks", "easy_vqa_local"]
    command += [
        "--include_path",
        str(REPOSITORY / "scripts" / "lmms_eval_task"),
        "--batch_size",
        "2",
        "--device",
        "cpu",
    ]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **environment, "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(
        [sys.executable, *launcher, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return run.stdout + run.stderr


@needs_lmms_eval
def test_lmms_eval_finds_the_plugin():
    (entry,) = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "comneck_llava"]
    assert entry.load() is manifest and manifest().chat_class_path == "comneck_hf.integrations.lmms_eval.ComNeckLlava"


@needs_lmms_eval
def test_requests_of_all_kinds_are_answered_in_order_with_their_own_images(pixels, photos, tmp_path):
    from lmms_eval.api.instance import Instance

    from comneck_hf.integrations.lmms_eval import ComNeckLlava

    model = ComNeckLlava(str(pixels), COMNECK, batch_size="2", device="cpu", rate_file=str(tmp_path / "rates.json"))
    conversations, images = prompts(photos)
    model.task_dict = {"mixed": {"test": [0, 1, 2, 0]}}

    def messages(document):
        own = [{"type": "image", "url": image} for image in images[document]]
        text = conversations[document][0]["content"][-1]["text"]
        return [{"role": "user", "content": [*own, {"type": "text", "text": f"<image>{text}"}]}]

    def request(doc_id, **options):
        metadata = {"task": "mixed", "doc_id": doc_id, "repeats": 1}
        return Instance("generate_until", ("", messages, options, doc_id, "mixed", "test"), 0, metadata)

    requests = [request(doc_id, max_new_tokens=count) for doc_id, count in ((0, 5), (3, 2), (1, 5), (2, 5))]
    results = model.generate_until(requests)
    expected = model.model.answer(conversations, coded(model.model, images), **OPTIONS)
    assert [results[index].text for index in (0, 2, 3)] == expected.texts
    assert results[1].token_counts.output_tokens == 2 and expected.texts[0].startswith(results[1].text)
    lengths = model.model.code(photos).num_bytes
    counts = [(rate.num_images, rate.num_bytes) for rate in model.rates.documents]
    assert counts == [(2, sum(lengths[:2])), (0, 0), (1, lengths[2]), (2, sum(lengths[:2]))]
    video = [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}]
    with pytest.raises(ValueError, match="Document 0 of mixed has 1 videos and 0 sounds"):
        arguments = ("", lambda _: video, {}, 0, "mixed", "test")
        model.generate_until([Instance("generate_until", arguments, 0, requests[0].metadata)])
    model.clean()
    assert json.loads((tmp_path / "rates.json").read_text())["total"]["images"] == 5


@needs_lmms_eval
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_scores_and_writes_the_bytes_of_every_document(workplace, pixels, comneck, processes):
    folder, pictures = workplace
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    shown = evaluate(folder, launcher=launcher, pretrained=pixels, comneck=COMNECK, rate_file="rates/latents.json")
    assert "|easy_vqa_local|" in shown and "exact_match" in shown, shown
    assert ("Running on rank 1" in shown) == (processes == 2)
    assert "The scores do not tell bytes: 3 images in 3 documents, source=latents" in shown
    written = json.loads((folder / "rates" / "latents.json").read_text())
    make = ComNeckImageProcessor.for_size(128)
    lengths = [
        len(comneck.compress(make(picture.convert("RGB"), return_tensors="pt").pixel_values)[0])
        for picture in pictures
    ]
    found = [(document["doc_id"], document["pixels"], document["bytes"]) for document in written["documents"]]
    assert found == [(0, 64 * 48, lengths[0]), (1, 64 * 48, lengths[0]), (2, 8000, lengths[1])]
    assert written["total"]["bpp"] == 8 * (2 * lengths[0] + lengths[1]) / (2 * 64 * 48 + 8000)


@needs_lmms_eval
def test_originals_have_no_bytes_and_the_file_has_a_name_of_its_own(workplace, pixels):
    folder, _ = workplace
    assert "|easy_vqa_local|" in evaluate(folder, pretrained=pixels, source="original")
    (path,) = folder.glob("*_comneck_rates.json")
    assert json.loads(path.read_text())["total"]["bytes"] is None


@needs_lmms_eval
def test_errors_are_shown_not_scored(workplace, pixels):
    folder, _ = workplace
    shown = evaluate(folder, pretrained=pixels, source="latents")
    assert "needs a codec" in shown and "|easy_vqa_local|" not in shown
