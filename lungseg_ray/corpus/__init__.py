"""Lists the X-rays and masks of a corpus, pairs them, assigns each patient to a split and reads the pixels.

The rest of the code works with `Record` and `Sample` (`record.py`), and needs no knowledge of folder layouts or file
formats. Nothing is imported here, since tasks that only need these would import all readers of files.
"""
