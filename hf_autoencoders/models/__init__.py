"""Configurations, models and processors: the files that travel to the Hub beside the weights."""
