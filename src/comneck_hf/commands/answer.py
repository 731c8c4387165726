"""The command that answers a benchmark's questions into the file that its evaluator takes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .score import Task
from .terminal import (
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    JsonOption,
    QuietOption,
    one_line_errors,
    placement,
    print_json,
)


__all__ = ["answer"]


@one_line_errors
def answer(
    task: Annotated[Task, typer.Argument(help="VQA v2, POPE, COCO captions, or referring expressions (RefCOCO).")],
    questions: Annotated[Path, typer.Option("--questions", help="The benchmark's file of questions.")],
    images: Annotated[Path, typer.Option("--images", help="Folder with its pictures.")],
    llava: Annotated[str, typer.Option("--llava", help="LLaVA that answers, trained on pixels: folder or Hub id.")],
    model: Annotated[str, typer.Option("--model", "-m", help="ComNeck that codes.")],
    source: Annotated[
        str, typer.Option("--source", help="latents, or a baseline of `comneck eval`, such as jpeg@2000.")
    ] = "latents",
    prompt: Annotated[
        str | None, typer.Option("--prompt", help='Such as "{} Answer briefly."; LLaVA-1.5\'s by default.')
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    output: Annotated[Path, typer.Option("--output", "-o", help="Results to write.")] = Path("answers.json"),
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time.")] = 16,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a benchmark's questions about coded pictures, for `comneck score`.

    Every picture is resized and cropped to the model's square (padded, where answers are boxes, which are then mapped
    back to fractions of the picture), coded, and sent on as --source says. What it took is printed beside the answers.
    """
    from ..evaluation.benchmarks import answer_prompts, boxes_in_pictures, load_prompts, square_pictures
    from .evaluation_parts import Parts
    from .files import refuse_existing

    if not force:
        refuse_existing([output])
    prompts = load_prompts(task.value, questions, prompt=prompt)
    parts = Parts(models=[model], llava=llava, **placement(device, dtype))
    pictures, asked = square_pictures(images, prompts, parts.side())
    records, rate = answer_prompts(
        parts.questions_task(pictures, asked, name=task.value, max_new_tokens=max_new_tokens),
        parts.baseline(source),
        prompts,
        batch_size=batch_size,
        progress=not quiet,
    )
    if task == Task.rec:
        records = boxes_in_pictures(records, prompts, images)
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) for record in records]
    text = "\n".join(lines) if task == Task.pope else f"[{', '.join(lines)}]"
    output.write_text(f"{text}\n", encoding="utf-8")
    if as_json:
        print_json({"task": task.value, "source": source, "output": str(output), "answers": len(records), **rate})
    elif not quiet:
        size = f", {rate['bytes']:.1f} bytes each" if "bytes" in rate else ""
        typer.echo(f"{output}  {len(records)} answers about {rate['pictures']} pictures{size}")
