"""Names of models: a folder, a Hub id, or a model that ships with the package."""

from pathlib import Path

from .. import pretrained


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for a name.

    Args:
        name: Folder, packaged model such as `"comneck-tiny-d1-q2"`, or Hub id such as `"owner/name"`.

    Raises:
        ValueError: If it is none of them.
    """
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists():
        return name
    try:
        return pretrained(name)
    except ValueError as error:
        raise ValueError(f"No model at {name!r}: neither a folder nor a Hub id (owner/name). {error}") from None


__all__ = ["resolve_model"]
