"""What a step costs: measured, predicted, reported."""
