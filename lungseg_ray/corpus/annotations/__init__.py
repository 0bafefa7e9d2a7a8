"""Annotations that are no images: shapes of COCO, LabelMe, Darwin and CVAT, and tables of run lengths."""
