"""Placing a model on many devices: shardings, stages, and the simulator that prices them."""
