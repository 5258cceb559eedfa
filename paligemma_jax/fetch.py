"""Fetch weights, tokenizers and mask codecs before they are needed, for a machine without network.

    paligemma-jax fetch pt_3b_224
    paligemma-jax fetch paligemma2-3b --res 448
    paligemma-jax fetch tokenizer mask_codec https://host/weights.npz
    paligemma-jax fetch --config configs/mine.py
    paligemma-jax fetch --list

NAME is a name of published weights, a released model (its weights of --res; the tokenizer comes
with both), tokenizer, mask_codec, or an address (kaggle:// hf:// https:// gs:// s3://). --config
fetches all that a config names, --list shows all published weights and their sizes. What is here
already is not fetched again; folders of transformers and PEFT are converted. The folders that files
are kept in may be copied to another machine.
"""

import argparse
from collections.abc import Sequence

from paligemma_jax.assembly import fetching
from paligemma_jax.console import arguments, say
from paligemma_jax.settings import load, schema

HEADER = ("name", "model", "px", "type", "GB", "from")


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    if args.list:
        say.result(say.table(fetching.list_weights(), header=HEADER))
        return
    sources = fetching.sources_of_names(args.names, res=args.res)
    if args.config:
        sources |= fetching.sources_of_settings(load.load(args.config, overrides["config"]))
    for name, path in fetching.fetch(sources):
        say.result(f"{name}\t{path}\n")


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="what to fetch")
    parser.add_argument("--res", type=int, help="of a model's weights, in pixels; default: 224")
    parser.add_argument("--config", metavar="FILE[:ARG]", help="fetch all that it names")
    parser.add_argument("--list", action="store_true", help="the published weights")
    args, overrides = arguments.parse(parser, argv, groups={"config": schema.names()})
    if not args.names and not args.config and not args.list:
        parser.error("nothing to fetch: give names, as pt_3b_224 or tokenizer, or --config FILE")
    return args, overrides


if __name__ == "__main__":
    arguments.run(main)
