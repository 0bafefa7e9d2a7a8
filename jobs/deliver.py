"""Writes predicted masks as DICOM, COCO, LabelMe or measures: python jobs/deliver.py --predictions DIR --out DIR."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("deliver"))
