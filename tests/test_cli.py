"""The program itself; its commands are tested in `commands/`."""

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from comneck_hf import __version__
from comneck_hf.cli import app


def test_version_is_printed():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"comneck_hf {__version__}\n"


def test_help_imports_nothing_heavy():
    script = Path(sys.executable).parent / "comneck"
    code = (
        f"import sys; sys.argv = [{str(script)!r}, '--help']\n"
        "from comneck_hf.cli import app\n"
        "try:\n    app()\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "assert not {'torch', 'transformers', 'numpy', 'numba', 'PIL', 'matplotlib'} & set(sys.modules), sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "encode" in output and "classify" in output
