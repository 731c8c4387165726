"""Publishing to a Hub in memory, and loading from it by name."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, constants

import comneck_hf
from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.hub.cards import ModelFacts, card_files, render_card
from comneck_hf.hub.folders import build_hub_folder
from comneck_hf.hub.publish import publish_folder


REPO = "nycu/comneck-d1-q2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The packaged model as a repository."""
    source, target = comneck_hf.pretrained("comneck-tiny-d1-q2"), tmp_path_factory.mktemp("hub") / "model"
    build_hub_folder(source, target, render_card(ModelFacts(repo_id=REPO), source, tag="v1.0"))
    return target


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token="dummy")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_one_commit_with_a_tag(hub, api, folder):
    published = publish_folder(folder, REPO, tag="v1.0", api=api)
    repository = hub.repositories[REPO]
    assert published.changed
    assert repository.files("v1.0") == content(folder)
    assert list(repository.titles.values()) == ["initial commit", "Release v1.0"]


def test_publishing_again_changes_nothing(hub, api, folder):
    publish_folder(folder, REPO, tag="v1.0", api=api)
    commits = list(hub.repositories[REPO].commits)
    assert not publish_folder(folder, REPO, tag="v1.0", api=api).changed
    assert not publish_folder(folder, REPO, api=api).changed
    assert list(hub.repositories[REPO].commits) == commits


def test_a_tag_is_never_moved(hub, api, folder, tmp_path):
    publish_folder(folder, REPO, tag="v1.0", api=api)
    for name, data in content(folder).items():
        (tmp_path / name).write_bytes(data + b"\n" if name == "README.md" else data)
    with pytest.raises(ValueError, match=r"tag v1\.0 with other content"):
        publish_folder(tmp_path, REPO, tag="v1.0", api=api)
    assert hub.repositories[REPO].files("v1.0") == content(folder)
    assert publish_folder(tmp_path, REPO, tag="v1.1", api=api).changed
    assert hub.repositories[REPO].files("v1.0") == content(folder)
    assert hub.repositories[REPO].files("v1.1") == content(tmp_path)


def test_a_release_has_no_files_of_an_earlier_one(hub, api, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "old.txt").write_text("of v1.0")
    publish_folder(tmp_path / "model", REPO, tag="v1.0", api=api)
    publish_folder(folder, REPO, tag="v2.0", api=api)
    assert hub.repositories[REPO].files("v2.0") == content(folder)
    with pytest.raises(ValueError, match=r"tag v1\.0 with other content"):
        publish_folder(folder, REPO, tag="v1.0", api=api)


def test_a_private_model_is_not_put_into_a_public_repository(hub, api, folder):
    publish_folder(folder, "someone/private", private=True, api=api)
    assert hub.repositories["someone/private"].private
    publish_folder(folder, REPO, api=api)
    with pytest.raises(ValueError, match="exists and is public"):
        publish_folder(folder, REPO, private=True, api=api)


def test_a_name_without_owner_is_refused_before_anything_happens(hub, api, folder):
    with pytest.raises(ValueError, match="must be 'organization/name', got 'model'"):
        publish_folder(folder, "model", api=api)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("pattern", "status", "message"),
    [
        ("POST /api/repos/create", 401, r"token is missing or wrong.*: nothing was uploaded"),
        ("POST .*/commit/", 403, r"token may not write there.*: nothing was uploaded"),
        ("POST .*/tag/", 404, r"no such repository.*uploaded, but not tagged"),
        ("POST .*/tag/", 400, r"uploaded, but not tagged.*goes on from there"),
        ("PUT /blobs/", 400, r"nothing was uploaded"),
        ("POST .*/tag/", 0, r"uploaded, but not tagged"),
    ],
)
def test_a_failure_says_what_was_done_and_the_next_try_goes_on(hub, api, folder, pattern, status, message):
    hub.failures.append((pattern, status))
    with pytest.raises(OSError, match=message):
        publish_folder(folder, REPO, tag="v1.0", api=api)
    assert "v1.0" not in getattr(hub.repositories.get(REPO), "references", {})
    hub.failures.clear()
    assert publish_folder(folder, REPO, tag="v1.0", api=api).changed
    assert hub.repositories[REPO].files("v1.0") == content(folder)
    assert list(hub.repositories[REPO].titles.values()) == ["initial commit", "Release v1.0"]


