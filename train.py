"""Train one run: ``python train.py experiment=NAME key=value ...``; ``python train.py --help`` lists what there is."""

from llmtrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
