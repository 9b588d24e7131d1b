"""The tools that we are measured against, each really installed and run."""
