"""The packaged LLaVA answers about drawings that it never saw, from their bitstreams."""

import json
from pathlib import Path

from PIL import Image, ImageDraw
from typer.testing import CliRunner

from comneck_hf.cli import app


COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
SHAPES = {"circle": ((15, 20, 40, 45), ImageDraw.ImageDraw.ellipse), "rectangle": ((15, 20, 45, 40), None)}


def draw(folder):
    for color, value in COLORS.items():
        for shape, (box, pencil) in SHAPES.items():
            picture = Image.new("RGB", (64, 64), (248, 246, 250))
            (pencil or ImageDraw.ImageDraw.rectangle)(ImageDraw.Draw(picture), box, fill=value)
            picture.resize((128, 128), Image.Resampling.BICUBIC).save(folder / f"{color}-{shape}.png")


def test_the_packaged_llava_answers_offline(tmp_path):
    draw(tmp_path)
    runner = CliRunner()
    assert runner.invoke(app, ["encode", str(tmp_path), "-o", str(tmp_path), "--quiet"]).exit_code == 0
    for part, question in enumerate(("what color is the shape?", "what shape is in the image?")):
        asked = runner.invoke(app, ["ask", str(tmp_path), question, "--json", "--quiet"])
        assert asked.exit_code == 0, asked.output
        found = {Path(result["input"]).stem: result["answer"] for result in json.loads(asked.stdout)}
        assert len(found) == 6
        assert found == {name: name.split("-")[part] for name in found}
    for question in (" ", "what is in this <image>?"):
        refused = runner.invoke(app, ["ask", str(tmp_path), question])
        assert refused.exit_code == 1
        assert "must be words without <image>" in refused.stderr


def test_pictures_that_were_not_cropped_are_named(tmp_path):
    Image.new("RGB", (200, 64), (255, 0, 0)).save(tmp_path / "wide.png")
    runner = CliRunner()
    coded = runner.invoke(app, ["encode", str(tmp_path / "wide.png"), "-o", str(tmp_path), "--no-crop", "-q"])
    assert coded.exit_code == 0, coded.output
    asked = runner.invoke(app, ["ask", str(tmp_path / "wide.cnk"), "what color is it?", "-q"])
    assert asked.exit_code == 1
    assert "latents of 4x16, but the tower takes 8x8. Crop pictures before" in asked.stderr
