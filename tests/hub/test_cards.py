"""Cards say what is known, and their code runs."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPModel

import comneck_hf
from comneck_hf import ComNeckImageProcessor, ComNeckModel, CotamModel
from comneck_hf.hub.cards import ModelFacts, card_files, load_facts, render_card
from comneck_hf.hub.folders import build_hub_folder
from comneck_hf.models.comneck.configuration_comneck import ComNeckConfig
from comneck_hf.models.cotam.configuration_cotam import CotamConfig


MODEL, CLIP = (comneck_hf.pretrained(name) for name in ("comneck-tiny-d1-q2", "comneck-tiny-clip"))
FACTS = sorted(card_files().glob("comneck-*.yaml"))
ROOT = Path(__file__).parents[2]
MEASURED = ModelFacts(repo_id="someone/model", results="results.json", evaluation_dataset="some/data")
SYSTEMS = [
    {"name": "original", "results": {"quality": [""], "top1": [70.0]}},
    {
        "name": "d1",
        "results": {
            "quality": ["q3", "q2"],
            "bytes": [500.0, 252.8],
            "bpp": [0.5, 0.12345],
            "top1": [60.0, 12.345],
            "psnr-rgb": [26.0, 25.0],
        },
    },
    {"name": "reconstruction", "results": {"quality": ["q2"], "top1": [11.1]}},
]
RESULTS = {
    "tasks": {"zero-shot": {"data": "caltech", "split": "validation", "pictures": 2315, "systems": SYSTEMS}},
}


def model_of(path: Path, folder: Path) -> Path:
    """A model as the facts describe it; of the converted ones, which are not here, the configuration."""
    facts = load_facts(path)
    if path.stem.endswith("clip"):
        return Path(CLIP)
    if "cotam" in path.stem:
        CotamConfig(quality=3).save_pretrained(folder)
        return folder
    scenario, quality = re.search(r"-(d\d)-q(\d)$", facts.repo_id).groups()
    ComNeckConfig(scenario=scenario, quality=int(quality)).save_pretrained(folder)
    return folder


def test_every_model_has_its_facts():
    assert len(FACTS) == 12 + 12 + 1 + 1
    for path in FACTS:
        assert load_facts(path).repo_id.rpartition("/")[2] == path.stem


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_every_card_renders_and_parses_back(path, tmp_path):
    facts = load_facts(path)
    rendered = render_card(facts, model_of(path, tmp_path), root=ROOT)
    card = ModelCard(str(rendered.card))
    assert card.data.library_name == "transformers"
    assert card.data.license == facts.license
    assert "{{" not in str(card)
    if facts.results is None:
        assert card.data.eval_results is None
        assert rendered.eval_results == []
        assert "No number of this model was measured" in card.text
        assert not re.search(r"\d\d\.\d %|dB", card.text)
    else:
        assert len(card.data.eval_results) == len(rendered.eval_results) == 1


def test_numbers_come_from_the_results(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    rendered = render_card(MEASURED, MODEL, root=tmp_path)
    assert "| zero-shot top-1 from latents | 12.3 % |" in rendered.card.text
    assert "| bits per pixel | 0.123 |" in rendered.card.text
    assert "| zero-shot top-1 from decoded pictures | 11.1 % |" in rendered.card.text
    assert "| zero-shot top-1 from originals | 70.0 % |" in rendered.card.text
    assert "| PSNR of decoded pictures | 25.00 dB |" in rendered.card.text
    assert "On 2,315 pictures of caltech, split validation" in rendered.card.text
    (result,) = ModelCard(str(rendered.card)).data.eval_results
    assert result.dataset_type == "some/data"
    assert (result.metric_value, result.metric_args) == (12.35, {"bpp": 0.1235})
    rendered.save(tmp_path)
    (entry,) = yaml.safe_load((tmp_path / ".eval_results" / "zero_shot.yaml").read_text())
    assert entry["value"] == 12.35
    assert "at 0.1235 bits per pixel" in entry["notes"]


def test_a_model_of_every_rate_shows_what_it_does_at_the_rate_it_was_trained_for(tmp_path):
    values = {"quality": ["q3 -1", "q3 +0"], "bytes": [100.0, 200.0], "bpp": [0.1, 0.2], "top1": [50.0, 55.5]}
    systems = [{"name": name, "results": values} for name in ("cotam", "reconstruction")]
    results = {**RESULTS, "tasks": {"zero-shot": {**RESULTS["tasks"]["zero-shot"], "systems": systems}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    CotamConfig(quality=3).save_pretrained(tmp_path)
    card = render_card(MEASURED, tmp_path, root=tmp_path).card
    assert "| zero-shot top-1 from latents | 55.5 % |" in card.text
    assert "| bytes per picture, whole bitstreams | 200 |" in card.text
    assert "8x8 map of gains" in card.text


def test_a_model_without_a_row_has_no_numbers(tmp_path):
    others = [{**system, "name": "d2"} for system in SYSTEMS if system["name"] == "d1"]
    results = {**RESULTS, "tasks": {"zero-shot": {**RESULTS["tasks"]["zero-shot"], "systems": [SYSTEMS[0], *others]}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "No number of this model was measured" in render_card(MEASURED, MODEL, root=tmp_path).card.text


def test_results_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(OSError, match=r"results\.json"):
        render_card(MEASURED, MODEL, root=tmp_path)


def test_results_need_the_name_of_their_data():
    with pytest.raises(ValueError, match="evaluation_dataset"):
        ModelFacts(repo_id="someone/model", results="results.json")


@pytest.fixture(scope="module")
def cotam_folder(tmp_path_factory):
    """A CoTAM of the packaged codec and CLIP."""
    folder = tmp_path_factory.mktemp("cotam")
    codec, clip = ComNeckModel.from_pretrained(MODEL).codec, CLIPModel.from_pretrained(CLIP)
    CotamModel.from_codec_and_clip(codec, clip, quality=3).save_pretrained(folder)
    ComNeckImageProcessor.for_size(128).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_the_code_of_every_card_runs_in_a_folder_of_that_name(path, tmp_path, monkeypatch, cotam_folder):
    facts, name = load_facts(path), path.stem
    source = CLIP if name == "comneck-tiny-clip" else MODEL  # which stands for those that are not packaged
    source = cotam_folder if "cotam" in name else source
    build_hub_folder(source, tmp_path / facts.repo_id, render_card(facts, source))
    photograph = Path(comneck_hf.pretrained("comneck-tiny-clip")).parent / "photographs" / "astronaut.png"
    Image.open(photograph).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (Path(facts.repo_id) / "README.md").read_text(), re.DOTALL)
    values: dict[str, object] = {}
    exec(code, values)
    if name == "comneck-tiny-clip":
        assert values["probabilities"].shape == (1, 2)
    else:
        assert values["outputs"].image_embeds.shape == (1, 128)
        assert values["model"].compress(values["pixel_values"]) == values["bitstreams"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("family: other\nrepo_id: a/b\n", "unknown family 'other'"),
        ("repo_id: a/b\nlicence: mit\n", r"unknown are \['licence'\]"),
        ("license: mit\n", "must have `repo_id`"),
        ("repo_id: a/b\nlimits: none\n", "`limits` in .* must be a list"),
        ("family: [tiny]\nrepo_id: a/b\n", "unknown family"),
        ("- repo_id\n", "must hold keys and values"),
        ("repo_id: [\n", "is no YAML"),
    ],
)
def test_wrong_facts_are_refused(tmp_path, content, message):
    (tmp_path / "facts.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_facts(tmp_path / "facts.yaml")


def test_the_package_list_names_every_folder():
    import tomllib

    root = Path(__file__).parents[2]
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    source = root / "src"
    found = {str(path.parent.relative_to(source)).replace(os.sep, ".") for path in source.rglob("__init__.py")}
    assert listed == found | {"comneck_hf.modeling", "comneck_hf.model_cards"}
