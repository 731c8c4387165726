"""Puts model folders on the Hub: one commit, one tag, and nothing twice."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from .cards import ModelFacts, render_card
from .folders import build_hub_folder


@dataclass(frozen=True)
class Published:
    """What became of a model.

    Attributes:
        repo_id: Where it is.
        revision: Tag, or branch where none was asked for.
        changed: Whether anything had to be uploaded or tagged.
    """

    repo_id: str
    revision: str
    changed: bool


def publish_folder(
    folder: str | Path, repo_id: str, *, tag: str | None = None, private: bool = False, api: HfApi | None = None
) -> Published:
    """Uploads a folder in one commit and tags it. Repeating it after a failure goes on where that was.

    Args:
        folder: What `build_hub_folder` wrote.
        repo_id: `"organization/name"`; created if it does not exist.
        tag: Name of the release, such as `"v1.0"`. A tag is never moved: if it exists, it must hold this very content.
        private: Create the repository as private.
        api: The Hub and the token to use; those of the environment by default.

    Raises:
        ValueError: If the tag exists with other content, or the folder is no model.
        OSError: If the Hub refuses or cannot be reached; the message says what was done so far.
    """
    folder, api = Path(folder), api or HfApi()
    if not (folder / "config.json").is_file() or not (folder / "README.md").is_file():
        raise ValueError(f"{folder} is not ready for the Hub: config.json and README.md must be there.")
    if repo_id.count("/") != 1:
        raise ValueError(f"`repo_id` must be 'organization/name', got {repo_id!r}.")
    done = "nothing was uploaded"
    try:
        if tag is not None and _exists(api, repo_id, tag):
            if not _holds(api, repo_id, tag, folder):
                raise ValueError(f"{repo_id} has a tag {tag} with other content, which stays. Choose a new tag.")
            return Published(repo_id, tag, changed=False)
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
        if private and not info.private:
            raise ValueError(f"{repo_id} exists and is public. Make it private on the Hub, or leave out `private`.")
        commit, uploaded = info.sha, not _holds(api, repo_id, "main", folder)
        if uploaded:
            message = f"Release {tag}" if tag else "Upload model"
            upload = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns="*"
            )
            commit = upload.oid
        done = "the files are uploaded, but not tagged"
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit)
    except (OSError, RuntimeError, *network_errors()) as error:
        raise OSError(_explain(error, repo_id, done)) from error
    return Published(repo_id, tag or "main", changed=uploaded or tag is not None)


def publish_model(
    folder: str | Path,
    facts: ModelFacts,
    *,
    root: str | Path = ".",
    tag: str | None = None,
    private: bool = False,
    dry_run: str | Path | None = None,
) -> Published:
    """Renders a model's card, builds the repository's content and publishes it.

    Args:
        folder: The model.
        facts: What the card says; `facts.repo_id` is where it goes.
        root: Where `facts.results` is looked for.
        tag: As for `publish_folder`.
        private: As for `publish_folder`.
        dry_run: Folder to leave the content in, without talking to the Hub; must not exist.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model: it has no config.json.")
    card = render_card(facts, folder, root=root, tag=tag)
    if dry_run is not None:
        build_hub_folder(folder, dry_run, card)
        return Published(facts.repo_id, tag or "main", changed=True)
    with tempfile.TemporaryDirectory() as temporary:
        build_hub_folder(folder, Path(temporary) / "model", card)
        return publish_folder(Path(temporary) / "model", facts.repo_id, tag=tag, private=private)


def network_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises where the network fails; its HTTP library has changed its name before."""
    return tuple(kind for kind in HfHubHTTPError.__mro__ if kind.__module__.startswith("httpx"))


def _explain(error: Exception, repo_id: str, done: str) -> str:
    response = getattr(error, "response", None)
    status = None if response is None else response.status_code
    reasons = {
        401: "the token is missing or wrong; run `hf auth login`",
        403: "the token may not write there",
        404: "there is no such repository, or the token may not see it",
    }
    reason = reasons.get(status, " ".join(str(error).split())[:200] or type(error).__name__)
    return f"Publishing {repo_id} failed ({reason}): {done}. The same command goes on from there."


def _exists(api: HfApi, repo_id: str, revision: str) -> bool:
    try:
        api.model_info(repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return False
    return True


def _holds(api: HfApi, repo_id: str, revision: str, folder: Path) -> bool:
    """Whether a revision has the files of the folder, and no others, with the same content."""
    remote = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in api.list_repo_tree(repo_id, recursive=True, revision=revision)
        if hasattr(entry, "blob_id") and entry.path != ".gitattributes"  # which the Hub adds
    }
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return remote.keys() == files.keys() and all(remote[name] in _digests(path) for name, path in files.items())


def _digests(path: Path) -> tuple[str, str]:
    """What the Hub calls a file's content: SHA-256 of a large one, Git's name of a small one."""
    large, small = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            large.update(block)
            small.update(block)
    return large.hexdigest(), small.hexdigest()


__all__ = ["Published", "network_errors", "publish_folder", "publish_model"]