def test_a_folder_without_card_is_refused(api):
    with pytest.raises(ValueError, match=r"config\.json and README\.md must be there"):
        publish_folder(comneck_hf.pretrained("comneck-tiny-d1-q2"), REPO, api=api)


def run_python(hub: HubServer, tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words]
    environment = {**hub.environment(tmp_path / "home"), **variables}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


LOAD = """
import comneck_hf
from transformers import AutoModel

model = AutoModel.from_pretrained("nycu/comneck-d1-q2"{})
print(type(model).__module__, model.config.quality)
"""


def test_the_documented_call_loads_from_the_hub_and_a_tag_stays_what_it_was(hub, api, folder, tmp_path):
    publish_folder(folder, REPO, tag="v1.0", api=api)
    repository = hub.repositories[REPO]
    config = {**json.loads(repository.files()["config.json"]), "quality": 4}
    repository.commit("main", "later", {**repository.files(), "config.json": json.dumps(config).encode()})
    for revision, quality in (("", "4"), (', revision="v1.0"', "2")):
        result = run_python(hub, tmp_path, "-c", LOAD.format(revision))
        assert result.stdout.split() == ["comneck_hf.models.comneck.modeling_comneck", quality], result.stderr


def test_the_documented_call_loads_from_a_folder_of_that_name(hub, folder, tmp_path):
    shutil.copytree(folder, tmp_path / REPO)
    result = run_python(hub, tmp_path, "-c", LOAD.format(""), HF_HUB_OFFLINE="1")
    assert result.stdout.split()[1:] == ["2"], result.stderr


@pytest.mark.parametrize(
    ("pattern", "status", "message"),
    [
        ("resolve/.*/config", 403, "it is gated: ask for access"),
        ("resolve/.*/config", 404, "there is no such model on the Hub"),
        ("GET|HEAD", 500, "the Hub cannot be reached .*500"),
        ("GET|HEAD", 0, "the Hub did not answer as expected .*disconnected"),
    ],
)
def test_answers_that_are_errors_give_one_clear_line(hub, api, folder, tmp_path, pattern, status, message):
    publish_folder(folder, REPO, api=api)
    hub.failures.append((pattern, status))
    bitstream = tmp_path / "a.cnk"
    bitstream.write_bytes(Bitstream(1, 64, 64, b"0").pack())
    code = "from comneck_hf.cli import app; app()"
    result = run_python(hub, tmp_path, "-c", code, "info", "--model", REPO, str(bitstream))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert re.search(f"Error: {REPO} cannot be loaded: {message}", result.stderr), result.stderr


PUBLISH = Path(__file__).parents[2] / "scripts" / "publish.py"


def test_the_script_publishes_what_is_there_and_goes_on_later(hub, tmp_path):
    names = ("comneck-d3-q4", "comneck-tiny-clip", "comneck-tiny-d1-q2")
    facts = [str(card_files() / f"{name}.yaml") for name in names]
    words = [str(PUBLISH), "--organization", "someone", "--tag", "v1.0", "--facts"]
    result = run_python(hub, tmp_path, *words, *facts)
    assert "1 of 3 models were not published" in result.stderr
    assert hub.repositories.keys() == {"someone/comneck-tiny-clip", "someone/comneck-tiny-d1-q2"}
    commits = {name: list(repository.commits) for name, repository in hub.repositories.items()}
    again = run_python(hub, tmp_path, *words, *facts[1:])
    assert again.returncode == 0
    assert again.stderr.count("was there already") + again.stdout.count("was there already") == 2
    assert commits == {name: list(repository.commits) for name, repository in hub.repositories.items()}
