"""comneck_hf: neural-codec latents instead of pixels for multimodal LLMs.

Importing the package registers its models with transformers' Auto classes:

    import comneck_hf
    from transformers import AutoModel

    model = AutoModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-d1-q2"))
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .coding.bitstream import BITSTREAM_VERSION, Bitstream, BitstreamError
    from .models.comneck.configuration_comneck import ComNeckConfig, ComNeckVisionConfig
    from .models.comneck.image_processing_comneck import ComNeckImageProcessor
    from .models.comneck.image_processing_pil_comneck import ComNeckImageProcessorPil
    from .models.comneck.modeling_comneck import ComNeckModel, ComNeckModelOutput, ComNeckVisionModel
    from .models.comneck.neck_comneck import TransformNeck
    from .models.elic.configuration_elic import ElicConfig
    from .models.elic.modeling_elic import ElicModel

__version__ = "0.1.0"

_MODULES = {
    "BITSTREAM_VERSION": ".coding.bitstream",
    "Bitstream": ".coding.bitstream",
    "BitstreamError": ".coding.bitstream",
    "ComNeckConfig": ".models.comneck.configuration_comneck",
    "ComNeckImageProcessor": ".models.comneck.image_processing_comneck",
    "ComNeckImageProcessorPil": ".models.comneck.image_processing_pil_comneck",
    "ComNeckModel": ".models.comneck.modeling_comneck",
    "ComNeckModelOutput": ".models.comneck.modeling_comneck",
    "ComNeckVisionConfig": ".models.comneck.configuration_comneck",
    "ComNeckVisionModel": ".models.comneck.modeling_comneck",
    "ElicConfig": ".models.elic.configuration_elic",
    "ElicModel": ".models.elic.modeling_elic",
    "TransformNeck": ".models.comneck.neck_comneck",
}


def pretrained(name: str) -> str:
    """Absolute path of a model folder inside the package, for `from_pretrained`.

    Args:
        name: Such as `"comneck-tiny-d1-q2"`.

    Raises:
        ValueError: If the package holds no such folder; the message lists those it holds.
    """
    root = Path(__file__).resolve().parent / "pretrained"
    names = sorted(path.parent.name for path in root.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"No packaged model is called {name!r}. Available: {', '.join(names) or 'none'}.")
    return str(root / name)


def _runs_as_console_script() -> bool:
    script = Path(sys.argv[0]) if sys.argv else Path()
    return script.stem == "comneck" and script.resolve().parent == Path(sys.executable).parent.resolve()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name].startswith(".models"):
        import_module(".auto", __name__)
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "BITSTREAM_VERSION",
    "Bitstream",
    "BitstreamError",
    "ComNeckConfig",
    "ComNeckImageProcessor",
    "ComNeckImageProcessorPil",
    "ComNeckModel",
    "ComNeckModelOutput",
    "ComNeckVisionConfig",
    "ComNeckVisionModel",
    "ElicConfig",
    "ElicModel",
    "TransformNeck",
    "__version__",
    "pretrained",
]

# `comneck --help` must answer within a second, and torch alone takes longer to import: the commands that need models
# register them then (any of the lazy names above does, and so does `import comneck_hf.auto`).
if not _runs_as_console_script():
    import_module(".auto", __name__)
