"""Publishes models by their facts files: card, weights and code file in one commit each, and a tag.

python scripts/publish.py --facts model_cards/comneck-tiny-*.yaml --tag v1.0 --dry_run build/hub

Models that are on the Hub under this tag are skipped, so the command can be repeated after a failure.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

from comneck_hf.hub.cards import load_facts
from comneck_hf.hub.publish import publish_model


ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Arguments:
    """What to publish and how."""

    facts: list[str] = field(metadata={"help": "facts files, one per model"})
    tag: str | None = field(default=None, metadata={"help": "release, such as v1.0; tags are never moved"})
    organization: str | None = field(default=None, metadata={"help": "publish there instead of where the facts say"})
    private: bool = False
    dry_run: str | None = field(default=None, metadata={"help": "write the repositories into this folder instead"})


def publish(path: Path, args: Arguments) -> str:
    """Publishes one model; returns what became of it."""
    facts = load_facts(path)
    if args.organization is not None:
        facts = replace(facts, repo_id=f"{args.organization}/{facts.repo_id.rpartition('/')[2]}")
    target = None if args.dry_run is None else Path(args.dry_run) / facts.repo_id
    published = publish_model(
        ROOT / facts.folder, facts, root=ROOT, tag=args.tag, private=args.private, dry_run=target
    )
    return f"{facts.repo_id}: {'published' if published.changed else 'was there already'}, {published.revision}"


def main(args: Arguments) -> None:
    logging.disable_progress_bar()
    failed = []
    for name in tqdm(args.facts, unit="model"):
        try:
            tqdm.write(publish(Path(name), args))
        except (ValueError, OSError) as error:
            failed.append(name)
            tqdm.write(f"{name}: {error}")
    if failed:
        raise SystemExit(f"{len(failed)} of {len(args.facts)} models were not published. Run the command again.")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
