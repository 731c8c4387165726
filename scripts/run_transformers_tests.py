"""Runs transformers' own modeling, image-processing and training mixins against our classes.

    python scripts/run_transformers_tests.py                                      # downloads the sdist
    python scripts/run_transformers_tests.py --sdist transformers-5.23.0.tar.gz

The sdist of the installed transformers version holds the mixins; nothing of it is committed here. Writes
results/transformers_mixins.json, explains every failure that is left by name, and exits with 1 where it cannot.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import transformers
from PIL import Image


ROOT = Path(__file__).resolve().parent.parent
OUR_TESTS = ROOT / "scripts" / "transformers_tests"
RESULTS = ROOT / "results" / "transformers_mixins.json"

# What transformers' repository has beside the mixins and its sdist leaves out.
STUBS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": (
        "from pathlib import Path\n\n\n"
        "def url_to_local_path(url):\n"
        "    return str(Path(__file__).parent / 'picture.png')\n"
    ),
}

# Failures that say nothing about our classes: (class, test) patterns and why.
EXPLANATIONS = {
    ("*ModelTest", "test_training_overfit"): "The mixin trains text models only: it raises for every image model.",
    ("ElicModelTest", "test_hidden_states_output"): "A convolutional codec has no sequence of hidden states.",
    ("ElicModelTest", "test_retain_grad_hidden_states_attentions"): (
        "A convolutional codec has neither hidden states nor attentions."
    ),
    ("ElicModelTest", "test_model_outputs_equivalence"): (
        "Tuples and outputs agree; the test then asks for hidden states, which a convolutional codec does not have."
    ),
    ("ElicModelTest", "test_model_get_set_embeddings"): "A convolutional codec has no input embedding.",
}


def fetch_sdist(folder: Path) -> Path:
    """Downloads the source distribution of the installed transformers."""
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), requirement], check=True)
    (sdist,) = folder.glob("transformers-*.tar.gz")
    return sdist


def prepare(sdist: Path, folder: Path) -> Path:
    """Unpacks the mixins, adds the stubs and our test classes; returns the root to run pytest in."""
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if "/tests/" in member.name]
        archive.extractall(folder, members=members, filter="data")
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    for name, text in STUBS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    y, x = np.mgrid[0:480, 0:640]
    drawn = np.stack([x * 255 / 640, y * 255 / 480, 127 + 127 * np.sin(x * y / 9000)], axis=-1)
    Image.fromarray(drawn.astype(np.uint8)).save(root / "utils" / "picture.png")
    shutil.copytree(OUR_TESTS, root / "tests" / "models" / "comneck")
    for package in [root / "tests", *(path for path in (root / "tests").rglob("*") if path.is_dir())]:
        (package / "__init__.py").touch()
    return root


def run_pytest(root: Path, arguments: list[str]) -> Path:
    """Runs our test classes; returns the JUnit report."""
    report = root / "report.xml"
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={root}"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", "tests/models/comneck", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    code = subprocess.run(command, cwd=root, env=environment).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest could not run the mixins (exit code {code}); its output above says why.")
    return report


def collect(report: Path) -> tuple[dict[str, Counter], list[dict[str, str | None]]]:
    """Counts per test class, and every failure with its explanation or `None`."""
    outcomes: dict[str, dict[str, str]] = defaultdict(dict)
    messages = {}
    for case in ElementTree.parse(report).iter("testcase"):
        class_name, name = case.get("classname", "").rsplit(".", 1)[-1], case.get("name", "")
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        outcome = "failed" if problem is not None else "skipped" if case.find("skipped") is not None else "passed"
        if outcomes[class_name].get(name) != "failed":
            outcomes[class_name][name] = outcome
        if problem is not None:
            messages[class_name, name] = (problem.get("message") or "").split("\n")[0][:200]
    failures = [
        {"class": class_name, "test": name, "message": message, "explanation": explain(class_name, name)}
        for (class_name, name), message in sorted(messages.items())
    ]
    return {class_name: Counter(tests.values()) for class_name, tests in sorted(outcomes.items())}, failures


def explain(class_name: str, test: str) -> str | None:
    """Why this failure is none of ours, if it is known."""
    patterns = EXPLANATIONS.items()
    return next((why for (cls, name), why in patterns if fnmatch(class_name, cls) and fnmatch(test, name)), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="source distribution of transformers; downloaded by default")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("pytest_arguments", nargs="*", help="further arguments for pytest, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist = arguments.sdist or fetch_sdist(folder)
        (folder / "unpacked").mkdir()
        root = prepare(sdist, folder / "unpacked")
        counts, failures = collect(run_pytest(root, arguments.pytest_arguments))
    columns = ("passed", "skipped", "failed")
    print(f"\n{'transformers ' + transformers.__version__:40}" + "".join(f"{column:>9}" for column in columns))
    for class_name, counter in counts.items():
        print(f"{class_name:40}" + "".join(f"{counter[column]:9}" for column in columns))
    for failure in failures:
        reason = failure["explanation"] or f"NOT EXPLAINED: {failure['message']}"
        print(f"{failure['class']}::{failure['test']}\n    {reason}")
    report = {
        "transformers": transformers.__version__,
        "classes": {
            class_name: {column: counter[column] for column in columns} for class_name, counter in counts.items()
        },
        "failures": failures,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(failure["explanation"] is None for failure in failures))


if __name__ == "__main__":
    raise SystemExit(main())
