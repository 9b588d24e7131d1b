"""One module per measure: ``run(lab, plan) -> Measure``."""
