"""Feeds broken bitstreams to `ElicModel.decompress`: only latents or BitstreamError may come out.

python scripts/fuzz_bitstream.py --cases 1000000 --workers 2 --output results/fuzz.json
"""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from comneck_hf.evaluation.fuzz import fuzz, tiny_codec_target


MAX_GROWTH_MIB = 16


def main(args: argparse.Namespace) -> int:
    with tqdm(total=args.cases, unit=" cases", unit_scale=True) as bar:
        report = fuzz(
            tiny_codec_target,
            cases=args.cases,
            workers=args.workers,
            seed=args.seed,
            limit_s=args.limit,
            on_progress=bar.update,
        )
    passed = report.cases == args.cases and not report.failures and report.growth_mib < MAX_GROWTH_MIB
    result = {"passed": passed, "seed": args.seed, "limit_s": args.limit, **report.to_dict()}
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "outcomes"}, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1.0, help="CPU seconds that one case may take")
    parser.add_argument("--output", type=Path, help="JSON report")
    sys.exit(main(parser.parse_args()))
