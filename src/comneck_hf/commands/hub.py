"""The commands that bring checkpoints of other code bases in, and ours out and to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ..hub import DEFAULT_CLIP
from .terminal import ForceOption, JsonOption, ModelOption, QuietOption, one_line_errors, print_json, silence_libraries


@one_line_errors
def convert(
    source: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Path or URL: d1_1.pth.tar, a bare ELIC, CompressAI's ELIC.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, for from_pretrained.")],
    clip: Annotated[
        str, typer.Option("--clip", help="CLIP of the neck: folder, Hub id, or file with OpenAI's names.")
    ] = DEFAULT_CLIP,
    scenario: Annotated[str | None, typer.Option("--scenario", help="d1, d2 or d3; else from the file name.")] = None,
    quality: Annotated[int | None, typer.Option("--quality", help="1 to 4; else from the file name.")] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="16 photographs: ranges and rate of the integer networks.")
    ] = None,
    post_layernorm_repeats: Annotated[
        int, typer.Option("--post-layernorm-repeats", min=1, help="2 gives the embeddings of the authors' code.")
    ] = 1,
    codec_only: Annotated[bool, typer.Option("--codec-only", help="Leave the neck out; needs no CLIP.")] = False,
    push_to_hub: Annotated[
        bool, typer.Option("--push-to-hub", help="Push to --repo-id as well, to a private repository.")
    ] = False,
    repo_id: Annotated[str | None, typer.Option("--repo-id", help="organization/name on the Hub.")] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint of the authors, or an ELIC codec, into a model folder, and prove it.

    Every tensor must be accounted for. The integer networks and coding tables are derived, codec, neck and CLIP layers
    are compared with independent computations, and the folder is loaded again; OUTPUT/conversion_report.json keeps it
    all. Nothing in the checkpoint is run, and nothing is written if a check fails.
    """
    from ..hub.convert import convert_checkpoint
    from ..hub.names import resolve_model

    if push_to_hub != (repo_id is not None):
        raise typer.BadParameter("goes together with --repo-id organization/name.", param_hint="--push-to-hub")
    silence_libraries()
    report = convert_checkpoint(
        source,
        output,
        clip=clip if Path(clip).is_file() else resolve_model(clip),
        scenario=scenario,
        quality=quality,
        pictures=pictures,
        post_layernorm_repeats=post_layernorm_repeats,
        codec_only=codec_only,
        overwrite=force,
        progress=not quiet,
    )
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        typer.echo(f"{report.to_text()}\n\nmodel: {output}")
    if repo_id is not None:
        _push_conversion(output, repo_id)


def _push_conversion(folder: Path, repo_id: str) -> None:
    """Pushes to a private repository; if that fails, the conversion need not be repeated."""
    from ..hub.cards import ModelFacts
    from ..hub.publish import publish_model

    try:
        publish_model(folder, ModelFacts(repo_id=repo_id), private=True)
    except (OSError, ValueError) as error:
        again = f"comneck push {folder} --repo-id {repo_id} --private"
        raise ValueError(f"{error} The model is converted; push it again with: {again}") from error


@one_line_errors
def export(
    model: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, as torch.save does.")],
    layout: Annotated[str, typer.Option("--layout", help="authors (also VincentChandelier's) or compressai.")],
    codec_only: Annotated[bool, typer.Option("--codec-only", help="Leave the neck out: a bare state dict.")] = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a model's weights for another code base: the authors', or CompressAI's elic2022-chandelier.

    The authors' layout holds codec and neck, CompressAI's the codec. Both are complete for a strict load there, float
    coding tables included; float entropy networks that a model was saved without are restored from its integer ones.
    Bitstreams are not interchangeable.
    """
    import torch
    from transformers import AutoConfig

    from .. import ComNeckConfig
    from ..hub.export import export_checkpoint, export_codec
    from ..hub.names import resolve_model
    from .files import refuse_existing
    from .loading import load_codec, load_model

    silence_libraries()
    if not force:
        refuse_existing([output])
    has_neck = isinstance(AutoConfig.from_pretrained(resolve_model(model)), ComNeckConfig)
    if layout == "authors" and has_neck and not codec_only:
        content = export_checkpoint(load_model(model))
        count = sum(len(part) for part in content.values())
    else:
        content = export_codec(load_codec(model), layout)
        count = len(content)
    if output.is_dir():
        raise ValueError(f"{output} is a folder. Give the name of a file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, output)
    if not quiet:
        typer.echo(f"{output}  {count} tensors")


@one_line_errors
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A saved or converted model.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="organization/name on the Hub.")],
    tag: Annotated[str | None, typer.Option("--tag", help="Release, such as v1.0. Tags are never moved.")] = None,
    facts: Annotated[
        Path | None, typer.Option("--facts", help="YAML with what the card says: license, training, limits, ...")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", help="Write the repository's content to this folder instead.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Put a model on the Hub: whole weights, card, and the file for trust_remote_code, in one commit.

    Repeating the command after a failure goes on where that was.
    """
    from dataclasses import replace

    from ..auto import register
    from ..hub.cards import ModelFacts, load_facts
    from ..hub.publish import publish_model

    register()
    silence_libraries()
    known = ModelFacts(repo_id=repo_id) if facts is None else replace(load_facts(facts), repo_id=repo_id)
    published = publish_model(folder, known, tag=tag, private=private, dry_run=dry_run)
    if not quiet:
        state = "" if published.changed else "  (was there already)"
        typer.echo(f"{dry_run or repo_id}  {published.revision}{state}")


__all__ = ["convert", "export", "push"]
