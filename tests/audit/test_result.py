from __future__ import annotations

import csv
import io
from pathlib import Path

from lungseg_ray.audit.facts import LabelFacts
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.record import SetAside
from tests.audit.helpers import LUNG, make_audit, make_facts, table_of


class TestTable:
    def test_several_labels_and_groups(self, tmp_path: Path) -> None:
        corpus = CorpusSettings(root="x", classes=3, class_names=["cytoplasm", "nucleus"])
        labels = {"cytoplasm": LUNG, "nucleus": LabelFacts(0.1, 1, 0, None, ("top", "left"), 0.4, 0.5, 0.5)}
        one = make_facts("x1", labels=labels, groups={"bits": "many", "sex": "f"}, spacing=(0.1, 0.2))
        bad = SetAside("x2", "/x2.png", "unreadable", "truncated, and more")
        text = table_of(make_audit([one], corpus=corpus, set_aside=[bad], outliers=[]), tmp_path)
        first, second = csv.DictReader(io.StringIO(text))
        assert (first["share_nucleus"], first["touches_nucleus"], first["parts_cytoplasm"]) == ("0.1", "top left", "2")
        assert (first["bits"], first["group_bits"], first["sex"]) == ("8", "many", "f")
        assert (first["spacing_row"], first["spacing_column"], first["reason"]) == ("0.1", "0.2", "")
        assert (second["image_id"], second["place"], second["detail"]) == ("x2", "/x2.png", "truncated, and more")
