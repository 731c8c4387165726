"""Measures rate control and regions of interest: how close sizes come to what was asked, what a box gains.

python scripts/evaluate_rates.py --kodak DATA/kodak --pictures DATA/imagenet_sample_256 \\
    --codec runs/tiny/codec-q3/model
"""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import HfArgumentParser

from comneck_hf.evaluation.machine import describe_machine
from comneck_hf.evaluation.pictures import load_picture_folder, load_pictures
from comneck_hf.evaluation.rates import ReachedSize, RegionPsnr, reach_rates, region_gains
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained


TOLERANCE = 0.02


@dataclass
class Arguments:
    """Codec, pictures and rates."""

    kodak: str = field(metadata={"help": "folder of picture files, coded whole"})
    pictures: str = field(metadata={"help": "imagenet_sample_256"})
    codec: str = field(metadata={"help": "folder of the codec, or of a model that contains one"})
    count: int = field(default=200, metadata={"help": "pictures of imagenet_sample_256"})
    rates: list[float] = field(
        default_factory=lambda: [0.05, 0.1, 0.2, 0.45, 1.0], metadata={"help": "wanted bits per pixel"}
    )
    step: int = field(default=4, metadata={"help": "quarter octaves of gain of a region over the rest"})
    output: str = "results/rate_control_tiny.json"


def summary(reached: list[ReachedSize]) -> dict[str, Any]:
    """Share of the sizes within 2 %, and errors by rate."""
    errors = [abs(size.bpp / size.wanted_bpp - 1) for size in reached]
    by_rate = []
    for rate in sorted({size.wanted_bpp for size in reached}):
        sizes = [size for size in reached if size.wanted_bpp == rate]
        off = [abs(size.bpp / rate - 1) for size in sizes]
        by_rate.append(
            {
                "bpp": rate,
                "median_error": round(statistics.median(off), 5),
                "largest_error": round(max(off), 5),
                "psnr": round(statistics.mean(size.psnr for size in sizes), 3),
            }
        )
    within = sum(error <= TOLERANCE for error in errors) / len(errors)
    return {"sizes": len(errors), "within_2_percent": round(within, 4), "by_rate": by_rate}


def region_summary(regions: list[RegionPsnr]) -> dict[str, Any]:
    """Average change inside and outside, and how many pictures gained inside."""
    changes = [region.inside[1] - region.inside[0] for region in regions]
    outside = [region.outside[1] - region.outside[0] for region in regions]
    sizes = [region.region_bytes / region.plain_bytes - 1 for region in regions]
    return {
        "pictures": len(regions),
        "better_inside": sum(change > 0 for change in changes),
        "psnr_inside": round(statistics.mean(changes), 3),
        "psnr_outside": round(statistics.mean(outside), 3),
        "largest_size_difference": round(max(map(abs, sizes)), 5),
        "by_picture": [asdict(region) for region in regions],
    }


def main(args: Arguments) -> None:
    codec = codec_from_pretrained(args.codec)
    kodak = load_picture_folder(args.kodak)
    packs = {"kodak": kodak, "imagenet_sample_256": list(load_pictures(args.pictures, stop=args.count))}
    results: dict[str, Any] = {
        "setting": {
            "codec_quality": codec.config.quality,
            "rates": args.rates,
            "step": args.step,
            **describe_machine(),
        },
        "rate_control": {},
    }
    for name, pictures in packs.items():
        total = len(pictures) * len(args.rates)
        reached = list(tqdm(reach_rates(codec, pictures, args.rates), desc=name, total=total))
        results["rate_control"][name] = summary(reached)
    regions = list(tqdm(region_gains(codec, kodak, step=args.step), desc="regions", total=len(kodak)))
    results["regions"] = region_summary(regions)
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: pack["within_2_percent"] for name, pack in results["rate_control"].items()}))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
