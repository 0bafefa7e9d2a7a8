"""The Parquet shards of a corpus: their format, the job that builds them, and the check that they fit another job."""
