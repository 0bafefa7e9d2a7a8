"""The one label value that every module has to agree on."""

IGNORE_LABEL = 255
