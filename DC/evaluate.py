"""Train networks from scratch on a synthetic set and test them: `python DC/evaluate.py --synset FILE`."""

import common.system.start  # noqa: F401 (before torch is loaded)

from common.preview.dry_evaluate import main

if __name__ == "__main__":
    main("DC")
