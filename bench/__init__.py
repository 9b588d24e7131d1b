"""Measures of vmreplica beside the tools that people use today, on the same disk content in the same run."""
