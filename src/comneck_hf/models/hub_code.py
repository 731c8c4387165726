"""How classes of this package take part in `trust_remote_code=True`."""

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any


HUB_FILE = "comneck_hub.py"


def copy_hub_file(folder: str | os.PathLike) -> None:
    """Writes the file that `auto_map` entries point to: it imports the classes from the installed package."""
    with as_file(files("comneck_hf.modeling") / HUB_FILE) as source:
        shutil.copyfile(source, Path(folder) / HUB_FILE)


class HubCode:
    """For configurations and image processors, which `trust_remote_code=True` loads through `HUB_FILE`.

    transformers would copy the file that defines such a class when it is saved again; ours stay in the package, and
    what was loaded with an `auto_map` is saved with it.
    """

    auto_map: dict[str, Any]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Does nothing: `HUB_FILE` stands for the class."""

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """Saves as transformers does, with `HUB_FILE` where `auto_map` points to it."""
        saved = super().save_pretrained(save_directory, **kwargs)
        if self.__dict__.get("auto_map"):
            copy_hub_file(save_directory)
        return saved


__all__ = ["HUB_FILE", "HubCode", "copy_hub_file"]
