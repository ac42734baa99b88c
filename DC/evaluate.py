"""Train networks from scratch on a synthetic set and test them: `python DC/evaluate.py --synset FILE`."""

from common.training.evaluate_command import main

if __name__ == "__main__":
    main("DC")
