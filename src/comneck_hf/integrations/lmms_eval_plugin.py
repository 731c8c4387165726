"""lmms-eval plugin: makes `--model comneck_llava` known through the entry point `lmms_eval.models`.

lmms-eval calls `manifest` whenever it starts; the model is imported when it is asked for.
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """Name and class of the model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("comneck_llava", chat_class_path="comneck_hf.integrations.lmms_eval.ComNeckLlava")


__all__ = ["manifest"]
