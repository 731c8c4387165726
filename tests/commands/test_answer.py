"""`comneck answer` writes what `comneck score` takes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel
from typer.testing import CliRunner

import comneck_hf
from comneck_hf.cli import app
from comneck_hf.evaluation.benchmarks import (
    boxes_in_pictures,
    find_picture,
    load_prompts,
    picture_files,
    square_pictures,
)
from comneck_hf.training.llava import build_llava, llava_processor, train_tokenizer


MODEL = "comneck-tiny-d1-q2"


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """A LLaVA with a random language model behind the packaged CLIP."""
    clip = comneck_hf.pretrained("comneck-tiny-clip")
    processor = llava_processor(
        AutoImageProcessor.from_pretrained(clip), train_tokenizer(["is there a cup? yes no"], vocab_size=300)
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build_llava(CLIPModel.from_pretrained(clip), processor, **sizes)
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(pictures: torch.Tensor, tmp_path_factory) -> Path:
    """COCO's names, two pictures of other sizes and shapes than the model's."""
    folder = tmp_path_factory.mktemp("images")
    for number, size in ((7, (160, 128)), (8, (150, 200))):
        values = (pictures[number - 7].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(values).resize(size).save(folder / f"COCO_val2014_{number:012d}.jpg", quality=95)
    return folder


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout + (result.stderr if result.exit_code else "")


QUESTIONS = {
    "questions": [
        {"question_id": 3, "image_id": 7, "question": "is there a cup?"},
        {"question_id": 1, "image_id": 8, "question": "is there a chair?"},
        {"question_id": 2, "image_id": 7, "question": "is there a chair?"},
    ]
}
ANNOTATIONS = {
    "annotations": [
        {
            "question_id": number,
            "question_type": "is there",
            "answer_type": "yes/no",
            "answers": [{"answer": "no"}] * 10,
        }
        for number in (1, 2, 3)
    ]
}


@pytest.mark.parametrize("source", ["latents", "reconstruction", "original", "webp:20"])
def test_vqa_is_answered_in_the_order_of_its_questions_and_scored(llava, images, tmp_path, source):
    for name, content in (("questions", QUESTIONS), ("annotations", ANNOTATIONS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    output = tmp_path / "answers.json"
    words = ["--questions", tmp_path / "questions.json", "--images", images, "--llava", llava, "--model", MODEL]
    words += ["--source", source, "--max-new-tokens", 3, "--output", output, "--quiet", "--json"]
    code, text = run("answer", "vqa", *words)
    assert code == 0, text
    report = json.loads(text)
    assert (report["answers"], report["pictures"]) == (3, 2)
    assert ("bytes" in report) == (source != "original")
    if source == "latents":
        prompts = load_prompts("vqa", tmp_path / "questions.json")
        pixel_values = square_pictures(images, prompts, 128)[0] / 255
        bitstreams = (
            comneck_hf.ComNeckModel.from_pretrained(comneck_hf.pretrained(MODEL)).eval().compress(pixel_values)
        )
        assert report["bytes"] == sum(map(len, bitstreams)) / 2
    assert [record["question_id"] for record in json.loads(output.read_text())] == [3, 1, 2]
    code, text = run("score", "vqa", "--references", tmp_path / "annotations.json", "--results", output)
    assert code == 0 and "3 predictions" in text
    code, text = run("answer", "vqa", *words)
    assert code == 1 and "exists" in text


def test_the_other_benchmarks_are_answered_in_their_own_forms(llava, images, tmp_path):
    name = "COCO_val2014_000000000007.jpg"
    with Image.open(images / name) as image:
        image.crop((0, 0, 128, 128)).save(tmp_path / "square.jpg")
    files = {
        "pope": [{"question_id": 1, "image": name, "text": "Is there a cup in the image?", "label": "yes"}],
        "captions": {"annotations": [{"image_id": 8, "caption": "a cup"}, {"image_id": 8, "caption": "cups"}]},
        "rec": [{"ref_id": 5, "file_name": "square.jpg", "expression": "the cup", "bbox": [1, 2, 3, 4]}],
    }
    expected = {"pope": {"question_id": 1}, "captions": {"image_id": 8}, "rec": {"ref_id": 5}}
    for task, content in files.items():
        file, output = tmp_path / f"{task}.json", tmp_path / f"{task}-answers.json"
        file.write_text(json.dumps(content[0]) if task == "pope" else json.dumps(content))
        folder = tmp_path if task == "rec" else images
        words = ["--questions", file, "--images", folder, "--llava", llava, "--model", MODEL, "--max-new-tokens", 2]
        code, text = run("answer", task, *words, "--output", output, "--quiet")
        assert code == 0, text
        (record,) = [json.loads(output.read_text())] if task == "pope" else json.loads(output.read_text())
        (answer,) = set(record) - set(expected[task])
        assert answer == ("caption" if task == "captions" else "answer")
        assert record.items() >= expected[task].items()


def test_pictures_whose_answers_are_boxes_are_padded_and_the_boxes_mapped_back(images, tmp_path):
    record = {"ref_id": 5, "file_name": "COCO_val2014_000000000007.jpg", "expression": "the cup"}
    (tmp_path / "rec.json").write_text(json.dumps([record, {**record, "ref_id": 6}]))
    prompts = load_prompts("rec", tmp_path / "rec.json")
    pictures, _ = square_pictures(images, prompts, 160)
    with Image.open(images / record["file_name"]) as image:  # 160x128: 16 rows above and below
        assert (pictures[0, :, 16:144].permute(1, 2, 0).numpy() == image.convert("RGB")).all()
    assert pictures[0, :, :16].flatten(1).unique(dim=1).flatten().tolist() == [122, 116, 104]
    answers = [{"ref_id": 5, "answer": "It is [0.25, 0.1, 0.75, 0.5]."}, {"ref_id": 6, "answer": "nowhere"}]
    mapped = boxes_in_pictures(answers, prompts, images)
    assert mapped == [{"ref_id": 5, "answer": "[0.2500, 0.0000, 0.7500, 0.5000]"}, answers[1]]


def test_pictures_are_cut_to_the_middle(images):
    prompts = load_prompts_of([7, 8, 7], images)
    pictures, questions = square_pictures(images, prompts, 128)
    assert pictures.shape == (2, 3, 128, 128)
    assert [question.picture for question in questions] == [0, 1, 0]
    with Image.open(find_picture(picture_files(images), 7)) as image:
        middle = image.convert("RGB").crop((16, 0, 144, 128))
    assert (pictures[0].permute(1, 2, 0).numpy() == middle).all()


def load_prompts_of(numbers: list[int], folder: Path):
    records = [{"question_id": i, "image_id": number, "question": "?"} for i, number in enumerate(numbers)]
    (folder / "questions.json").write_text(json.dumps({"questions": records}))
    return load_prompts("vqa", folder / "questions.json", prompt="say {}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "jpeg"], "stands for 5 baselines"),
        (["--source", "gif"], "No baseline is called 'gif'"),
        (["--prompt", "what?"], "must have '{}' once"),
    ],
)
def test_what_cannot_be_answered_is_named(llava, images, tmp_path, words, message):
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    options = ["--questions", tmp_path / "questions.json", "--images", images, "--llava", llava, "--model", MODEL]
    code, text = run("answer", "vqa", *options, *words, "-o", tmp_path / "answers.json")
    assert code == 1 and message in text


def test_missing_pictures_and_other_files_are_named(tmp_path, images):
    with pytest.raises(ValueError, match="no picture 9"):
        find_picture(picture_files(images), 9)
    (tmp_path / "picture.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"picture.json is no file of vqa \(UnicodeDecodeError"):
        load_prompts("vqa", tmp_path / "picture.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="no file of vqa"):
        load_prompts("vqa", tmp_path / "other.json")
    with pytest.raises(ValueError, match="`task` must be one of"):
        load_prompts("gqa", tmp_path / "other.json")
