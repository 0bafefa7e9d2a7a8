"""The HTML page of a sweep, a run or an audit: a single file that opens in any browser without a network connection."""
