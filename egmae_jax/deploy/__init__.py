"""A finished run at work: predictor, exports, demo page."""
