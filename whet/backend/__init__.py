"""Backends: what turns a graph into something that runs, one adapter each, competing by time."""
