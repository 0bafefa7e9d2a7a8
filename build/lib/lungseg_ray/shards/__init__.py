"""Parquet shards: their format, the job that writes them, and whether existing ones fit."""
